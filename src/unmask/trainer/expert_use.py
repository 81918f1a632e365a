"""How evenly the tokens of the updates use the experts of a mixture.

If nearly all tokens go to a few experts, the others learn nothing, and the model is in effect a
smaller one. No loss balances the experts here; these metrics show whether one is needed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from unmask.models import Denoiser
from unmask.models.experts import routers_of
from unmask.trainer.metrics import Tally

_COUNTS = "unmask_counts"
"""Attribute in which a router holds the number of tokens of each expert. It is no buffer, so it is
not part of the model's state. All layers have the same one, so that they share a compiled graph."""


class ExpertUse:
    """Counts the tokens that each router sends to each expert, in forward passes with a graph.

    Args:
        routers: routers of the policy.
    """

    def __init__(self, routers: list[nn.Module]) -> None:
        self.routers = routers
        for router in routers:
            setattr(router, _COUNTS, None)
            router.register_forward_hook(_count)

    @classmethod
    def of(cls, denoiser: Denoiser) -> ExpertUse | None:
        """Return the counter of a denoiser; None if the denoiser is no mixture of experts.

        Make it before the layers are compiled, because compiled code does not see new hooks.
        """
        routers = [router for _, router in routers_of(denoiser)]
        return cls(routers) if routers else None

    def __len__(self) -> int:
        return len(self.routers)

    @property
    def num_experts(self) -> int:
        """Number of experts in a layer."""
        return int(self.routers[0].num_experts)  # type: ignore[arg-type]

    def take(self, tally: Tally | None = None) -> None:
        """Add the metrics to a tally, and begin to count again."""
        for router in self.routers:
            counts: Tensor | None = getattr(router, _COUNTS)
            setattr(router, _COUNTS, None)
            if tally is not None and counts is not None:
                share = counts.double() / counts.sum().clamp_min(1)
                tally.add("experts/busiest_share", share.max())
                tally.add("experts/busiest_share_max", share.max())
                tally.add("experts/entropy", torch.special.entr(share).sum())


def _count(router: nn.Module, _arguments: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    """Add the experts that a router chose, which are its last output."""
    if not torch.is_grad_enabled():
        return
    chosen = output[-1].detach().flatten()
    counts: Tensor | None = getattr(router, _COUNTS)
    if counts is None:
        counts = torch.zeros(router.num_experts, dtype=torch.int64, device=chosen.device)  # type: ignore[call-overload]
    # No bincount, for which a GPU would have to wait.
    setattr(router, _COUNTS, counts.scatter_add(0, chosen, torch.ones_like(chosen)))

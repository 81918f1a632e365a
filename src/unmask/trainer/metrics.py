"""Metrics of a training step. Each rank adds up its values, and one reduction at the end combines
all ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unmask.core.counter import Counter
from unmask.functional.behaviour import effective_share

if TYPE_CHECKING:
    from accelerate import Accelerator


class Tally:
    """Accumulates metrics. The result is the mean of a metric. It is the largest value if the name
    ends in `_max`, and the effective sample size of weights, as a share of their number, if the
    name ends in `effective_share`."""

    def __init__(self) -> None:
        self._sum: dict[str, float] = {}
        self._squares: dict[str, float] = {}
        self._count: dict[str, float] = {}

    def add(self, name: str, values: Tensor | float) -> None:
        """Add values of a metric. Each value has the same weight in the mean."""
        values = torch.as_tensor(values, dtype=torch.float64).flatten()
        if not len(values):
            return
        if name.endswith("_max"):
            self._sum[name] = max(self._sum.get(name, float("-inf")), float(values.max()))
            self._count[name] = 1.0
        else:
            self._sum[name] = self._sum.get(name, 0.0) + float(values.sum())
            self._squares[name] = self._squares.get(name, 0.0) + float(values.square().sum())
            self._count[name] = self._count.get(name, 0.0) + len(values)

    def reduce(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the value of each metric over all ranks."""
        own = (self._sum, self._squares, self._count)
        if accelerator.num_processes > 1:
            from accelerate.utils import gather_object

            parts = gather_object([own])
        else:
            parts = [own]
        reduced = {}
        for name in sorted({name for sums, _, _ in parts for name in sums}):
            sums, squares, counts = (
                [part[name] for part in column if name in part] for column in zip(*parts, strict=True)
            )
            if name.endswith("_max"):
                reduced[name] = max(sums)
            elif name.endswith("effective_share"):
                reduced[name] = effective_share(sum(sums), sum(squares), sum(counts))
            else:
                reduced[name] = sum(sums) / sum(counts)
        return reduced


class TokenPasses(Counter):
    """Counts token passes (the unit of compute). Each token counts once in a forward pass, and
    three times in a forward pass that has a backward pass.

    Args:
        modules: the denoisers whose forward passes count.
    """

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        for module in modules:
            module.register_forward_pre_hook(self._see)

    def _see(self, _module: nn.Module, args: tuple[Any, ...]) -> None:
        self.count += args[0].numel() * (3 if torch.is_grad_enabled() else 1)

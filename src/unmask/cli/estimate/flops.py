"""Floating-point operations of a model, by hand: twice the weights that a token meets, and attention on top.

Forward of a token through the trunk: 2 W + sum over layers of 4 S D, W the entries of its weight matrices, S the positions that
it attends to, D heads times head width: S D multiplications and additions for the scores, and as many for the mixture of values.
Backward: the same again for the gradients of the inputs, and once more for those of the weights where they are trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from unmask.cli.estimate.work import Pass
from unmask.models import Denoiser


@dataclass(frozen=True, slots=True)
class Costs:
    """Of one model at one sequence length; all in floating-point operations."""

    trunk: int
    """2 W for a token, adapters included."""
    attention: int
    """For a token, all layers."""
    head: int
    """For a position."""
    trained_share: float
    """Of `trunk`: of matrices that are trained."""
    trains_head: bool
    recomputes: bool
    """Whether the backward pass runs the trunk's forward again."""

    def forward(self, work: Pass) -> int:
        """Of a pass's forwards."""
        return work.tokens * (self.trunk + self.attention) + work.head * self.head

    def backward(self, work: Pass) -> int:
        """Of its backward, if it has one."""
        if not work.backward:
            return 0
        trunk = work.tokens * (self.trunk * (1 + self.trained_share) + 2 * self.attention)
        again = work.tokens * (self.trunk + self.attention) if self.recomputes else 0
        return int(trunk + again + work.head * self.head * (2 if self.trains_head else 1))

    def total(self, work: Pass) -> int:
        """Of both."""
        return self.forward(work) + self.backward(work)


def costs_of(denoiser: Denoiser, config: Any, length: int, layers_built: int, recomputes: bool) -> Costs:
    """Costs of the model that `config` describes, from one of the same layers built with fewer of them.

    Args:
        denoiser: with `layers_built` layers.
        config: of the whole model.
        length: S, tokens of a row.
        layers_built: how many `denoiser` has.
        recomputes: gradient checkpointing.
    """
    trunk = denoiser.backbone.base_model
    scale = config.num_hidden_layers / layers_built
    inside = [m for m in trunk.modules() if _is_matrix(m)]
    outside = [m for m in denoiser.modules() if _is_matrix(m) and all(m is not other for other in inside)]
    weights = scale * _entries(inside)
    trained = scale * _entries(inside, trained=True)
    per_head = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    width = config.num_attention_heads * per_head
    return Costs(
        trunk=int(2 * weights),
        attention=4 * width * sum(min(length, span) for span in _spans(config, length)),
        head=2 * int(_entries(outside)),
        trained_share=trained / weights,
        trains_head=_entries(outside, trained=True) > 0,
        recomputes=recomputes,
    )


def _entries(modules: Sequence[nn.Module], *, trained: bool = False) -> float:
    """Entries of the weight matrices of modules, or of those that are trained."""
    weights: list[Any] = [module.weight for module in modules]
    return float(sum(weight.numel() for weight in weights if weight.requires_grad or not trained))


def _is_matrix(module: nn.Module) -> bool:
    """Linear maps, GPT-2's transposed ones and adapters' included; an embedding is looked up."""
    weight = getattr(module, "weight", None)
    # An adapted layer passes its base layer's weight through; that is counted where it lives.
    is_wrapper = hasattr(module, "base_layer")
    return weight is not None and weight.dim() == 2 and not isinstance(module, nn.Embedding) and not is_wrapper


def _spans(config: Any, length: int) -> list[int]:
    """Positions that each layer attends to: all, or a window where its layers say so."""
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    window = getattr(config, "sliding_window", None) or getattr(config, "local_attention", None) or length
    return [window if kind == "sliding_attention" else length for kind in kinds]

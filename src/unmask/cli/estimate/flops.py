"""Floating-point operations of a model, counted by hand: twice the weights that a token meets, and
attention.

A token's forward pass through the trunk takes 2 W + sum over layers of 4 S D operations. W is the
number of entries of the weight matrices, S the number of positions that the token attends to, and D
the number of heads times the head width. S D multiplications and as many additions compute the
attention scores, and the same number of each computes the weighted sum of the values. The backward
pass takes as many operations for the gradients of the inputs, and as many again for the gradients
of the weights that are trained.
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
    """Floating-point operations of one model at one sequence length."""

    trunk: int
    """2 W: operations of a token with the weight matrices of the trunk, adapters included."""
    attention: int
    """Operations of a token in the attention of all layers."""
    head: int
    """Operations of a position in the head."""
    trained_share: float
    """Share of `trunk` that belongs to trained matrices."""
    trains_head: bool
    """True if the head is trained."""
    recomputes: bool
    """True if the backward pass repeats the forward pass of the trunk (gradient checkpointing)."""

    def forward(self, work: Pass) -> int:
        """Return the operations of the forward passes."""
        return work.tokens * (self.trunk + self.attention) + work.head * self.head

    def backward(self, work: Pass) -> int:
        """Return the operations of the backward passes; 0 if there are none."""
        if not work.backward:
            return 0
        trunk = work.tokens * (self.trunk * (1 + self.trained_share) + 2 * self.attention)
        repeated = work.tokens * (self.trunk + self.attention) if self.recomputes else 0
        return int(trunk + repeated + work.head * self.head * (2 if self.trains_head else 1))

    def total(self, work: Pass) -> int:
        """Return the operations of forward and backward passes."""
        return self.forward(work) + self.backward(work)


def costs_of(denoiser: Denoiser, config: Any, length: int, layers_built: int, recomputes: bool) -> Costs:
    """Count the operations of a model from a copy of it with fewer layers.

    Args:
        denoiser: the copy.
        config: configuration of the whole model.
        length: S, the number of tokens in a sequence.
        layers_built: number of layers of the copy.
        recomputes: True with gradient checkpointing.
    """
    trunk = denoiser.backbone.base_model
    scale = config.num_hidden_layers / layers_built
    inside = [m for m in trunk.modules() if _is_matrix(m)]
    outside = [m for m in denoiser.modules() if _is_matrix(m) and all(m is not other for other in inside)]
    weights = scale * _entries(inside)
    trained = scale * _entries(inside, trained=True)
    head_width = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    width = config.num_attention_heads * head_width
    return Costs(
        trunk=int(2 * weights),
        attention=4 * width * sum(min(length, span) for span in _spans(config, length)),
        head=2 * int(_entries(outside)),
        trained_share=trained / weights,
        trains_head=_entries(outside, trained=True) > 0,
        recomputes=recomputes,
    )


def _entries(modules: Sequence[nn.Module], *, trained: bool = False) -> float:
    """Return the number of entries of the modules' weight matrices, or only of the trained
    matrices."""
    weights: list[Any] = [module.weight for module in modules]
    return float(sum(weight.numel() for weight in weights if weight.requires_grad or not trained))


def _is_matrix(module: nn.Module) -> bool:
    """Return True for linear maps, including GPT-2's transposed linear maps and adapters.
    Embeddings are not linear maps, because their rows are only looked up."""
    weight = getattr(module, "weight", None)
    # An adapted layer exposes the weight of its base layer, which is a module of its own.
    is_wrapper = hasattr(module, "base_layer")
    return weight is not None and weight.dim() == 2 and not isinstance(module, nn.Embedding) and not is_wrapper


def _spans(config: Any, length: int) -> list[int]:
    """Return the number of positions that each layer attends to: all of them, or a sliding
    window."""
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    window = getattr(config, "sliding_window", None) or getattr(config, "local_attention", None) or length
    return [window if kind == "sliding_attention" else length for kind in kinds]

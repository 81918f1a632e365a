"""Floating-point operations of a model, counted by hand: twice the weights that a token meets, and
attention.

A token's forward pass through the trunk takes 2 W + sum over layers of 4 S D operations. W is the
number of entries of the weight matrices, S the number of positions that the token attends to, and D
the number of heads times the head width. S D multiplications and as many additions compute the
attention scores, and the same number of each computes the weighted sum of the values. The backward
pass takes as many operations for the gradients of the inputs, and as many again for the gradients
of the weights that are trained.

Low-rank adapters take few operations but move many bytes, so the time of adapters that are not
merged into the weights is that of their bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from typing import Any

from torch import nn

from unmask.cli.estimate.work import Pass
from unmask.models import Denoiser
from unmask.models.native import NATIVE_CLASSES


@dataclass(frozen=True, slots=True)
class Costs:
    """Floating-point operations of one model."""

    trunk: int
    """2 W: operations of a token with the weight matrices of the trunk, without adapters."""
    tail: int
    """Part of `trunk` in the last layer after its attention, which runs only at the columns that
    the head reads."""
    adapters: int
    """Operations of a token with the matrices of the adapters."""
    tail_adapters: int
    """Part of `adapters` in the last layer after its attention."""
    adapter_bytes: int
    """Bytes that the adapters read and write for a token in a forward pass."""
    tail_bytes: int
    """Part of `adapter_bytes` in the last layer after its attention."""
    spans: tuple[float, ...]
    """Largest number of positions that a token of each layer attends to; infinite without a sliding
    window."""
    width: int
    """D, the number of heads times the width of a head."""
    head: int
    """Operations of a position in the head."""
    trained_share: float
    """Share of `trunk` that belongs to trained matrices."""
    trains_head: bool
    """True if the head is trained."""
    recomputes: bool
    """True if the backward pass repeats the forward pass of the trunk (gradient checkpointing)."""

    def attention(self, attended: float) -> int:
        """Return the operations in the attention of all layers, 4 S D each, of a token that attends
        to S = `attended` positions."""
        return int(4 * self.width * sum(min(attended, span) for span in self.spans))

    def token(self, work: Pass) -> int:
        """Return the operations of a token in a forward pass of the trunk before its tail."""
        adapters = self.adapters - self.tail_adapters if work.has_adapters else 0
        return self.trunk - self.tail + adapters + self.attention(work.attended)

    def column(self, work: Pass) -> int:
        """Return the operations of a column in a forward pass of the tail."""
        return self.tail + (self.tail_adapters if work.has_adapters else 0)

    def forward(self, work: Pass) -> int:
        """Return the operations of the forward passes."""
        return work.tokens * self.token(work) + work.columns * self.column(work) + work.head * self.head

    def backward(self, work: Pass) -> int:
        """Return the operations of the backward passes; 0 if there are none."""
        if not work.backward:
            return 0
        times = 1 + self.trained_share
        token = (self.trunk - self.tail) * times + 2 * self.attention(work.attended)
        column = self.tail * times
        if work.has_adapters:
            token += 2 * (self.adapters - self.tail_adapters)
            column += 2 * self.tail_adapters
        if self.recomputes:
            token, column = token + self.token(work), column + self.column(work)
        head = work.head * (2 if self.trains_head else 1) + work.read_again
        return int(work.tokens * token + work.columns * column + head * self.head)

    def total(self, work: Pass) -> int:
        """Return the operations of forward and backward passes."""
        return self.forward(work) + self.backward(work)

    def moved(self, work: Pass) -> int:
        """Return the bytes that the adapters read and write in forward and backward passes.

        Per adapted layer with D_in inputs and D_out outputs, a forward pass reads the input, and
        writes the product, scales it and adds it to the layer's own output: D_in + 6 D_out numbers.
        A backward pass moves 5 D_in + 4 D_out numbers, which is 9/7 as much if they are equal.
        """
        if not work.has_adapters:
            return 0
        times = (1 + self.recomputes + 9 / 7) if work.backward else 1
        moved = work.tokens * (self.adapter_bytes - self.tail_bytes) + work.columns * self.tail_bytes
        return int(moved * times)


def costs_of(denoiser: Denoiser, config: Any, layers_built: int, recomputes: bool) -> Costs:
    """Count the operations of a model from a copy of it with fewer layers.

    Args:
        denoiser: the copy.
        config: configuration of the whole model.
        layers_built: number of layers of the copy.
        recomputes: True with gradient checkpointing.
    """
    trunk = denoiser.backbone.base_model
    scale = config.num_hidden_layers / layers_built
    adapted = [m for m in denoiser.modules() if hasattr(m, "base_layer")]
    of_adapters = {m for layer in adapted for m in layer.modules() if _is_matrix(m) and m is not layer.base_layer}
    inside = [m for m in trunk.modules() if _is_matrix(m) and m not in of_adapters]
    outside = {m for m in denoiser.modules() if _is_matrix(m)} - of_adapters - set(inside)
    tail = _tail(denoiser)
    weights = scale * _entries(inside)
    head_width = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    return Costs(
        trunk=int(2 * weights),
        tail=int(2 * _entries(tail.intersection(inside))),
        adapters=int(2 * scale * _entries(of_adapters)),
        tail_adapters=int(2 * _entries(tail & of_adapters)),
        adapter_bytes=int(scale * sum(map(_moved_by, adapted))),
        tail_bytes=sum(map(_moved_by, tail.intersection(adapted))),
        spans=tuple(_spans(config)),
        width=config.num_attention_heads * head_width,
        head=2 * int(_entries(outside)),
        trained_share=scale * _entries(inside, trained=True) / weights,
        trains_head=_entries(outside, trained=True) > 0,
        recomputes=recomputes,
    )


def _tail(denoiser: Denoiser) -> set[nn.Module]:
    """Return the modules of the last layer that run only at the columns that the head reads: all
    but its attention, and the output projection of the attention."""
    names = NATIVE_CLASSES[type(denoiser.backbone).__name__].last
    layers: Any = denoiser.backbone.base_model.get_submodule(names.layers)
    attention = layers[-1].get_submodule(names.projection.rpartition(".")[0])
    projection = layers[-1].get_submodule(names.projection)
    return (set(layers[-1].modules()) - set(attention.modules())) | set(projection.modules())


def _moved_by(layer: Any) -> int:
    """Return the bytes that the adapter of a layer reads and writes for a token; see
    `Costs.moved`."""
    weight = layer.base_layer.weight
    return int((layer.in_features + 6 * layer.out_features) * weight.element_size())


def _entries(modules: Iterable[nn.Module], *, trained: bool = False) -> float:
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


def _spans(config: Any) -> list[float]:
    """Return the largest number of positions that a token of each layer attends to: infinite, or a
    sliding window."""
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    window = getattr(config, "sliding_window", None) or getattr(config, "local_attention", None) or inf
    return [window if kind == "sliding_attention" else inf for kind in kinds]

"""Floating-point operations of a model, counted by hand: twice the weights that a token meets, and
attention.

A token's forward pass through the trunk takes 2 W + sum over layers of 4 S D operations. W is the
number of entries of the weight matrices, S the number of positions that the token attends to, and D
the number of heads times the head width. S D multiplications and as many additions compute the
attention scores, and the same number of each computes the weighted sum of the values. The backward
pass takes as many operations for the gradients of the inputs, and as many again for the gradients
of the weights that are trained. In a mixture of experts, a token meets only its own experts, so W
counts the weights of as many experts as a token has.

Low-rank adapters take few operations but move many bytes, so the time of adapters that are not
merged into the weights is that of their bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any

from torch import nn

from unmask.cli.estimate.work import Pass
from unmask.models import Denoiser
from unmask.models.adapters import POLICY
from unmask.models.experts import experts_of
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
    stacks: float = 0.0
    """Number of weights in all experts of all mixtures."""
    expert_share: float = 0.0
    """Share of the experts of a layer that a token uses."""
    stacked: int = 0
    """Operations that add the adapters of all stacked experts to them once, whatever the tokens of a
    pass. A forward pass adds them twice, because torch checks the sum when peft puts it in place."""
    stacked_bytes: int = 0
    """Bytes that a forward pass reads and writes for these sums."""

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
        once = 2 * work.forwards * self.stacked if work.has_adapters else 0
        return work.tokens * self.token(work) + work.columns * self.column(work) + work.head * self.head + once

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
        once = 2 * work.forwards * self.stacked * (1 + self.recomputes) if work.has_adapters else 0
        return int(work.tokens * token + work.columns * column + head * self.head) + once

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
        return int((moved + work.forwards * self.stacked_bytes) * times)

    @property
    def used(self) -> int:
        """Number of weights that a token is multiplied with, in the trunk and in the head."""
        return (self.trunk + self.head) // 2

    def read(self, work: Pass) -> float:
        """Return the expected number of weights that a forward pass reads. An expert is read if any
        token uses it; tokens are taken to use all experts equally, independently of each other."""
        unused = float((1 - self.expert_share) ** (work.tokens / work.forwards))
        return self.used + self.stacks * (1 - unused - self.expert_share)


def costs_of(denoiser: Denoiser, config: Any, layers_built: int, recomputes: bool) -> Costs:
    """Count the operations of a model from a copy of it with fewer layers.

    Args:
        denoiser: the copy.
        config: configuration of the whole model.
        layers_built: number of layers of the copy.
        recomputes: True with gradient checkpointing.
    """
    trunk = denoiser.backbone.base_model
    names = NATIVE_CLASSES[type(denoiser.backbone).__name__].last
    layers: Any = trunk.get_submodule(names.layers)
    last, more = set(layers[-1].modules()), config.num_hidden_layers - layers_built

    def deep(count: Callable[[Any], float], modules: Iterable[Any]) -> float:
        """Add up a number over all layers; those that are not built are like the last one."""
        return sum((count(module) * (1 + more * (module in last)) for module in modules), 0.0)

    adapted: list[Any] = [m for m in denoiser.modules() if hasattr(m, "base_layer")]
    of_stacks = [layer for layer in adapted if hasattr(layer, "parameter_name")]
    linear = [layer for layer in adapted if layer not in of_stacks]
    of_linear = {m for layer in linear for m in layer.modules() if _is_matrix(m) and m is not layer.base_layer}
    of_experts = {m for layer in of_stacks for part in (layer.lora_A, layer.lora_B) for m in part.modules()}
    inside = [m for m in trunk.modules() if _is_matrix(m) and m not in of_linear | of_experts]
    outside = {m for m in denoiser.modules() if _is_matrix(m)} - of_linear - of_experts - set(inside)
    tail, share = _tail(denoiser), _expert_share(denoiser, config)

    def used(module: nn.Module, *, trained: bool = False) -> float:
        # Adapters of stacked experts need the gradient of the whole stack.
        weights = [
            p for p in module.parameters(recurse=False) if p.requires_grad or not trained or of_stacks and p.dim() == 3
        ]
        return sum(p.numel() * (share if p.dim() == 3 else 1) for p in weights if p.dim() >= 2)

    weights = deep(used, inside)
    head_width = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    return Costs(
        trunk=int(2 * weights),
        tail=int(2 * sum(map(used, tail.intersection(inside)))),
        adapters=int(2 * deep(used, of_linear)),
        tail_adapters=int(2 * sum(map(used, tail & of_linear))),
        adapter_bytes=int(deep(_moved_by, linear)),
        tail_bytes=sum(map(_moved_by, tail.intersection(linear))),
        spans=tuple(_spans(config)),
        width=config.num_attention_heads * head_width,
        head=2 * int(sum(map(used, outside))),
        trained_share=deep(partial(used, trained=True), inside) / weights,
        trains_head=sum(used(module, trained=True) for module in outside) > 0,
        recomputes=recomputes,
        stacks=deep(_stacked_weights, inside),
        expert_share=share,
        stacked=int(deep(lambda layer: 2 * _adapter_of(layer)[0].numel() * len(_adapter_of(layer)[1]), of_stacks)),
        stacked_bytes=int(deep(lambda layer: 6 * layer.get_param().nbytes, of_stacks)),
    )


def _expert_share(denoiser: Denoiser, config: Any) -> float:
    """Return the share of the experts of a layer that a token uses; 0 without experts."""
    stack = next((p for name, p in experts_of(denoiser) if ".lora_" not in name), None)
    return 0.0 if stack is None else config.num_experts_per_tok / len(stack)


def _stacked_weights(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters(recurse=False) if p.dim() == 3)


def _adapter_of(layer: Any) -> tuple[Any, Any]:
    """Return the matrices A and B of an adapted stack of experts."""
    return layer.lora_A[POLICY].weight, layer.lora_B[POLICY].weight


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


def _is_matrix(module: nn.Module) -> bool:
    """Return True for linear maps, including GPT-2's transposed linear maps, adapters and stacked
    experts. Embeddings are not linear maps, because their rows are only looked up."""
    # An adapted layer exposes the weight of its base layer, which is a module of its own.
    is_wrapper = hasattr(module, "base_layer")
    has_matrix = any(parameter.dim() >= 2 for parameter in module.parameters(recurse=False))
    return has_matrix and not isinstance(module, nn.Embedding) and not is_wrapper


def _spans(config: Any) -> list[float]:
    """Return the largest number of positions that a token of each layer attends to: infinite, or a
    sliding window."""
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    window = getattr(config, "sliding_window", None) or getattr(config, "local_attention", None) or inf
    return [window if kind == "sliding_attention" else inf for kind in kinds]

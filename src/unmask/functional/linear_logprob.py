"""Log-probabilities of chosen tokens under a softmax over the output of a linear layer, without a
tensor of all logits.

With a vocabulary of 126k tokens, logits take more memory and time than the other activations of a
small model. A loss that reads log-probabilities of tokens needs one number of each row of logits,
and the gradient needs only the log-normaliser of the row besides.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

WEIGHTS_AT_ONCE = 2**24
"""Number of weights that are converted to float32 at once where the device has no product of
bfloat16 matrices with a float32 result."""


def linear_logprobs(
    states: Float[Tensor, "n D"],
    weight: Float[Tensor, "V D"],
    tokens: Int[Tensor, "n M"],
    bias: Float[Tensor, "V"] | None = None,
    *,
    temperature: float = 1.0,
    forbidden: int | None = None,
    chunk_size: int = 64,
) -> Float[Tensor, "n M"]:
    """Compute the log-probabilities of tokens at a temperature, from hidden states and the weights
    of the last layer.

    log p(y) = z_y - log Σ_v exp(z_v), with z = (W h + b) / τ and z = -∞ for a forbidden token.
    Logits exist for one chunk of rows at a time. The backward pass computes them again: the
    gradient with respect to z is Σ_m g_m (1[v = y_m] - exp(z_v - log Σ_u exp z_u)), where g_m is
    the gradient with respect to log p(y_m). If there is a single chunk, its logits are kept
    instead, and the backward pass turns them into the gradient in place.

    Args:
        states: [n, D] hidden states h.
        weight: [V, D] weights W of the layer, whose dtype is that of the product.
        tokens: [n, M] int64 tokens y.
        bias: [V] bias b of the layer.
        temperature: temperature τ > 0.
        forbidden: token of probability 0, such as MASK.
        chunk_size: maximum number of rows whose logits exist at the same time.

    Returns:
        [n, M] float32 (float64 for float64), nats, differentiable once with respect to states,
        weight and bias; -∞ for the forbidden token.

    Raises:
        ValueError: the temperature is not above 0.

    Example:
        >>> weight = torch.tensor([[1.0], [2.0], [4.0]]).log()
        >>> linear_logprobs(torch.ones(1, 1), weight, torch.tensor([[0, 2]])).exp()
        tensor([[0.1429, 0.5714]])
        >>> linear_logprobs(torch.ones(1, 1), weight, torch.tensor([[0, 2]]), temperature=0.5, forbidden=1).exp()
        tensor([[0.0588, 0.9412]])
    """
    if not temperature > 0:
        raise ValueError(f"linear_logprobs: temperature must be above 0; got {temperature}")
    # Chunks of equal size: a small last chunk would be summed in another order.
    count = max(1, -(-len(states) // chunk_size))
    keeps = count == 1 and torch.is_grad_enabled()
    values: Tensor = _LinearLogprobs.apply(  # type: ignore[no-untyped-call]
        states, weight, bias, tokens, temperature, forbidden, count, keeps
    )
    return values


def float32_product(states: Float[Tensor, "n D"], weight: Float[Tensor, "V D"]) -> Float[Tensor, "n V"]:
    """Compute states weightᵀ, without a graph and in float32 if both are bfloat16; otherwise the
    result has their dtype.

    Example:
        >>> float32_product(torch.ones(1, 2).bfloat16(), torch.ones(3, 2).bfloat16())
        tensor([[2., 2., 2.]])
    """
    if states.dtype != torch.bfloat16:
        return states @ weight.t()
    if states.device.type == "cuda" and torch.version.cuda:
        return torch.mm(states, weight.t(), out_dtype=torch.float32)
    product, wide = states.new_empty(len(states), len(weight), dtype=torch.float32), states.float()
    rows = max(1, WEIGHTS_AT_ONCE // weight.shape[1])
    for columns, part in zip(product.split(rows, dim=1), weight.split(rows), strict=True):
        torch.mm(wide, part.float().t(), out=columns)
    return product


class _LinearLogprobs(torch.autograd.Function):
    """See `linear_logprobs`. The rows are divided into `count` chunks; `keeps` is True if the
    backward pass needs the logits of the single chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        temperature: float,
        forbidden: int | None,
        count: int,
        keeps: bool,
    ) -> Tensor:
        ctx.options = temperature, forbidden, count
        values, normalisers, scaled = [], [], None
        for part, chosen in zip(states.tensor_split(count), tokens.tensor_split(count), strict=True):
            scaled = _scaled(part, weight, bias, temperature, forbidden)
            normalisers.append(scaled.logsumexp(-1, keepdim=True))
            values.append(scaled.gather(-1, chosen) - normalisers[-1])
        ctx.save_for_backward(states, weight, bias, tokens, torch.cat(normalisers))
        # Not a saved tensor, because the backward pass overwrites it.
        ctx.kept = scaled if keeps else None
        return torch.cat(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, bias, tokens, normaliser = ctx.saved_tensors
        temperature, forbidden, count = ctx.options
        # A second backward pass over the same graph computes the logits again.
        kept, ctx.kept = ctx.kept, None
        needs_states, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        of_states = []
        # Sums over chunks are in float32.
        of_weight = torch.zeros_like(weight, dtype=normaliser.dtype) if needs_weight and count > 1 else None
        of_bias = torch.zeros_like(bias, dtype=normaliser.dtype) if needs_bias else None
        columns = (states, tokens, normaliser, gradient / temperature)
        for part, chosen, log_sum, upstream in zip(*(c.tensor_split(count) for c in columns), strict=True):
            logits = _scaled(part, weight, bias, temperature, forbidden) if kept is None else kept
            of_logits = logits.sub_(log_sum)
            of_logits.exp_().mul_(-upstream.sum(-1, keepdim=True)).scatter_add_(-1, chosen, upstream)
            if forbidden is not None:
                of_logits[:, forbidden] = 0.0
            if of_bias is not None:
                of_bias += of_logits.sum(0)
            of_logits = of_logits.to(weight.dtype)
            if needs_states:
                of_states.append(of_logits @ weight)
            if needs_weight and of_weight is None:
                of_weight = of_logits.t() @ part
            elif of_weight is not None:
                _add_product(of_weight, of_logits.t(), part)
        return (
            torch.cat(of_states) if needs_states else None,
            None if of_weight is None else of_weight.to(weight.dtype),
            None if of_bias is None else of_bias.to(bias.dtype),
            *(None,) * 5,
        )


def _scaled(states: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, forbidden: int | None) -> Tensor:
    """Return (W h + b) / τ, [n, V], with -∞ for the forbidden token."""
    logits = float32_product(states, weight)
    if bias is not None:
        logits += bias
    logits /= temperature
    if forbidden is not None:
        logits[:, forbidden] = -torch.inf
    return logits


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left right to `total`, which may have a larger dtype."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right

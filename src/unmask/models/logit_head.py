"""The last layer of a model, whose logits are float32 whatever the precision of the weights.

A logit that is rounded to bfloat16 changes a log-probability by up to some hundredths of a nat,
which is as much as an update of the policy does. The product of bfloat16 states and weights is
therefore accumulated and returned in float32, as MiniMax-M1 recommends for reinforcement learning
(arXiv:2506.13585).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from unmask.core.denoising import Readout
from unmask.functional.linear_logprob import float32_product, linear_logprobs


class LogitHead(nn.Linear):
    """A linear layer that returns float32 for bfloat16 states and weights, and otherwise what
    `nn.Linear` returns."""

    @classmethod
    def of(cls, linear: nn.Linear) -> LogitHead:
        """Return a head with the weights of `linear`, which the two share."""
        head = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        head.weight, head.bias = linear.weight, linear.bias
        return head.train(linear.training)

    def forward(self, states: Tensor, readout: Readout | None = None) -> Tensor:
        """Return [..., V] logits of [..., D] hidden states, or the log-probabilities of a readout
        that has a temperature, [n, M] for [n, D] hidden states."""
        if readout is not None:
            return self._logprobs(states, readout)
        if states.dtype != torch.bfloat16 or self.weight.dtype != torch.bfloat16:
            return super().forward(states)
        product: Tensor = _Float32Product.apply(states.flatten(0, -2), self.weight)  # type: ignore[no-untyped-call]
        logits = product.view(*states.shape[:-1], -1)
        return logits if self.bias is None else logits + self.bias

    def _logprobs(self, states: Tensor, readout: Readout) -> Tensor:
        assert readout.temperature is not None
        return linear_logprobs(
            states,
            self.weight,
            readout.inputs,
            self.bias,
            temperature=readout.temperature,
            forbidden=readout.forbidden,
            chunk_size=readout.chunk_size,
        )


class _Float32Product(torch.autograd.Function):
    """states weightᵀ in float32, for [n, D] states and [V, D] weights in bfloat16. The gradients
    are products of bfloat16 matrices, as in the other layers."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(states, weight)
        return float32_product(states, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        states, weight = ctx.saved_tensors
        gradient = gradient.to(states.dtype)
        needs_states, needs_weight = ctx.needs_input_grad
        return gradient @ weight if needs_states else None, gradient.t() @ states if needs_weight else None

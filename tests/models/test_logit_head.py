"""Tests of the last layer: float32 logits from bfloat16 states and weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.helpers.adapters import build
from tests.helpers.native_configs import CONFIGS
from unmask.functional import linear_logprob
from unmask.models.logit_head import LogitHead


def states_and_linear(bias: bool = False) -> tuple[torch.Tensor, nn.Linear]:
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(256, 97, bias=bias, dtype=torch.bfloat16)
    linear.weight.data.normal_(generator=generator)
    return torch.randn(4, 5, 256, generator=generator).bfloat16(), linear


@pytest.mark.parametrize("bias", [False, True])
def test_the_logits_are_those_of_float64_to_float32_precision(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_logprob, "WEIGHTS_AT_ONCE", 10 * 256)  # several parts, the last of which is smaller
    states, linear = states_and_linear(bias)
    exact = nn.functional.linear(states.double(), *(p.double() for p in linear.parameters()))
    logits = LogitHead.of(linear)(states)
    assert logits.dtype == torch.float32
    assert (logits - exact).abs().max() < 1e-4
    # What the head avoids: the plain layer rounds the same sums to 8 bits.
    assert (linear(states) - exact).abs().max() > 0.05


def test_the_gradients_are_those_of_the_plain_layer_to_the_rounding_of_bfloat16() -> None:
    states, linear = states_and_linear(bias=True)
    upstream = torch.randn(4, 5, 97, generator=torch.Generator().manual_seed(1))

    def gradients(layer: nn.Module, states: torch.Tensor, upstream: torch.Tensor) -> list[torch.Tensor]:
        states = states.detach().requires_grad_()
        layer(states).backward(upstream)
        found = [states.grad, *(p.grad for p in layer.parameters())]
        layer.zero_grad()
        return [value.double() for value in found if value is not None]

    double = nn.Linear(256, 97, dtype=torch.float64)
    double.load_state_dict({key: value.double() for key, value in linear.state_dict().items()})
    exact = gradients(double, states.double(), upstream.double())
    for found, wanted in zip(gradients(LogitHead.of(linear), states, upstream), exact, strict=True):
        assert (found - wanted).norm() / wanted.norm() < 5e-3


def test_a_layer_in_float32_is_unchanged() -> None:
    states, linear = states_and_linear()
    linear, states = linear.float(), states.float()
    assert torch.equal(LogitHead.of(linear)(states), linear(states))


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_every_class_of_model_returns_float32_logits_and_keeps_the_names_of_its_weights(name: str) -> None:
    denoiser = build(name, dtype=torch.bfloat16)
    last = denoiser.backbone.get_output_embeddings()
    assert type(last) is LogitHead
    ids = torch.tensor([[3, 4, 1, 5]])
    logits = denoiser(ids, None, torch.tensor([[1, 2]]))
    assert logits.dtype == torch.float32
    assert (logits != logits.bfloat16()).any()
    tied = last.weight is denoiser.backbone.get_input_embeddings().weight
    assert tied == denoiser.backbone.config.tie_word_embeddings
    plain = type(denoiser.backbone)(denoiser.backbone.config)
    assert denoiser.backbone.state_dict().keys() == plain.state_dict().keys()

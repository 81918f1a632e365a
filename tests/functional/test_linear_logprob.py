"""Tests of token log-probabilities from the weights of the last layer: values, gradients and memory
are compared with a log-softmax over all logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from tests.helpers.messages import raises
from unmask.functional.linear_logprob import linear_logprobs
from unmask.trainer.peak import peak_bytes

N, D, V = 11, 6, 13
FORBIDDEN = 4


def inputs(dtype: torch.dtype = torch.float64, bias: bool = True, sequences: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(N, D), (V, D), *([(V,)] if bias else [])]
    leaves = [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes
    ]
    tokens = torch.randint(FORBIDDEN + 1, V, (N, sequences), generator=generator)
    return [*leaves, *([] if bias else [None]), tokens]  # type: ignore[list-item]


def by_softmax(states: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, temperature: float) -> Tensor:
    """Return the same log-probabilities by autograd from all logits."""
    logits = linear(states, weight, bias).index_fill(1, torch.tensor([FORBIDDEN]), -torch.inf)
    return (logits / temperature).log_softmax(-1).gather(-1, tokens)


@pytest.mark.parametrize("chunk_size", [1, 4, N])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients_are_those_of_a_log_softmax(bias: bool, temperature: float, chunk_size: int) -> None:
    states, weight, offset, tokens = inputs(bias=bias)
    leaves = [leaf for leaf in (states, weight, offset) if leaf is not None]
    expected = by_softmax(states, weight, offset, tokens, temperature)
    options = {"temperature": temperature, "forbidden": FORBIDDEN, "chunk_size": chunk_size}
    found = linear_logprobs(states, weight, tokens, offset, **options)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    upstream = torch.linspace(-1, 2, found.numel(), dtype=found.dtype).view_as(found)
    for one, other in zip(
        torch.autograd.grad(found, leaves, upstream), torch.autograd.grad(expected, leaves, upstream), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    with torch.no_grad():
        assert torch.equal(linear_logprobs(states, weight, tokens, offset, **options), found)


def test_the_comparison_can_fail() -> None:
    states, weight, bias, tokens = inputs()
    found = linear_logprobs(states, weight, tokens, bias, temperature=0.7, forbidden=FORBIDDEN)
    for wrong in (by_softmax(states, weight, bias, tokens, 0.8), by_softmax(states, weight, None, tokens, 0.7)):
        assert (found - wrong).abs().max() > 0.01
    assert (linear_logprobs(states, weight, tokens, bias, temperature=0.7) - found).abs().max() > 0.01


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_an_input_without_a_gradient_changes_no_other_gradient(frozen: int) -> None:
    states, weight, bias, tokens = inputs()
    leaves = [states, weight, bias]
    wanted = torch.autograd.grad(by_softmax(states, weight, bias, tokens, 1.0).sum(), leaves)
    leaves[frozen].requires_grad_(False)
    linear_logprobs(*leaves[:2], tokens, leaves[2], forbidden=FORBIDDEN, chunk_size=3).sum().backward()
    assert leaves[frozen].grad is None
    for i in {0, 1, 2} - {frozen}:
        torch.testing.assert_close(leaves[i].grad, wanted[i], rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunk_size", [2, N])
def test_bfloat16_inputs_give_float32_values_from_float32_logits(chunk_size: int) -> None:
    states, weight, bias, tokens = inputs(torch.bfloat16)
    found = linear_logprobs(states, weight, tokens, bias, forbidden=FORBIDDEN, chunk_size=chunk_size)
    assert found.dtype == torch.float32
    doubles = [leaf.detach().double().requires_grad_() for leaf in (states, weight, bias)]
    expected = by_softmax(*doubles, tokens, 1.0)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    rounded = by_softmax(states, weight, bias, tokens, 1.0)
    assert (rounded.double() - expected).abs().max() > 1e-3
    found.sum().backward()
    for leaf, wanted in zip((states, weight, bias), torch.autograd.grad(expected.sum(), doubles), strict=True):
        assert leaf.grad is not None
        assert leaf.grad.dtype == torch.bfloat16
        assert (leaf.grad.double() - wanted).norm() < 0.01 * wanted.norm()


def test_the_forbidden_token_has_probability_zero_and_no_gradient() -> None:
    states, weight, _, _ = inputs(bias=False)
    tokens = torch.tensor([[FORBIDDEN, 7]]).expand(N, -1)
    found = linear_logprobs(states, weight, tokens, forbidden=FORBIDDEN, chunk_size=4)
    assert (found[:, 0] == -torch.inf).all()
    found[:, 1].sum().backward()
    assert weight.grad is not None
    assert (weight.grad[FORBIDDEN] == 0).all()
    assert weight.grad.abs().sum() > 0


def test_no_rows_give_no_values_and_a_gradient_of_zero() -> None:
    states, weight, bias, tokens = inputs()
    found = linear_logprobs(states[:0], weight, tokens[:0], bias)
    assert found.shape == (0, 2)
    found.sum().backward()
    assert weight.grad is not None
    assert (weight.grad == 0).all()


def test_a_temperature_of_zero_is_refused() -> None:
    states, weight, bias, tokens = inputs()
    with raises(ValueError, "temperature"):
        linear_logprobs(states, weight, tokens, bias, temperature=0.0)


def test_the_kept_logits_of_a_single_chunk_become_the_gradient() -> None:
    """Beside the logits, the backward pass holds the gradients of the inputs, but no second tensor
    as large as the logits. A second backward pass over the same graph gives the same gradients."""
    vocab = 5_000
    weight = torch.randn(vocab, D, requires_grad=True)
    states, tokens = torch.randn(200, D, requires_grad=True), torch.arange(200).unsqueeze(1)
    leaves, logits = [states, weight], 200 * vocab * 4
    kept: list[Tensor] = []
    forward = peak_bytes(lambda: kept.append(linear_logprobs(states, weight, tokens, chunk_size=200).sum()))
    assert logits <= forward < 1.1 * logits
    once: list[Tensor] = []
    assert peak_bytes(lambda: once.extend(torch.autograd.grad(kept[0], leaves, retain_graph=True))) < 0.2 * logits
    assert peak_bytes(lambda: once.extend(torch.autograd.grad(kept[0], leaves))) > logits, "computed again"
    assert all(torch.equal(one, other) for one, other in zip(once[:2], once[2:], strict=True))

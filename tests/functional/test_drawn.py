"""The test of whether tokens are draws has the size that it states, and power against greedy and unrelated tokens."""

from __future__ import annotations

import math

import pytest
import torch

from unmask.functional.drawn import draw_evidence


def expectation(largest: list[float], side: int) -> float:
    """The expected value of exp(evidence) over all outcomes of independent draws, by enumeration."""
    total = 0.0
    for outcome in range(2 ** len(largest)):
        is_likeliest = torch.tensor([bool(outcome >> i & 1) for i in range(len(largest))])
        probability = math.prod(p if hit else 1 - p for p, hit in zip(largest, is_likeliest.tolist(), strict=True))
        total += probability * math.exp(draw_evidence(is_likeliest, torch.tensor(largest))[side])
    return total


@pytest.mark.parametrize("side", [0, 1], ids=["few", "many"])
def test_the_expected_evidence_of_draws_is_at_most_one(side: int) -> None:
    # Markov's inequality then bounds the probability of evidence above 1 / α by α.
    for largest in ([0.5], [0.9, 0.2, 0.6], [0.99] * 6, [1.0, 0.3, 0.7, 0.7]):
        assert 0.4 < expectation(largest, side) <= 1 + 1e-12


def test_the_bound_fails_for_other_exponents() -> None:
    # A negative control of the enumeration: without the term of the mean, the expectation is above 1.
    def without_mean(is_likeliest: torch.Tensor, largest: torch.Tensor) -> float:
        return draw_evidence(is_likeliest, largest)[1] + float((1 - largest).sum())

    largest = torch.tensor([0.5, 0.5])
    outcomes = [torch.tensor([a, b]) for a in (True, False) for b in (True, False)]
    assert sum(0.25 * math.exp(without_mean(outcome, largest)) for outcome in outcomes) > 1.5


def test_greedy_tokens_are_too_few_and_unrelated_tokens_too_many() -> None:
    largest = torch.full((100,), 0.6)
    draws = torch.rand(100, generator=torch.Generator().manual_seed(0)) < largest
    assert max(draw_evidence(draws, largest)) < 3
    assert draw_evidence(torch.ones(100, dtype=torch.bool), largest)[0] > math.log(1e6)
    assert draw_evidence(torch.zeros(100, dtype=torch.bool), torch.full((100,), 0.95))[1] > math.log(1e6)

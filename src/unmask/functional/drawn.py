"""A test of whether tokens were drawn from the distribution that scores them. It counts the drawn
tokens that are not the most likely token of their position."""

from __future__ import annotations

import math

from jaxtyping import Bool, Float
from torch import Tensor

FEWER, MORE = math.log(4), math.log(2)
"""Exponents λ of the two test martingales of `draw_evidence`."""


def draw_evidence(is_likeliest: Bool[Tensor, "n"], largest: Float[Tensor, "n"]) -> tuple[float, float]:
    """Return the evidence against the hypothesis that the tokens were drawn from the given
    distributions: that too few, or too many, of them are not the most likely token.

    A draw is another token than the most likely one with probability p_i = 1 - `largest`_i. With
    X the number of such draws and μ = Σ p_i, the two numbers are the logarithms of

        M_few = exp(-λ X + (1 - e^-λ) μ), λ = log 4;   M_many = exp(λ X - (e^λ - 1) μ), λ = log 2.

    Because E exp(s x_i) = 1 + p_i (e^s - 1) <= exp(p_i (e^s - 1)) for a draw x_i in {0, 1}, both
    are products of factors whose conditional expectation is at most 1. By Ville's inequality, the
    probability that one of them ever reaches 1 / α is at most α, also if p_i depends on earlier
    draws. A test that rejects at log(1 / α) therefore has size at most α on each side.

    Args:
        is_likeliest: [n] bool, True for a draw that is the most likely token.
        largest: [n] float, probability of the most likely token.

    Returns:
        log M_few and log M_many, in nats.

    Example:
        >>> import torch
        >>> few, many = draw_evidence(torch.ones(40, dtype=torch.bool), torch.full((40,), 0.5))
        >>> round(few, 6), round(many, 6)
        (15.0, -20.0)
    """
    num_other = float((~is_likeliest).sum())
    expected = float((1 - largest.double()).sum())
    few = -FEWER * num_other + (1 - math.exp(-FEWER)) * expected
    many = MORE * num_other - (math.exp(MORE) - 1) * expected
    return few, many

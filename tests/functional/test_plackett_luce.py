"""Tests of Plackett-Luce: enumeration of all orderings, the Gumbel trick, and extreme values."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from tests.helpers.shapes import unchecked
from unmask.functional.noise import counter_uniform
from unmask.functional.plackett_luce import gumbel_noise, plackett_luce_logprob

SCORE = torch.tensor([0.3, -1.0, 1.2, 0.0], dtype=torch.float64)


def ranks_of(order, size):
    """Return the rank of each item if `order` is drawn first, [size]; items that are not drawn come
    last."""
    rank = torch.full((size,), size, dtype=torch.long)
    rank[list(order)] = torch.arange(len(order))
    return rank


def by_hand(logit, order):
    """Return the log-probability of an ordered draw: each in proportion to exp(logit) among those
    left."""
    left, total = list(range(len(logit))), 0.0
    for item in order:
        total += float(logit[item]) - math.log(sum(math.exp(logit[i]) for i in left))
        left.remove(item)
    return total


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_ordered_draws_have_the_probabilities_of_drawing_one_by_one_and_sum_to_one(count):
    orders = list(itertools.permutations(range(4), count))
    rank = torch.stack([ranks_of(order, 4) for order in orders])
    logit = SCORE.expand(len(orders), -1)
    logprob = plackett_luce_logprob(logit, rank, torch.ones_like(rank, dtype=torch.bool))
    total = logprob.masked_fill(rank >= count, 0.0).sum(-1)
    assert float(total.exp().sum()) == pytest.approx(1, abs=1e-12)
    expected = torch.tensor([by_hand(SCORE, order) for order in orders], dtype=torch.float64)
    torch.testing.assert_close(total, expected, rtol=0, atol=1e-12)


def test_sorted_logits_with_gumbel_noise_have_these_frequencies():
    rows = 20_000
    uniform = counter_uniform(torch.arange(rows).unsqueeze(-1), torch.arange(4))
    drawn = (SCORE + gumbel_noise(uniform)).argsort(-1, descending=True)[:, :2]
    orders = list(itertools.permutations(range(4), 2))
    counts = torch.tensor([int((drawn == torch.tensor(order)).all(-1).sum()) for order in orders])
    expected = torch.tensor([math.exp(by_hand(SCORE, order)) for order in orders]) * rows
    assert chisquare(counts, expected, sum_check=False).pvalue > 1e-3
    uniform_noise = (SCORE + uniform).argsort(-1, descending=True)[:, :2]
    counts = torch.tensor([int((uniform_noise == torch.tensor(order)).all(-1).sum()) for order in orders])
    assert chisquare(counts, expected, sum_check=False).pvalue < 1e-12


@settings(max_examples=50, deadline=None)
@given(
    logit=st.lists(st.floats(-20, 20), min_size=1, max_size=6),
    shift=st.floats(-50, 50),
)
def test_an_added_constant_changes_nothing_and_the_last_item_is_certain(logit, shift):
    logit = torch.tensor(logit, dtype=torch.float64)
    rank = torch.arange(len(logit))
    available = torch.ones_like(rank, dtype=torch.bool)
    logprob = plackett_luce_logprob(logit, rank, available)
    torch.testing.assert_close(plackett_luce_logprob(logit + shift, rank, available), logprob, rtol=0, atol=1e-9)
    assert float(logprob[-1]) == 0.0
    assert (logprob <= 1e-12).all()


def test_unavailable_items_and_items_of_other_urns_do_not_compete():
    rank = torch.tensor([0, 1, 2, 3])
    available = torch.tensor([True, True, False, True])
    among = plackett_luce_logprob(SCORE, rank, available)
    assert float(among[0]) == pytest.approx(by_hand(SCORE[[0, 1, 3]], (0,)))
    urns = plackett_luce_logprob(SCORE, rank, torch.ones(4, dtype=torch.bool), torch.tensor([0, 1, 0, 1]))
    assert float(urns[0]) == pytest.approx(by_hand(SCORE[[0, 2]], (0,)))
    assert float(urns[1]) == pytest.approx(by_hand(SCORE[[1, 3]], (0,)))


def test_the_gradient_is_one_minus_the_probability_and_never_nan():
    logit = SCORE.clone().requires_grad_()
    available = torch.tensor([True, True, False, True])
    plackett_luce_logprob(logit, torch.tensor([0, 1, 2, 3]), available)[0].backward()
    p = SCORE[[0, 1, 3]].softmax(0)
    expected = torch.tensor([1 - p[0], -p[1], 0.0, -p[2]], dtype=torch.float64)
    torch.testing.assert_close(logit.grad, expected)
    huge = torch.tensor([1e4, -1e4, -torch.inf], requires_grad=True)
    plackett_luce_logprob(huge, torch.arange(3), torch.tensor([True, True, False]))[:2].sum().backward()
    assert torch.isfinite(huge.grad[:2]).all()


def test_gumbel_noise_is_finite_at_both_ends():
    ends = torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)
    assert torch.isfinite(gumbel_noise(ends)).all()
    assert gumbel_noise(ends)[0] < -6 < 36 < gumbel_noise(ends)[1]


def test_shapes_that_disagree_are_refused():
    with pytest.raises(ValueError, match="must have one shape"):
        unchecked(plackett_luce_logprob)(SCORE, torch.arange(3), torch.ones(4, dtype=torch.bool))

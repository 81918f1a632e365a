"""Divergences of token distributions, against their definitions as a supremum and as a sum."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.shapes import unchecked
from unmask.functional.divergence import binary_divergence, total_variation
from unmask.functional.surrogate import exact_kl

WEIGHTS = st.lists(st.floats(0.01, 1.0), min_size=4, max_size=4)


def distribution(weights):
    """Return normalised log-probabilities in proportion to weights."""
    return torch.tensor(weights, dtype=torch.float64).log().log_softmax(-1)


@settings(max_examples=50, deadline=None)
@given(p=WEIGHTS, q=WEIGHTS)
def test_the_total_variation_is_the_largest_difference_of_the_probability_of_a_set(p, q):
    p, q = distribution(p), distribution(q)
    sets = itertools.chain(*(itertools.combinations(range(4), size) for size in range(5)))
    largest = max(abs(sum(float(p[v].exp() - q[v].exp()) for v in chosen)) for chosen in sets)
    assert float(total_variation(p, q)) == pytest.approx(largest, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(p=WEIGHTS, q=WEIGHTS, token=st.integers(0, 3))
def test_a_two_way_divergence_is_that_of_two_outcomes_and_never_above_that_of_all_tokens(p, q, token):
    p, q = distribution(p), distribution(q)
    for kind in ("tv", "kl"):
        two_way = float(binary_divergence(p[token], q[token], kind))
        new, old = (torch.stack([x[token], (1 - x[token].exp()).log()]) for x in (p, q))
        of_two = total_variation(new, old) if kind == "tv" else exact_kl(old, new)
        of_all = total_variation(p, q) if kind == "tv" else exact_kl(q, p)
        assert two_way == pytest.approx(float(of_two), abs=1e-6)
        assert two_way <= float(of_all) + 1e-6


def test_a_two_way_divergence_can_miss_a_move_that_the_whole_distribution_shows():
    # The drawn token stays as it is, and two other tokens change places.
    old, new = torch.tensor([0.2, 0.8 - 1e-3, 1e-3]).log(), torch.tensor([0.2, 1e-3, 0.8 - 1e-3]).log()
    assert float(binary_divergence(new[0], old[0], "tv")) == 0.0
    assert float(total_variation(new, old)) == pytest.approx(0.798, abs=1e-6)


@pytest.mark.parametrize("kind", ["tv", "kl"])
def test_a_divergence_is_finite_and_without_graph_if_a_policy_is_certain(kind):
    new = torch.tensor([0.0, -1e-9, -50.0], requires_grad=True)
    values = binary_divergence(new, torch.tensor([-3.0, 0.0, 0.0]), kind)
    assert torch.isfinite(values).all()
    assert (values >= 0).all()
    assert not values.requires_grad


def test_an_impossible_token_counts_with_its_other_probability():
    p, q = torch.tensor([1.0, 0.0]).log(), torch.tensor([0.25, 0.75]).log()
    assert float(total_variation(p, q)) == pytest.approx(0.75)
    assert math.isinf(float(exact_kl(q, p)))


def test_an_unknown_kind_and_other_shapes_are_refused():
    with pytest.raises(ValueError, match='unknown kind "js"'):
        unchecked(binary_divergence)(torch.zeros(1), torch.zeros(1), "js")
    with pytest.raises(ValueError, match="must have one shape"):
        unchecked(total_variation)(torch.zeros(1, 2), torch.zeros(1, 3))

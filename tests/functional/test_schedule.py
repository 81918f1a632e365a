"""Tests of schedules: every masked position is committed once, and the learning rate follows its
shape."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.shapes import unchecked
from unmask.functional.schedule import (
    entropy_bound_count,
    factor_count,
    learning_rate_factor,
    threshold_count,
    tokens_at_step,
)


def tokens_per_step(masked, num_steps):
    """Return the number of positions that every step commits by `tokens_at_step`, [B, T]."""
    plan, left = [], masked.long()
    for step in range(num_steps):
        plan.append(tokens_at_step(left, num_steps - step))
        left = left - plan[-1]
    return torch.stack(plan, dim=1)


@settings(max_examples=50, deadline=None)
@given(masked=st.lists(st.integers(0, 512), min_size=1, max_size=4), steps=st.integers(1, 256))
def test_every_masked_position_is_committed_once_as_evenly_as_possible_larger_shares_first(masked, steps):
    plan = tokens_per_step(torch.tensor(masked), steps)
    assert plan.shape == (len(masked), steps)
    assert plan.dtype == torch.int64
    for row, total in zip(plan.tolist(), masked, strict=True):
        assert sum(row) == total
        assert max(row) - min(row) <= 1
        assert row == sorted(row, reverse=True)


def test_the_plan_by_hand():
    assert tokens_per_step(torch.tensor([7, 2, 0], dtype=torch.int32), 4).tolist() == [
        [2, 2, 2, 1],
        [1, 1, 0, 0],
        [0, 0, 0, 0],
    ]
    with pytest.raises(ValueError, match="got 0"):
        tokens_at_step(torch.tensor([4]), 0)


@pytest.mark.parametrize(
    ("kind", "floor", "factors"),
    [
        ("constant", 0.1, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", 0.2, [0.25, 0.5, 0.75, 1.0, 0.8, 0.6, 0.4, 0.2]),
        ("linear", 0.0, [0.25, 0.5, 0.75, 1.0, 0.75, 0.5, 0.25, 0.0]),
        # 0.2 + 0.8 (1 + cos(π p)) / 2 at p = 1/4, 1/2, 3/4, 1
        ("cosine", 0.2, [0.25, 0.5, 0.75, 1.0, 0.6 + 0.4 * 0.5**0.5, 0.6, 0.6 - 0.4 * 0.5**0.5, 0.2]),
    ],
)
def test_the_learning_rate_by_hand(kind, floor, factors):
    assert [learning_rate_factor(k, 8, 4, kind, floor) for k in range(8)] == pytest.approx(factors, abs=1e-12)


def test_without_warm_up_the_run_starts_at_the_peak():
    assert [learning_rate_factor(k, 5, 0, "linear", 0.0) for k in range(5)] == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert learning_rate_factor(0, 1, 0, "cosine", 0.1) == 1


def test_a_warm_up_longer_than_the_run_is_cut_off():
    assert [learning_rate_factor(k, 3, 10, "cosine", 0.1) for k in range(3)] == pytest.approx([0.1, 0.2, 0.3])


def test_steps_after_the_last_keep_its_value():
    assert learning_rate_factor(99, 5, 2, "linear", 0.3) == pytest.approx(0.3)


@settings(max_examples=50, deadline=None)
@given(
    kind=st.sampled_from(["constant", "linear", "cosine"]),
    num_steps=st.integers(1, 60),
    warmup=st.integers(0, 60),
    floor=st.floats(0.01, 1),
)
def test_the_learning_rate_rises_to_the_peak_and_never_rises_again(kind, num_steps, warmup, floor):
    factors = [learning_rate_factor(k, num_steps, warmup, kind, floor) for k in range(num_steps)]
    peak = max(range(num_steps), key=factors.__getitem__)
    assert all(0 < f <= 1 + 1e-12 for f in factors)
    assert all(a < b for a, b in zip(factors[:peak], factors[1 : peak + 1], strict=True))
    assert all(b <= a + 1e-12 for a, b in zip(factors[peak:], factors[peak + 1 :], strict=False))
    if num_steps > max(warmup, 1):
        assert math.isclose(factors[peak], 1)
        assert math.isclose(factors[-1], 1 if kind == "constant" else floor)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 10, 0, "exponential", 0.1), 'unknown kind "exponential"'),
        ((-1, 10, 0, "linear", 0.1), "step = -1"),
        ((0, 0, 0, "linear", 0.1), "num_steps = 0"),
        ((0, 10, -2, "linear", 0.1), "warmup_steps = -2"),
        ((0, 10, 0, "linear", 1.5), "floor = 1.5"),
    ],
)
def test_values_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        unchecked(learning_rate_factor)(*arguments)


# Adaptive counts


def counts_by_hand(values: list[float], num_masked: int, is_within: Callable[[list[float]], bool]) -> int:
    """Return the length of the longest prefix of masked positions all of whose prefixes satisfy a bound."""
    count = 0
    while count < num_masked and is_within(values[: count + 1]):
        count += 1
    return count


RULES = {
    threshold_count: lambda bound: lambda first: first[-1] >= bound,
    factor_count: lambda bound: lambda first: (len(first) + 1) * (1 - first[-1]) < bound,
    entropy_bound_count: lambda bound: lambda first: sum(first) - max(first) <= bound,
}


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.integers(0, 64).map(lambda n: n / 64), min_size=1, max_size=6),
    bound=st.integers(0, 128).map(lambda n: n / 64),
    data=st.data(),
)
def test_an_adaptive_count_is_the_longest_prefix_within_its_bound(
    rule: Callable[..., torch.Tensor], values: list[float], bound: float, data: st.DataObject
) -> None:
    # Sixty-fourths are exact in float32, so equality with the bound is decided alike.
    num_masked = data.draw(st.integers(0, len(values)))
    rows = torch.tensor([values, values[::-1]])
    counts = rule(rows, torch.tensor([num_masked, len(values)]), bound)
    expected = [
        counts_by_hand(values, num_masked, RULES[rule](bound)),
        counts_by_hand(values[::-1], len(values), RULES[rule](bound)),
    ]
    assert counts.tolist() == expected


def test_the_factor_rule_asks_more_of_the_last_position_the_more_positions_there_are() -> None:
    # With f = 1, three positions of probability 0.7 are too uncertain, and three of 0.8 are not.
    for probability, count in ((0.7, 2), (0.8, 3)):
        confidence = torch.full((1, 3), probability)
        assert factor_count(confidence, torch.tensor([3]), 1.0).tolist() == [count]


def test_a_budget_of_zero_admits_one_uncertain_position() -> None:
    entropy = torch.tensor([[0.0, 0.0, 0.5, 0.6]])
    assert entropy_bound_count(entropy, torch.tensor([4]), 0.0).tolist() == [3]


def test_shares_may_have_another_number_of_steps_left_in_each_row() -> None:
    shares = tokens_at_step(torch.tensor([8, 5, 0]), torch.tensor([3, 1, 2]))
    assert shares.tolist() == [3, 5, 0]

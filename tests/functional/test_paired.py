"""Tests of paired comparisons against exact sums, an enumeration of all resamples, and coverage."""

from __future__ import annotations

from itertools import product
from math import comb

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.functional.paired import bootstrap_interval, mcnemar_exact


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_bootstrap_interval_is_that_of_all_resamples() -> None:
    # Five rows have 5^5 = 3125 equally likely resamples, whose quantiles 10,000 draws estimate.
    values = torch.tensor([0.0, 1.0, 1.0, -1.0, 0.5])
    means = torch.tensor([torch.tensor(draw).mean() for draw in product(values.tolist(), repeat=5)]).double()
    wanted = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    assert bootstrap_interval(values, seeded(), resamples=20_000) == pytest.approx(wanted, abs=0.05)
    narrow = bootstrap_interval(values, seeded(), confidence=0.5)
    assert wanted[0] < narrow[0] < narrow[1] < wanted[1]


@pytest.mark.slow
def test_nineteen_of_twenty_intervals_contain_the_true_mean_and_narrow_ones_do_not() -> None:
    generator, held, held_narrow = seeded(1), 0, 0
    for _ in range(400):
        rows = (torch.rand(200, generator=generator) < 0.3).double()
        low, high = bootstrap_interval(rows, generator, resamples=500)
        held += low <= 0.3 <= high
        low, high = bootstrap_interval(rows, generator, resamples=500, confidence=0.5)
        held_narrow += low <= 0.3 <= high
    # Three standard errors of a share of 400 on either side; a percentile interval is a little
    # short.
    assert 0.90 <= held / 400 <= 0.98
    assert 0.40 <= held_narrow / 400 <= 0.58


def test_pairing_makes_the_interval_of_a_difference_narrow() -> None:
    difficulty = torch.rand(300, generator=seeded(2))
    first, second = (difficulty < 0.5).double(), (difficulty < 0.52).double()
    low, high = bootstrap_interval(second - first, seeded())
    shuffled = second[torch.randperm(300, generator=seeded(3))]
    wide_low, wide_high = bootstrap_interval(shuffled - first, seeded())
    assert (high - low) < 0.5 * (wide_high - wide_low)


def test_equal_generators_give_equal_intervals_for_any_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.rand(50, generator=seeded(4))
    whole = bootstrap_interval(values, seeded(), resamples=1000)
    assert bootstrap_interval(values, seeded(), resamples=1000) == whole
    monkeypatch.setattr("unmask.functional.paired._DRAWS_AT_ONCE", 50 * 7)
    assert bootstrap_interval(values, seeded(), resamples=1000) == whole


def test_equal_values_have_an_interval_of_width_zero() -> None:
    assert bootstrap_interval(torch.full((7,), 0.25), seeded(), resamples=10) == (0.25, 0.25)


@settings(max_examples=60, deadline=None)
@given(gained=st.integers(0, 60), lost=st.integers(0, 60))
def test_mcnemar_is_the_binomial_test(gained: int, lost: int) -> None:
    changed = gained + lost
    tail = sum(comb(changed, k) for k in range(min(gained, lost) + 1))
    assert mcnemar_exact(gained, lost) == pytest.approx(min(1.0, 2 * tail / 2**changed), rel=1e-12)
    assert mcnemar_exact(gained, lost) == mcnemar_exact(lost, gained)


def test_many_changes_do_not_overflow() -> None:
    assert mcnemar_exact(5000, 5000) == 1.0
    assert 0 <= mcnemar_exact(2000, 0) < 1e-300


@pytest.mark.parametrize(
    "call",
    [
        lambda: bootstrap_interval(torch.empty(0), seeded()),
        lambda: bootstrap_interval(torch.ones(2, 2), seeded()),
        lambda: bootstrap_interval(torch.ones(2), seeded(), resamples=0),
        lambda: bootstrap_interval(torch.ones(2), seeded(), confidence=1.0),
        lambda: mcnemar_exact(-1, 2),
    ],
)
def test_wrong_arguments_are_refused(call) -> None:
    with pytest.raises(ValueError, match="got"):
        call()

"""Tests of paired tests, effect sizes and the correction for many tests, against scipy, intervals,
definitions and error rates."""

from __future__ import annotations

import random
from math import inf, isnan, nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from unmask.functional.differences import cohens_d, holm, paired_t_test
from unmask.functional.intervals import mean_interval

NUMBERS = st.lists(st.integers(-100, 100).map(lambda n: n / 64), min_size=2, max_size=12).filter(
    lambda v: len({*v}) > 1
)


@settings(max_examples=60, deadline=None)
@given(differences=NUMBERS)
def test_the_p_value_is_scipys_and_agrees_with_the_interval(differences: list[float]) -> None:
    p = paired_t_test(differences)
    assert p == pytest.approx(float(stats.ttest_1samp(differences, 0).pvalue), rel=1e-9, abs=1e-12)
    mean, half = mean_interval(differences)
    if abs(abs(mean) - half) > 1e-9:
        assert (p < 0.05) == (abs(mean) > half)


@settings(max_examples=30, deadline=None)
@given(differences=NUMBERS)
def test_the_effect_size_is_the_mean_in_standard_deviations(differences: list[float]) -> None:
    d = cohens_d(differences)
    assert d == pytest.approx(stats.tmean(differences) / stats.tstd(differences))
    assert cohens_d([-v for v in differences]) == -d
    assert cohens_d([8 * v for v in differences]) == pytest.approx(d)


def test_equal_differences_have_no_spread_and_one_difference_no_test() -> None:
    assert (cohens_d([0.5] * 3), cohens_d([-0.5] * 3), cohens_d([0.0] * 3)) == (inf, -inf, 0.0)
    assert (paired_t_test([0.5] * 3), paired_t_test([0.0] * 3)) == (0.0, 1.0)
    assert cohens_d([0.3 - 0.2, 0.4 - 0.3, 0.1]) == inf, "differences that are equal but for rounding"
    assert isnan(paired_t_test([0.5]))
    with pytest.raises(ValueError, match="at least one"):
        paired_t_test([])


def test_holms_correction_is_that_of_its_definition() -> None:
    # Holm's steps by hand: 4 · 0.005, 3 · 0.01, 2 · 0.03 and, not below its forerunner, 1 · 0.04.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.04]) == [0.04]
    corrected = holm([nan, 0.01, 0.02])
    assert isnan(corrected[0])
    assert corrected[1:] == [0.02, 0.02], "nan is no test"
    with pytest.raises(ValueError, match=r"between 0 and 1; got 1\.5"):
        holm([0.5, 1.5])


@settings(max_examples=40, deadline=None)
@given(p_values=st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_step_by_step(p_values: list[float]) -> None:
    """The sequential procedure: go through the p-values from the smallest, and stop at the first
    that is above α / (number of those left)."""
    alpha, rejected = 0.05, set()
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[i] * (len(p_values) - rank) > alpha:
            break
        rejected.add(i)
    assert {i for i, p in enumerate(holm(p_values)) if p <= alpha} == rejected


def test_holm_keeps_the_rate_of_any_wrong_rejection_and_uncorrected_tests_do_not() -> None:
    draws, trials, wrong = random.Random(0), 400, {"holm": 0, "none": 0}
    for _ in range(trials):
        # Eight methods that differ from a baseline by nothing; the baseline's noise is common to all.
        baseline = [draws.gauss(0, 1) for _ in range(5)]
        p_values = [paired_t_test([draws.gauss(0, 1) - b for b in baseline]) for _ in range(8)]
        wrong["holm"] += min(holm(p_values)) <= 0.05
        wrong["none"] += min(p_values) <= 0.05
    # 0.05 of 400 trials has a standard error of 0.011.
    assert wrong["holm"] / trials < 0.08
    assert wrong["none"] / trials > 0.12

"""Wilson's interval against published values, its defining equation, and its coverage."""

from __future__ import annotations

from math import comb, sqrt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.functional.intervals import wilson_interval


@pytest.mark.parametrize(
    ("successes", "trials", "interval"),
    [
        (0, 10, (0.0, 0.2775)),
        (10, 10, (0.7225, 1.0)),
        (50, 100, (0.4038, 0.5962)),
        (81, 263, (0.2553, 0.3662)),  # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (15, 148, (0.0624, 0.1605)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_published_values(successes, trials, interval):
    assert wilson_interval(successes, trials) == pytest.approx(interval, abs=6e-5)


@settings(max_examples=50, deadline=None)
@given(trials=st.integers(1, 5000), share=st.floats(0, 1), confidence=st.floats(0.5, 0.999))
def test_the_interval_lies_in_the_unit_interval_holds_the_share_and_mirrors_failures(trials, share, confidence):
    successes = round(share * trials)
    low, high = wilson_interval(successes, trials, confidence)
    assert 0 <= low <= successes / trials <= high <= 1
    assert high - low > 0
    mirrored = wilson_interval(trials - successes, trials, confidence)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_each_end_is_a_share_under_which_the_observed_one_lies_z_standard_errors_away():
    for end in wilson_interval(37, 90, 0.9):
        assert abs(37 / 90 - end) == pytest.approx(1.6448536 * sqrt(end * (1 - end) / 90), rel=1e-6)


def coverage(interval, trials: int, share: float) -> float:
    """Exact probability that the interval holds the true share, over the binomial outcomes."""
    return sum(
        comb(trials, k) * share**k * (1 - share) ** (trials - k)
        for k in range(trials + 1)
        if interval(k, trials)[0] <= share <= interval(k, trials)[1]
    )


def test_its_mean_coverage_is_near_the_nominal_one_and_the_textbook_interval_s_is_not():
    def textbook(successes: int, trials: int) -> tuple[float, float]:
        p = successes / trials
        half = 1.96 * sqrt(p * (1 - p) / trials)
        return p - half, p + half

    shares = [i / 100 for i in range(1, 100)]
    assert sum(coverage(wilson_interval, 20, p) for p in shares) / 99 == pytest.approx(0.95, abs=0.01)
    assert sum(coverage(textbook, 20, p) for p in shares) / 99 < 0.88


@pytest.mark.parametrize(("successes", "trials"), [(-1, 5), (6, 5), (0, 0)])
def test_impossible_counts_are_refused(successes, trials):
    with pytest.raises(ValueError, match=f"got {successes} of {trials}"):
        wilson_interval(successes, trials)


def test_an_impossible_confidence_is_refused():
    with pytest.raises(ValueError, match="got 1"):
        wilson_interval(1, 2, 1.0)

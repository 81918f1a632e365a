"""Tests of intervals against published values, defining equations, an independent implementation
and coverage."""

from __future__ import annotations

import random
from math import atan, comb, cos, fsum, isnan, pi, sin, sqrt, tan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.functional.intervals import mean_interval, t_quantile, wilson_interval


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


def test_the_observed_share_lies_z_standard_errors_from_each_end():
    for end in wilson_interval(37, 90, 0.9):
        assert abs(37 / 90 - end) == pytest.approx(1.6448536 * sqrt(end * (1 - end) / 90), rel=1e-6)


def coverage(interval, trials: int, share: float) -> float:
    """Return the exact probability that the interval contains the true share, over the binomial
    outcomes."""
    return sum(
        comb(trials, k) * share**k * (1 - share) ** (trials - k)
        for k in range(trials + 1)
        if interval(k, trials)[0] <= share <= interval(k, trials)[1]
    )


@pytest.mark.slow
def test_the_mean_coverage_of_wilson_is_near_nominal_and_that_of_the_textbook_interval_is_not():
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


# --- Student's t ---


def probability_within(t: float, degrees: int) -> float:
    """Compute P(|T| < t) as a finite sum over powers of the cosine (Abramowitz and Stegun, 26.7.3
    and 26.7.4)."""
    angle, odd = atan(t / sqrt(degrees)), degrees % 2
    terms = [cos(angle) if odd else 1.0]
    for k in range(2 + odd, degrees - 1, 2):
        terms.append(terms[-1] * cos(angle) ** 2 * (k - 1) / k)
    series = sin(angle) * fsum(terms)
    if not odd:
        return series
    return 2 / pi * (angle + (series if degrees > 1 else 0.0))


@settings(max_examples=200, deadline=None)
@given(confidence=st.floats(0.001, 0.9999), degrees=st.integers(1, 300))
def test_the_probability_within_the_quantile_is_the_confidence(confidence, degrees):
    assert probability_within(t_quantile(confidence, degrees), degrees) == pytest.approx(confidence, rel=1e-10)


@pytest.mark.parametrize("confidence", [0.1, 0.5, 0.9, 0.95, 0.99])
def test_the_quantile_equals_the_closed_form_if_one_exists(confidence):
    assert t_quantile(confidence, 1) == pytest.approx(tan(pi * confidence / 2), rel=1e-10)
    assert t_quantile(confidence, 2) == pytest.approx(confidence * sqrt(2 / (1 - confidence**2)), rel=1e-10)


def test_with_many_degrees_of_freedom_it_is_the_normal_quantile():
    assert t_quantile(0.95, 100_000) == pytest.approx(1.959964, abs=5e-5)


def test_the_interval_of_a_mean_by_hand():
    # Deviations -1, 0, 1: s = 1, and t of 2 degrees of freedom at 0.95 is 4.302653.
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 4.302653 / sqrt(3)), rel=1e-6)
    assert mean_interval([1.0, 2.0, 3.0], 0.5) == pytest.approx((2.0, t_quantile(0.5, 2) / sqrt(3)), rel=1e-12)
    assert mean_interval([0.5, 0.5]) == (0.5, 0.0)


def test_a_single_value_has_no_width():
    mean, half = mean_interval([0.25])
    assert mean == 0.25
    assert isnan(half)


def test_the_coverage_of_student_t_is_nominal_and_that_of_the_normal_quantile_is_not():
    rng = random.Random(0)
    samples = [[rng.gauss(3.0, 2.0) for _ in range(3)] for _ in range(4000)]
    half_widths = [mean_interval(sample) for sample in samples]
    covered = sum(abs(mean - 3) <= half for mean, half in half_widths) / 4000
    # Binomial standard error 0.0034.
    assert covered == pytest.approx(0.95, abs=0.014)
    too_narrow = sum(abs(mean - 3) <= half * 1.96 / 4.3027 for mean, half in half_widths) / 4000
    assert too_narrow < 0.85


@pytest.mark.parametrize(("confidence", "degrees"), [(0.0, 3), (1.0, 3), (0.95, 0)])
def test_impossible_arguments_of_the_quantile_are_refused(confidence, degrees):
    with pytest.raises(ValueError, match=f"got {confidence} and {degrees}"):
        t_quantile(confidence, degrees)


def test_a_mean_of_no_values_is_refused():
    with pytest.raises(ValueError, match="got no values"):
        mean_interval([])
    with pytest.raises(ValueError, match="got 1"):
        mean_interval([1.0, 2.0], 1.0)

"""Confidence intervals of a solve rate and of a mean over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan, sqrt
from statistics import fmean, stdev


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Compute Wilson's score interval of a proportion (E. B. Wilson, JASA 22, 1927).

    The interval is (p̂ + z²/2n ± z √(p̂(1-p̂)/n + z²/4n²)) / (1 + z²/n). Unlike p̂ ± z s.e., it
    keeps its coverage near 0 and 1 and never has width 0, which matters for small evaluation sets.

    The interval covers only the choice of the examples, which must be independent. It does not
    cover the spread over seeds.

    Args:
        successes: number of successes, at most trials.
        trials: number of trials n >= 1.
        confidence: confidence level, in (0, 1).

    Returns:
        (lower, upper), both in [0, 1].

    Raises:
        ValueError: a count or the confidence is out of range.

    Example:
        >>> low, high = wilson_interval(50, 100)
        >>> f"{low:.4f} {high:.4f}"
        '0.4038 0.5962'
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(
            f"wilson_interval: needs 0 <= successes <= trials and trials >= 1; got {successes} of {trials}"
        )
    if not 0 < confidence < 1:
        raise ValueError(f"wilson_interval: confidence must be between 0 and 1; got {confidence}")
    from scipy.stats import binomtest

    lower, upper = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return float(lower), float(upper)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return the mean of a few independent values, and half the width of its Student-t interval
    (Student, Biometrika 6, 1908).

    The interval is x̄ ± t s / √n, where s is the standard deviation (divisor n - 1) and t is the
    quantile at (1 + confidence) / 2 with n - 1 degrees of freedom. The interval is exact if the
    values, such as the results of n seeds, are normally distributed.

    A prediction interval for the result of one more seed is √(n + 1) times as wide.

    Args:
        values: n >= 1 independent values.
        confidence: confidence level, in (0, 1).

    Returns:
        (mean, half width). The half width of a single value is nan, because one value does not show
        a spread.

    Raises:
        ValueError: there is no value, or the confidence is out of range.

    Example:
        >>> mean, half = mean_interval([0.5, 0.75, 1.0])
        >>> f"{mean:.2f} {half:.4f}"                       # 4.3027 · 0.25 / √3
        '0.75 0.6210'
    """
    if not values:
        raise ValueError("mean_interval: got no values; give at least one")
    if not 0 < confidence < 1:
        raise ValueError(f"mean_interval: confidence must be between 0 and 1; got {confidence}")
    if len(values) == 1:
        return values[0], nan
    return fmean(values), t_quantile(confidence, len(values) - 1) * stdev(values) / sqrt(len(values))


def cut(interval: tuple[float, float], lowest: float, highest: float) -> tuple[float, float]:
    """Return the part of an interval that lies in the range of possible values.

    The true value lies in the range, so it is never in the part that is cut off, and the coverage
    stays the same.

    Args:
        interval: lower and upper end; nan stays nan.
        lowest: smallest possible value of the quantity.
        highest: largest possible value of the quantity.

    Example:
        >>> mean, half = mean_interval([0.875, 1.0])
        >>> low, high = cut((mean - half, mean + half), 0.0, 1.0)
        >>> f"{low:.3f} {high:.3f}"
        '0.143 1.000'
    """
    low, high = interval
    return (lowest if low < lowest else low, highest if high > highest else high)


def t_quantile(confidence: float, degrees: int) -> float:
    """Return the two-sided quantile of Student's t distribution: the t with P(|T| < t) =
    confidence.

    Args:
        confidence: two-sided confidence level, in (0, 1).
        degrees: degrees of freedom ν >= 1.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> f"{t_quantile(0.95, 4):.4f} {t_quantile(0.5, 1):.4f}"     # the quartile of a Cauchy variable is 1
        '2.7764 1.0000'
    """
    if not 0 < confidence < 1 or degrees < 1:
        raise ValueError(
            f"t_quantile: needs 0 < confidence < 1 and degrees >= 1; got {confidence} and {degrees} degrees of freedom"
        )
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + confidence) / 2))

"""How sure a solve rate is, and a mean over seeds. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, fsum, nan, pi, sin, sqrt, tan
from statistics import NormalDist, fmean, stdev


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (E. B. Wilson, JASA 22, 1927).

    (p̂ + z²/2n ± z √(p̂(1-p̂)/n + z²/4n²)) / (1 + z²/n). Unlike p̂ ± z s.e. it keeps its coverage near 0 and 1 and
    never has width 0, which matters for small evaluation sets.

    Not the spread over seeds: it covers the choice of rows only, and assumes that rows are independent.

    Args:
        successes: 0 <= successes <= trials.
        trials: n >= 1.
        confidence: in (0, 1).

    Returns:
        (lower, upper), both in [0, 1].

    Raises:
        ValueError: counts or confidence out of range.

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
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, doubt = successes / trials, z * z / trials
    centre = share + doubt / 2
    half_width = z * sqrt(share * (1 - share) / trials + doubt / (4 * trials))
    # The two ends are exact by algebra and would miss 0 and 1 by rounding.
    lower = 0.0 if successes == 0 else (centre - half_width) / (1 + doubt)
    upper = 1.0 if successes == trials else (centre + half_width) / (1 + doubt)
    return lower, upper


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Mean of a few independent values, and half the width of its Student-t interval (Student, Biometrika 6, 1908).

    x̄ ± t s / √n, with s the standard deviation (divisor n - 1) and t the quantile at (1 + confidence) / 2 of n - 1 degrees
    of freedom. For the results of n seeds: exact if they are normal, near enough if they are not far from it.

    Not an interval for the next seed's result, which is √(n + 1) times as wide.

    Args:
        values: n >= 1 of them.
        confidence: in (0, 1).

    Returns:
        (mean, half width); a single value says nothing of its spread, and its half width is nan.

    Raises:
        ValueError: no value, or confidence out of range.

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
    """The part of an interval that lies in the range of its quantity.

    The true value lies in the range, so what is cut off cannot hold it: the part covers it exactly as often as the whole does.

    Args:
        interval: lower and upper end; nan stays nan.
        lowest: the least value that the quantity can have.
        highest: the largest.

    Example:
        >>> mean, half = mean_interval([0.875, 1.0])
        >>> low, high = cut((mean - half, mean + half), 0.0, 1.0)
        >>> f"{low:.3f} {high:.3f}"
        '0.143 1.000'
    """
    low, high = interval
    return (lowest if low < lowest else low, highest if high > highest else high)


def t_quantile(confidence: float, degrees: int) -> float:
    """The t with P(|T| < t) = confidence, of Student's distribution with a whole number of degrees of freedom.

    With t = √ν tan θ the probability is a finite sum of powers of cos θ (Abramowitz and Stegun, 26.7.3 and 26.7.4), all its
    terms positive; it is inverted by halving the interval of θ, which cannot miss.

    Args:
        confidence: two-sided, in (0, 1).
        degrees: ν >= 1.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> f"{t_quantile(0.95, 4):.4f} {t_quantile(0.5, 1):.4f}"     # the quartile of a Cauchy variable is 1
        '2.7764 1.0000'
    """
    if not 0 < confidence < 1 or degrees < 1:
        raise ValueError(
            f"t_quantile: needs 0 < confidence < 1 and degrees >= 1; got {confidence} and {degrees} degrees of freedom"
        )
    low, high = 0.0, pi / 2
    while low < (middle := (low + high) / 2) < high:
        if _t_probability(middle, degrees) < confidence:
            low = middle
        else:
            high = middle
    return sqrt(degrees) * tan(low)


def _t_probability(angle: float, degrees: int) -> float:
    """P(|T| < √ν tan θ)."""
    cosine, odd = cos(angle), degrees % 2
    # 1 + (1/2) cos² + (1·3)/(2·4) cos⁴ + ... for even ν, and cos + (2/3) cos³ + (2·4)/(3·5) cos⁵ + ... for odd.
    terms = [cosine if odd else 1.0]
    for k in range(2 + odd, degrees - 1, 2):
        terms.append(terms[-1] * cosine**2 * (k - 1) / k)
    series = sin(angle) * fsum(terms)
    if not odd:
        return series
    return 2 / pi * (angle + (series if degrees > 1 else 0.0))

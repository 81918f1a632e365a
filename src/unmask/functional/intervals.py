"""How sure a solve rate is. Standard library only."""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist


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

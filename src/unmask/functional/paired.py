"""Comparison of two results on the same examples: a bootstrap interval of the difference, and an
exact test of the changes.

Examples differ in difficulty far more than two models differ on one example, so a paired comparison
needs many fewer examples than two separate intervals suggest.
"""

from __future__ import annotations

import torch
from torch import Tensor

_DRAWS_AT_ONCE = 4_000_000
"""Number of indices drawn in one block of resamples, which takes 32 MB."""


def bootstrap_interval(
    values: Tensor, generator: torch.Generator, *, resamples: int = 10_000, confidence: float = 0.95
) -> tuple[float, float]:
    """Compute the percentile interval of a mean over examples (Efron and Tibshirani, An
    Introduction to the Bootstrap, 1993, ch. 13).

    The mean of n values is computed for `resamples` draws of n values with replacement, and the
    interval holds the middle `confidence` of these means. For the differences of two results on the
    same examples, this is the paired bootstrap.

    Args:
        values: [n] numbers, one for each example, such as its share of correct completions or a
            difference of two such shares.
        generator: source of randomness.
        resamples: number of resamples, at least 1.
        confidence: confidence level, in (0, 1).

    Returns:
        (lower, upper), in the unit of the values. If all values are equal, both ends are that
        value.

    Raises:
        ValueError: there is no value, or an argument is out of range.

    Example:
        >>> values = torch.tensor([1.0, 0.0, 0.0, 0.0] * 25)
        >>> low, high = bootstrap_interval(values, torch.Generator().manual_seed(0))
        >>> f"{low:.2f} {high:.2f}"                       # 0.25 ± 1.96 · √(0.25 · 0.75 / 100)
        '0.17 0.34'
    """
    if values.dim() != 1 or not len(values) or resamples < 1 or not 0 < confidence < 1:
        raise ValueError(
            "bootstrap_interval: needs values [n >= 1], resamples >= 1 and 0 < confidence < 1; "
            f"got {tuple(values.shape)}, {resamples}, {confidence}"
        )
    values = values.double()
    block = max(1, _DRAWS_AT_ONCE // len(values))
    means = []
    for start in range(0, resamples, block):
        shape = (min(block, resamples - start), len(values))
        means.append(values[torch.randint(len(values), shape, generator=generator)].mean(-1))
    tail = (1 - confidence) / 2
    low, high = torch.cat(means).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


def mcnemar_exact(gained: int, lost: int) -> float:
    """Compute the two-sided exact p-value for the hypothesis that as many examples are gained as
    lost (McNemar, Psychometrika 12, 1947).

    Examples that both results solve or both miss do not count. If neither result is better, each
    changed example is a fair coin flip: p = P(|X - m/2| >= |gained - m/2|), X ~ Binomial(m, 1/2), m
    = gained + lost.

    Args:
        gained: number of examples that only the new result solves.
        lost: number of examples that only the old result solves.

    Returns:
        The p-value, in [0, 1]. It is 1 if nothing changed.

    Raises:
        ValueError: a count is negative.

    Example:
        >>> mcnemar_exact(5, 0)                           # 2 / 2⁵
        0.0625
        >>> mcnemar_exact(4, 4)
        1.0
    """
    if min(gained, lost) < 0:
        raise ValueError(f"mcnemar_exact: counts must not be negative; got {gained} and {lost}")
    if not gained + lost:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(min(gained, lost), gained + lost).pvalue)

"""Two results on the same rows: the difference with a bootstrap interval, and an exact test of the rows that changed.

Rows differ in difficulty far more than two models differ on a row, so a comparison row by row needs many fewer of them than two
separate intervals suggest.
"""

from __future__ import annotations

import torch
from torch import Tensor

_DRAWS_AT_ONCE = 4_000_000
"""Indices of one block of resamples: 32 MB."""


def bootstrap_interval(
    values: Tensor, generator: torch.Generator, *, resamples: int = 10_000, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of a mean over rows (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13).

    The means of `resamples` draws of n rows with replacement; the interval holds the middle `confidence` of them. On the
    differences of two results, row by row, it is the paired bootstrap.

    Args:
        values: [n] one number for each row, such as the share of its completions that are right, or a difference of two such.
        generator: the source of randomness.
        resamples: how many, at least 1.
        confidence: in (0, 1).

    Returns:
        (lower, upper), in the unit of the values; both the value itself where all are equal.

    Raises:
        ValueError: no value, or an argument out of range.

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
    """Two-sided exact p-value that as many rows are gained as lost (McNemar, Psychometrika 12, 1947, by the binomial).

    Rows that both results solve or both miss say nothing of the difference. If neither is better, each row that changed is a
    fair coin: p = P(|X - m/2| >= |gained - m/2|), X ~ Binomial(m, 1/2), m = gained + lost.

    Args:
        gained: rows that only the new result solves.
        lost: rows that only the old one solves.

    Returns:
        In [0, 1]; 1 where nothing changed.

    Raises:
        ValueError: a negative count.

    Example:
        >>> mcnemar_exact(5, 0)                           # 2 / 2⁵
        0.0625
        >>> mcnemar_exact(4, 4)
        1.0
    """
    if min(gained, lost) < 0:
        raise ValueError(f"mcnemar_exact: counts must not be negative; got {gained} and {lost}")
    changed = gained + lost
    # Whole numbers throughout, each coefficient from the one before: as floats they would be lost long before their sum.
    tail = coefficient = 1
    for k in range(min(gained, lost)):
        coefficient = coefficient * (changed - k) // (k + 1)
        tail += coefficient
    p_value: float = min(1.0, 2 * tail / 2**changed)
    return p_value

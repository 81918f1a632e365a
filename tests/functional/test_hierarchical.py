"""Tests of the bootstrap over seeds and examples: its distribution by enumeration and by formula,
and its coverage, with the bootstrap over all examples as negative control."""

from __future__ import annotations

from collections import Counter
from itertools import product
from math import atan, pi, sqrt
from statistics import NormalDist, fmean

import pytest
import torch

from unmask.functional.hierarchical import hierarchical_interval
from unmask.functional.intervals import t_quantile
from unmask.functional.paired import bootstrap_interval


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bounds(values: list[list[float]], **options: float) -> tuple[float, float]:
    return hierarchical_interval([torch.tensor(v) for v in values], generator(), **options)


def enumerated(values: list[list[float]]) -> dict[float, float]:
    """Probability of each value of a resample: all draws of two seeds and of their examples."""
    found: Counter[float] = Counter()
    for seeds in product(values, repeat=len(values)):
        draws = [[fmean(draw) for draw in product(of_seed, repeat=len(of_seed))] for of_seed in seeds]
        for means in product(*draws):
            found[round(fmean(means), 9)] += 1 / (len(values) ** len(values) * len(draws[0]) * len(draws[1]))
    return dict(found)


@pytest.mark.parametrize(
    "values", [[[0.0, 1.0], [1.0, 1.0]], [[-1.0, 0.0, 1.0], [0.0, 1.0]], [[0.25, 0.5], [0.75, 0.75, 1.0]]]
)
def test_the_ends_are_quantiles_of_all_resamples(values: list[list[float]]) -> None:
    distribution = sorted(enumerated(values).items())
    assert sum(share for _, share in distribution) == pytest.approx(1)
    for level in (0.1, 0.2, 0.35):
        # With two seeds c = √2 · t, and the quantile of a Cauchy variable is tan(π · confidence / 2).
        confidence = 2 / pi * atan(-NormalDist().inv_cdf(level) / sqrt(2))
        low, high = bounds(values, confidence=confidence, resamples=40_000)
        below, expected = 0.0, []
        for value, share in distribution:
            expected += [value] * (sum(below <= q < below + share for q in (level, 1 - level)))
            below += share
        assert [low, high] == pytest.approx(expected, abs=1e-6)


def test_the_width_is_that_of_the_variance_of_both_levels() -> None:
    draws = generator(1)
    values = [(torch.rand(5, generator=draws) < torch.rand(1, generator=draws)).double() for _ in range(40)]
    means = torch.stack([v.mean() for v in values])
    # Variance of a resample, with divisors n and m: of the seeds, and of the examples within them.
    spread = sqrt((means.var(correction=0) + torch.stack([v.var(correction=0) / 5 for v in values]).mean()) / 40)
    low, high = hierarchical_interval(values, generator())
    half = sqrt(40 / 39) * t_quantile(0.95, 39) * spread
    mean = float(means.mean())
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.05 * half)


def test_equal_values_have_an_interval_without_width_and_a_seed_repeats_it() -> None:
    assert bounds([[0.5] * 3, [0.5] * 4]) == (0.5, 0.5)
    values = [[0.0, 1.0] * 20, [1.0] * 30 + [0.0] * 10, [0.0] * 40]
    assert bounds(values) == bounds(values)
    tensors = [torch.tensor(v) for v in values]
    assert hierarchical_interval(tensors, generator(1)) != hierarchical_interval(tensors, generator(2))


def test_it_covers_the_mean_over_seeds_and_the_bootstrap_over_all_examples_does_not() -> None:
    draws, trials, num_seeds, num_rows = generator(2), 120, 6, 128
    covered = {"seeds and examples": 0, "examples": 0}
    for _ in range(trials):
        # Seeds solve shares that spread by 0.1 about 0.5, which is what a new seed would solve on average.
        shares = (0.5 + 0.1 * torch.randn(num_seeds, generator=draws)).clamp(0, 1)
        values = [(torch.rand(num_rows, generator=draws) < share).double() for share in shares]
        both = hierarchical_interval(values, draws, resamples=1000)
        naive = bootstrap_interval(torch.cat(values), draws, resamples=200)
        covered["seeds and examples"] += both[0] <= 0.5 <= both[1]
        covered["examples"] += naive[0] <= 0.5 <= naive[1]
    # A share of 0.95 of 120 trials has a standard error of 0.02.
    assert covered["seeds and examples"] / trials > 0.91
    assert covered["examples"] / trials < 0.7


@pytest.mark.parametrize(
    ("values", "options"),
    [
        ([[1.0]], {}),
        ([[1.0], []], {}),
        ([[[1.0]], [[1.0]]], {}),
        ([[1.0], [0.0]], {"resamples": 0}),
        ([[1.0], [0.0]], {"confidence": 1.0}),
    ],
)
def test_too_few_seeds_or_examples_and_bad_options_are_refused(values: list[list[float]], options: dict) -> None:
    with pytest.raises(ValueError, match="hierarchical_interval: needs"):
        bounds(values, **options)

"""Bootstrap interval of a mean over seeds and examples. Seeds are drawn again, and then the examples
of each drawn seed."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist

import torch
from torch import Tensor

from unmask.functional.intervals import t_quantile


def hierarchical_interval(
    values: Sequence[Tensor],
    generator: torch.Generator,
    *,
    resamples: int = 10_000,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Compute the expanded percentile interval of a mean over seeds and examples, by a bootstrap at
    both levels (Davison and Hinkley, Bootstrap Methods and their Application, 1997, sec. 3.8).

    A resample draws n of the n seeds with replacement, and for each drawn seed m of its m examples
    with replacement. Its value is the mean over the drawn seeds of the mean over the drawn examples.

    The plain percentile interval of a few seeds is too narrow: it uses the divisor n for the variance,
    and the normal instead of Student's distribution. The interval therefore holds the resamples
    between the levels Φ(-c) and Φ(c) with c = √(n/(n-1)) · t, where t is the quantile of Student's
    distribution at (1 + confidence) / 2 with n - 1 degrees of freedom (Hesterberg, The American
    Statistician 69, 2015, sec. 5.3).

    The means of the seeds already vary with the examples, so the examples count twice. With five or
    more seeds the coverage is therefore at least the confidence level, and well above it if seeds
    differ little. With fewer seeds it can be lower. Examples of different seeds must be independent:
    if all seeds use the same examples, the interval does not include the choice of these.

    Args:
        values: for each of n >= 2 seeds, [m] numbers, one for each example, such as its share of
            correct completions or a difference of two such shares. m can differ between seeds.
        generator: source of randomness.
        resamples: number of resamples, at least 1.
        confidence: confidence level, in (0, 1).

    Returns:
        (lower, upper), in the unit of the values.

    Raises:
        ValueError: there are fewer than two seeds, a seed has no examples, or an argument is out of
            range.

    Example:
        >>> seeds = [torch.tensor([1.0, 0.0] * 50), torch.tensor([1.0, 1.0, 1.0, 0.0] * 25)] * 3
        >>> low, high = hierarchical_interval(seeds, torch.Generator().manual_seed(0))
        >>> f"{low:.2f} {high:.2f}"                       # mean 0.625; seeds 0.5 and 0.75
        '0.47 0.77'
    """
    shapes = [tuple(of_seed.shape) for of_seed in values]
    if len(values) < 2 or any(len(shape) != 1 or not shape[0] for shape in shapes):
        raise ValueError(f"hierarchical_interval: needs values [m >= 1] of two or more seeds; got shapes {shapes}")
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(
            f"hierarchical_interval: needs resamples >= 1 and 0 < confidence < 1; got {resamples}, {confidence}"
        )
    number = len(values)
    drawn = torch.randint(number, (resamples, number), generator=generator)
    means = _resampled_means(values, drawn, generator).mean(-1)
    level = NormalDist().cdf(-sqrt(number / (number - 1)) * t_quantile(confidence, number - 1))
    low, high = means.quantile(torch.tensor([level, 1 - level], dtype=torch.float64)).tolist()
    return low, high


def _resampled_means(values: Sequence[Tensor], drawn: Tensor, generator: torch.Generator) -> Tensor:
    """Return the mean of newly drawn examples for each drawn seed.

    Examples with equal values are exchangeable, so only the number of draws of each distinct value
    matters. These numbers have a multinomial distribution, which is drawn as a chain of binomials.

    Args:
        values: [m] numbers of each seed.
        drawn: [...] indices of seeds.
        generator: source of randomness.

    Returns:
        [...] means, float64.
    """
    levels = torch.cat([of_seed.double() for of_seed in values]).unique()
    counts = torch.stack([(of_seed.double()[:, None] == levels).sum(0) for of_seed in values]).double()[drawn]
    size = counts.sum(-1)
    left, left_in_seed, total = size.clone(), size.clone(), torch.zeros_like(size)
    for i, level in enumerate(levels[:-1]):
        share = (counts[..., i] / left_in_seed.clamp(min=1)).clamp(max=1)
        number = torch.binomial(left, share, generator=generator)
        total += level * number
        left, left_in_seed = left - number, left_in_seed - counts[..., i]
    means: Tensor = (total + levels[-1] * left) / size
    return means

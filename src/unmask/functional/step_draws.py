"""Denoising steps drawn at random, evenly over a whole batch (AGRPO, arXiv:2510.04019).

The draws are those of the low-discrepancy sampler that AGRPO takes from arXiv:2409.02908, appendix
G.2. One thing differs from the released code: if rounding leaves the running sum of the
probabilities below a draw, the draw is the last possible step instead of the step after it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def low_discrepancy_uniform(count: int, generator: torch.Generator) -> Float[Tensor, "{count}"]:
    """Draw uniform numbers that cover [0, 1) evenly, (π(i) + U_i) / M: one in each of M equal
    strata, in random order.

    Each number alone is uniform, so a mean over them is unbiased. The count of numbers in an
    interval differs from M times its length by at most two.

    Args:
        count: number of draws M >= 1.
        generator: CPU generator.

    Returns:
        [M] float64 in [0, 1).

    Raises:
        ValueError: count is below 1.

    Example:
        >>> u = low_discrepancy_uniform(4, torch.Generator().manual_seed(0))
        >>> (4 * u.sort().values).floor()
        tensor([0., 1., 2., 3.], dtype=torch.float64)
    """
    if count < 1:
        raise ValueError(f"low_discrepancy_uniform: count must be at least 1; got {count}")
    jitter = torch.rand(count, generator=generator, dtype=torch.float64)
    # The last stratum ends at 1, and rounding must not reach it.
    return ((torch.randperm(count, generator=generator) + jitter) / count).clamp(max=1 - 2**-53)


def step_counts(probability: Float[Tensor, "B T"], uniform: Float[Tensor, "B K"]) -> Tensor:
    """Count how often each step is drawn, by applying the inverse distribution function to uniform
    numbers.

    Draw u is the first step k with Σ_{j<=k} p_j > u Σ p.

    Args:
        probability: [B, T] real >= 0; each row is divided by its sum.
        uniform: [B, M] in [0, 1).

    Returns:
        [B, T] int64, M in each row; 0 at every step of probability 0, and in a row of zeros.

    Raises:
        ValueError: the arguments disagree on B.

    Example:
        >>> import torch
        >>> step_counts(torch.tensor([[0.0, 0.5, 0.5, 0.0]]), torch.tensor([[0.0, 0.4, 0.99]]))
        tensor([[0, 2, 1, 0]])
    """
    if len(probability) != len(uniform):
        raise ValueError(
            "step_counts: probability [B, T] and uniform [B, M] must agree on B; "
            f"got {tuple(probability.shape)}, {tuple(uniform.shape)}"
        )
    running = probability.double().cumsum(dim=-1)
    total = running[:, -1:]
    point = torch.minimum(uniform.double() * total, total * (1 - 1e-15))
    step = torch.searchsorted(running, point, right=True).clamp(max=probability.shape[-1] - 1)
    counts = torch.zeros_like(probability, dtype=torch.long).scatter_add(-1, step, torch.ones_like(step))
    return counts.masked_fill(probability == 0, 0)

"""Denoising steps drawn at random: evenly over a whole batch (AGRPO, arXiv:2510.04019), or a few of
each block.

The draws of a batch are those of the low-discrepancy sampler that AGRPO takes from arXiv:2409.02908, appendix
G.2. One thing differs from the released code: if rounding leaves the running sum of the
probabilities below a draw, the draw is the last possible step instead of the step after it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
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


def steps_by_block(
    unmask_step: Int[Tensor, "B L"], block_length: int, num_draws: int, noise: Float[Tensor, "B T"]
) -> tuple[Int[Tensor, "B K"], Float[Tensor, "B K"]]:
    """Draw M steps of each block of a path, without replacement and all alike, with the weights
    that make their sum unbiased.

    A step commits tokens of a single block. If n_b steps committed tokens of block b, each drawn
    step of the block has the weight n_b / min(M, n_b), so that the weighted sum of any quantity
    over the drawn steps has the sum over all steps as its expectation. dTRPO (arXiv:2603.18806)
    draws one step of each block.

    Args:
        unmask_step: [B, L] int; entries outside 0..T-1 do not count.
        block_length: block length of the sampler.
        num_draws: number M >= 1 of steps of a block.
        noise: [B, T] in [0, 1), independent for each step: the steps of largest noise are drawn.

    Returns:
        [B, K] int64 steps, M slots for each block, -1 in an empty slot, and [B, K] float32 weights;
        0 in an empty slot.

    Raises:
        ValueError: block_length or num_draws is below 1.

    Example:
        >>> import torch
        >>> noise = torch.tensor([[0.3, 0.9, 0.5]])
        >>> steps_by_block(torch.tensor([[0, 1, 2, 2]]), 2, 1, noise)
        (tensor([[1, 2]]), tensor([[2., 1.]]))
    """
    if block_length < 1 or num_draws < 1:
        raise ValueError(
            f"steps_by_block: needs block_length >= 1 and num_draws >= 1; got {block_length} and {num_draws}"
        )
    length, num_steps = unmask_step.shape[1], noise.shape[1]
    num_blocks = -(-length // block_length)
    block = torch.arange(length, device=unmask_step.device) // block_length
    is_counted = (unmask_step >= 0) & (unmask_step < num_steps)
    column = (block * num_steps + unmask_step.long()).masked_fill(~is_counted, num_blocks * num_steps)
    committed = torch.zeros(len(noise), num_blocks * num_steps + 1, dtype=torch.bool, device=noise.device)
    committed = committed.scatter(1, column, True)[:, :-1].view(-1, num_blocks, num_steps)
    num_kept = min(num_draws, num_steps)
    drawn = noise.unsqueeze(1).masked_fill(~committed, -1.0).topk(num_kept, dim=-1)
    count = committed.sum(-1, keepdim=True)
    weight = (count / count.clamp(min=1, max=num_draws)).expand(-1, -1, num_kept)
    is_empty = drawn.values < 0
    return drawn.indices.masked_fill(is_empty, -1).flatten(1), weight.masked_fill(is_empty, 0.0).flatten(1)

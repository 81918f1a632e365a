"""Number of tokens that each denoising step commits, and learning rate of each training step."""

from __future__ import annotations

import math
from typing import Literal

from jaxtyping import Int
from torch import Tensor


def tokens_at_step(num_masked: Int[Tensor, "B"], steps_left: int) -> Int[Tensor, "B"]:
    """Compute the number of positions that a denoising step commits.

    The masked positions are shared evenly over the remaining steps, larger shares first: ⌈n / s⌉.
    From n positions and T steps at the start, every step commits ⌊n/T⌋ positions, and each of the
    first n mod T steps commits one more (LLaDA, arXiv:2502.09992). For n < T the last steps commit
    nothing.

    Args:
        num_masked: [B] int64 >= 0, number n of masked positions of each row.
        steps_left: number s >= 1 of remaining steps, this one included.

    Returns:
        [B] int64.

    Raises:
        ValueError: steps_left is below 1.

    Example:
        >>> import torch
        >>> tokens_at_step(torch.tensor([8, 5, 0]), steps_left=3)
        tensor([3, 2, 0])
    """
    if steps_left < 1:
        raise ValueError(f"tokens_at_step: steps_left must be at least 1; got {steps_left}")
    return -(-num_masked.long() // steps_left)


def learning_rate_factor(
    step: int, num_steps: int, warmup_steps: int, kind: Literal["constant", "linear", "cosine"], floor: float
) -> float:
    """Compute the learning rate of a training step as a share of its peak.

    A linear warm-up, (step + 1) / warmup_steps, reaches the peak at step warmup_steps - 1. From
    there the rate stays constant, or falls to `floor` at the last step, along a straight line or
    half a cosine.

    Args:
        step: training step, from 0; later steps have the value of the last one.
        num_steps: number of steps of the whole run.
        warmup_steps: length of the warm-up; 0 starts at the peak.
        kind: shape after the warm-up; "constant" ignores the floor.
        floor: share of the peak at step num_steps - 1, in [0, 1].

    Returns:
        Number in (0, 1], or 0 at the end if the floor is 0.

    Raises:
        ValueError: kind is unknown, step or warmup_steps is negative, num_steps is below 1, or
            floor is out of range.

    Example:
        >>> [round(learning_rate_factor(k, 6, 2, "linear", 0.2), 3) for k in range(6)]
        [0.5, 1.0, 0.8, 0.6, 0.4, 0.2]
    """
    if kind not in ("constant", "linear", "cosine"):
        raise ValueError(f'learning_rate_factor: unknown kind "{kind}". Available: constant, linear, cosine.')
    if step < 0 or num_steps < 1 or warmup_steps < 0 or not 0 <= floor <= 1:
        raise ValueError(
            "learning_rate_factor: needs step >= 0, num_steps >= 1, warmup_steps >= 0 and 0 <= floor <= 1; "
            f"got step = {step}, num_steps = {num_steps}, warmup_steps = {warmup_steps}, floor = {floor}"
        )
    peak, last = max(warmup_steps - 1, 0), num_steps - 1
    if step < peak:
        return (step + 1) / warmup_steps
    if kind == "constant" or last <= peak:
        return 1.0
    progress = min((step - peak) / (last - peak), 1.0)
    left = 1 - progress if kind == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return floor + (1 - floor) * left

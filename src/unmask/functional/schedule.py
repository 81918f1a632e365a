"""Number of tokens that each denoising step commits, evenly shared or adapted to the predictions, and
learning rate of each training step."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor


def tokens_at_step(num_masked: Int[Tensor, "B"], steps_left: Int[Tensor, "B"] | int) -> Int[Tensor, "B"]:
    """Compute the number of positions that a denoising step commits.

    The masked positions are shared evenly over the remaining steps, larger shares first: ⌈n / s⌉.
    From n positions and T steps at the start, every step commits ⌊n/T⌋ positions, and each of the
    first n mod T steps commits one more (LLaDA, arXiv:2502.09992). For n < T the last steps commit
    nothing.

    Args:
        num_masked: [B] int64 >= 0, number n of masked positions of each row.
        steps_left: number s >= 1 of remaining steps, this one included; [B] int64 if it differs
            between rows.

    Returns:
        [B] int64.

    Raises:
        ValueError: steps_left is below 1.

    Example:
        >>> import torch
        >>> tokens_at_step(torch.tensor([8, 5, 0]), steps_left=3)
        tensor([3, 2, 0])
    """
    if isinstance(steps_left, int) and steps_left < 1:
        raise ValueError(f"tokens_at_step: steps_left must be at least 1; got {steps_left}")
    return -(-num_masked.long() // steps_left)


def threshold_count(
    confidence: Float[Tensor, "B n"], num_masked: Int[Tensor, "B"], threshold: float
) -> Int[Tensor, "B"]:
    """Compute how many of the ranked positions have a confidence that reaches a threshold, up to
    the first that does not: the largest m with c_1, ..., c_m ≥ τ.

    With positions in falling order of confidence these are all positions that reach the threshold
    (Fast-dLLM, arXiv:2505.22618).

    Args:
        confidence: [B, n] probabilities c of the positions, in the order in which they would be
            committed.
        num_masked: [B] int64, number of masked positions of each row, which come first.
        threshold: lower bound τ of the confidence.

    Returns:
        [B] int64 counts, which may be 0.

    Example:
        >>> threshold_count(torch.tensor([[0.99, 0.95, 0.5, 0.95]]), torch.tensor([4]), 0.9)
        tensor([2])
    """
    return _prefix(confidence >= threshold, num_masked)


def factor_count(confidence: Float[Tensor, "B n"], num_masked: Int[Tensor, "B"], factor: float) -> Int[Tensor, "B"]:
    """Compute how many of the ranked positions the factor rule commits: the largest m with
    (j + 1)(1 - c_j) < f for all j ≤ m.

    The more positions a step commits, the surer the last of them has to be. If (m + 1)(1 - c_m) ≤ 1,
    the most likely tokens of the m positions are also the most likely sequence (Fast-dLLM,
    arXiv:2505.22618, theorem 1 and section 3.3).

    Args:
        confidence: [B, n] probabilities c of the positions; see `threshold_count`.
        num_masked: [B] int64, number of masked positions; see `threshold_count`.
        factor: factor f > 0.

    Returns:
        [B] int64 counts, which may be 0.

    Example:
        >>> factor_count(torch.tensor([[0.9, 0.8, 0.7, 0.6]]), torch.tensor([4]), 1.0)
        tensor([2])
    """
    size = torch.arange(1, confidence.shape[-1] + 1, device=confidence.device)
    return _prefix((size + 1) * (1 - confidence) < factor, num_masked)


def entropy_bound_count(entropy: Float[Tensor, "B n"], num_masked: Int[Tensor, "B"], budget: float) -> Int[Tensor, "B"]:
    """Compute how many of the ranked positions fit into a budget of entropy: the largest m with
    Σ_{j≤m} H_j - max_{j≤m} H_j ≤ γ.

    The left side bounds the mutual information of the m tokens, which a step neglects because it
    draws them independently (EB-Sampler, arXiv:2505.24857). It is 0 for a single position, so the
    count is at least 1.

    Args:
        entropy: [B, n] nats, entropies H of the positions in the order in which they would be
            committed.
        num_masked: [B] int64, number of masked positions; see `threshold_count`.
        budget: budget γ >= 0 in nats.

    Returns:
        [B] int64 counts.

    Example:
        >>> entropy_bound_count(torch.tensor([[0.1, 0.2, 0.3, 1.0]]), torch.tensor([4]), 0.35)
        tensor([3])
    """
    neglected = entropy.cumsum(dim=-1) - entropy.cummax(dim=-1).values
    return _prefix(neglected <= budget, num_masked)


def _prefix(is_within: Tensor, num_masked: Tensor) -> Tensor:
    """Return the number of masked positions before the first that is not within its bound, [B]."""
    is_masked = torch.arange(is_within.shape[-1], device=is_within.device) < num_masked.unsqueeze(-1)
    return (is_within & is_masked).long().cumprod(dim=-1).sum(dim=-1)


def learning_rate_factor(
    step: int,
    num_steps: int,
    warmup_steps: int,
    kind: Literal["constant", "linear", "cosine"],
    floor: float,
    spent: float = 0.0,
) -> float:
    """Compute the learning rate of a training step as a share of its peak.

    A linear warm-up, (step + 1) / warmup_steps, reaches the peak at step warmup_steps - 1. From
    there the rate stays constant, or falls to `floor` at the last step, along a straight line or
    half a cosine. A run with a limit of compute may end before its last step. Its rate falls with
    the share of the limit that is used if this share is the larger one, and the warm-up is an upper
    bound.

    Args:
        step: training step, from 0; later steps have the value of the last one.
        num_steps: number of steps of the whole run.
        warmup_steps: length of the warm-up; 0 starts at the peak.
        kind: shape after the warm-up; "constant" ignores the floor.
        floor: share of the peak at step num_steps - 1, in [0, 1].
        spent: share of the limit of compute that is used before this step, in [0, 1]; 0 without a
            limit.

    Returns:
        Number in (0, 1], or 0 at the end if the floor is 0.

    Raises:
        ValueError: kind is unknown, step or warmup_steps is negative, num_steps is below 1, or
            floor or spent is out of range.

    Example:
        >>> [round(learning_rate_factor(k, 6, 2, "linear", 0.2), 3) for k in range(6)]
        [0.5, 1.0, 0.8, 0.6, 0.4, 0.2]
        >>> [round(learning_rate_factor(k, 100, 2, "linear", 0.2, spent=k / 4), 3) for k in range(5)]
        [0.5, 0.8, 0.6, 0.4, 0.2]
    """
    if kind not in ("constant", "linear", "cosine"):
        raise ValueError(f'learning_rate_factor: unknown kind "{kind}". Available: constant, linear, cosine.')
    if step < 0 or num_steps < 1 or warmup_steps < 0 or not 0 <= floor <= 1 or not 0 <= spent <= 1:
        raise ValueError(
            "learning_rate_factor: needs step >= 0, num_steps >= 1, warmup_steps >= 0, 0 <= floor <= 1 and 0 <= spent <= 1; "
            f"got step = {step}, num_steps = {num_steps}, warmup_steps = {warmup_steps}, floor = {floor}, spent = {spent}"
        )
    peak, last = max(warmup_steps - 1, 0), num_steps - 1
    warm_up = (step + 1) / warmup_steps if step < peak else 1.0
    falls = peak <= step and peak < last
    if kind == "constant" or not (falls or spent):
        return warm_up
    progress = max(min((step - peak) / (last - peak), 1.0) if falls else 0.0, spent)
    left = 1 - progress if kind == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return min(warm_up, floor + (1 - floor) * left)

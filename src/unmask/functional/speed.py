"""A reward for speed beside the reward of the task: tokens of text for each forward pass of the
sampler (LightningRL, arXiv:2603.13319)."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor

from unmask.functional.advantage import z_score


def tokens_per_forward(num_tokens: Int[Tensor, "B"], num_steps: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
    """Compute the tokens of text that each denoising step of a completion wrote on average.

    Args:
        num_tokens: [B] int: tokens of the text of each completion.
        num_steps: [B] int: denoising steps that the completion took.

    Returns:
        [B] float32; 0 for a completion without text.

    Example:
        >>> tokens_per_forward(torch.tensor([12, 12, 0]), torch.tensor([3, 12, 1]))
        tensor([4., 1., 0.])
    """
    return num_tokens.float() / num_steps.clamp(min=1)


def with_speed(
    reward: Real[Tensor, "B"],
    speed: Float[Tensor, "B"],
    group_size: int,
    weight: float,
    scale: Literal["z_score", "minmax", "none"],
) -> Float[Tensor, "B"]:
    """Add a reward for speed to the reward of the task.

    - z_score: z(r) + w z(s), each in standard deviations of its group. Both then have the same unit,
      whatever their spread; in the sum of the raw numbers the wider one would decide.
    - minmax: r + w (s - min s) / (max s - min s), within the group; a group of equal speed gets w / 2.
    - none: r + w s.

    Args:
        reward: [B] rewards of the task; rows i G to (i+1) G - 1 are one group.
        speed: [B] tokens per forward pass.
        group_size: group size G >= 2, which divides B.
        weight: weight w >= 0 of the speed.
        scale: how the two rewards are normalised.

    Returns:
        [B] float32 (float64 if the rewards are).

    Raises:
        ValueError: the scale is unknown, or as in `group_advantage`.

    Example:
        >>> reward, speed = torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.tensor([2.0, 6.0, 2.0, 6.0])
        >>> with_speed(reward, speed, 2, 0.5, "z_score").round(decimals=2)
        tensor([ 0.5000, -0.5000, -0.5000,  0.5000])
        >>> with_speed(reward, speed, 2, 0.5, "minmax")
        tensor([1.0000, 0.5000, 1.0000, 1.5000])
    """
    if scale == "z_score":
        return z_score(reward, group_size, correction=0) + weight * z_score(speed, group_size, correction=0)
    if scale == "none":
        return reward + weight * speed
    if scale != "minmax":
        raise ValueError(f'with_speed: unknown scale "{scale}". Available: z_score, minmax, none.')
    groups = speed.view(-1, group_size)
    low, high = groups.min(-1, keepdim=True).values, groups.max(-1, keepdim=True).values
    place = torch.where(high > low, (groups - low) / (high - low).clamp(min=1e-12), 0.5)
    return reward + weight * place.flatten()

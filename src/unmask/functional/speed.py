"""A reward for speed beside the reward of the task: tokens of text for each forward pass of the
sampler (LightningRL, arXiv:2603.13319)."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Real
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


def lacks_contrast(
    speed: Float[Tensor, "B"], is_right: Bool[Tensor, "B"], group_size: int, min_range: float, *, needs_right: bool
) -> Bool[Tensor, "P"]:
    """Find the groups from which speed cannot be learned: those whose speeds differ by less than a
    bound, and those without a right completion.

    Args:
        speed: [B] tokens per forward pass; rows i G to (i+1) G - 1 are one group.
        is_right: [B] bool.
        group_size: group size G, which divides B.
        min_range: smallest difference between the fastest and the slowest completion; 0 for none.
        needs_right: True to find the groups without a right completion, too.

    Returns:
        [B / G] bool.

    Example:
        >>> speed, is_right = torch.tensor([2.0, 2.0, 1.0, 3.0, 1.0, 3.0]), torch.tensor([1, 0, 0, 0, 0, 1]).bool()
        >>> lacks_contrast(speed, is_right, 2, 0.01, needs_right=True)
        tensor([ True,  True, False])
    """
    groups = speed.view(-1, group_size)
    is_narrow = groups.max(-1).values - groups.min(-1).values < min_range
    is_wrong = ~is_right.view(-1, group_size).any(-1)
    return is_narrow | is_wrong if needs_right else is_narrow


def right_likelihood_loss(
    logprob: Float[Tensor, "N L"], weight: Float[Tensor, "N"], row: Int[Tensor, "N"], is_right: Bool[Tensor, "B"]
) -> Float[Tensor, "N"]:
    """Compute the negative log-likelihood of right completions, as a loss of each view.

    The sum over the views, divided by the number B of completions, is

        (1/R) Σ_{b right} Σ_{v of b} w_v Σ_i -log p(x_i),

    where R is the number of right completions. With the weights of a method, whose sum over the
    tokens of a completion is about 1, this is a mean over tokens.

    Args:
        logprob: [N, L] nats, 0 outside the targets; the result is differentiable in it.
        weight: [N] weights w of the views.
        row: [N] int: completion of each view.
        is_right: [B] bool, for all completions of the training step.

    Returns:
        [N] losses in nats; 0 for views of other completions.

    Example:
        >>> logprob = torch.tensor([[0.0, -1.0], [-2.0, -2.0]])
        >>> right_likelihood_loss(logprob, torch.tensor([0.5, 0.5]), torch.tensor([0, 1]), torch.tensor([False, True]))
        tensor([0., 4.])
    """
    scale = len(is_right) / is_right.sum().clamp(min=1)
    return scale * is_right[row] * weight * -logprob.sum(-1)

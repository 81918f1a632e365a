"""Importance weights between the old policy and the behaviour policy that sampled a rollout.

A rollout is approximate if it samples from another distribution than the policy that is trained:
with stale keys and values, with other kernels, or with older weights. Let μ be the behaviour policy
and π the old policy. The ratio w = π / μ of what was sampled turns a mean over samples of μ into a
mean under π. docs/behaviour.md derives which estimates become exact at which level.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Level = Literal["token", "step", "sequence"]
"""Unit whose probability is compared: one token, all tokens that a denoising step commits, or all
tokens of a completion."""

LevelOrOff = Literal["off", Level]
"""Level of the weights, or `off` for no weights."""


def behaviour_weight(
    log_ratio: Float[Tensor, "*batch"],
    num_tokens: Int[Tensor, "*batch"],
    cap: float = 0.0,
    band: tuple[float, float] | None = None,
) -> tuple[Float[Tensor, "*batch"], Bool[Tensor, "*batch"], Bool[Tensor, "*batch"]]:
    """Compute the truncated and masked importance weight of each unit.

    The weight is min(w, C) with w = π / μ (truncated importance sampling: Ionides, "Truncated
    importance sampling", 2008). It is 0 if the geometric mean w^(1/n) over the n tokens of the unit
    lies outside the band [a, b]. For single tokens that is IcePop's mask (Ling Team,
    arXiv:2510.18855); for whole completions it bounds the mean log-ratio, an estimate of the
    divergence of the two policies.

    Args:
        log_ratio: [...] nats: log π - log μ of a token, a step or a completion, a constant.
        num_tokens: [...] int: number n of tokens of the unit.
        cap: upper bound C of the weight, at least 1; 0 for none.
        band: bounds a <= 1 <= b of the geometric mean; None masks nothing.

    Returns:
        The weights, and two bool tensors: True where the cap holds, and True where the band masks
        the unit.

    Raises:
        ValueError: cap or band is out of range.

    Example:
        >>> log_ratio = torch.tensor([0.5, 1.0, 4.0]).log()
        >>> behaviour_weight(log_ratio, torch.tensor([1, 1, 2]), cap=2.0)
        (tensor([0.5000, 1.0000, 2.0000]), tensor([False, False,  True]), tensor([False, False, False]))
        >>> behaviour_weight(log_ratio, torch.tensor([1, 1, 2]), band=(0.6, 2.5))[2]
        tensor([ True, False, False])
    """
    if cap and not cap >= 1:
        raise ValueError(f"behaviour_weight: cap must be at least 1, or 0 for none; got {cap}")
    if band is not None and not 0 <= band[0] <= 1 <= band[1]:
        raise ValueError(f"behaviour_weight: band must have 0 <= low <= 1 <= high; got {band}")
    log_ratio = log_ratio.to(torch.promote_types(log_ratio.dtype, torch.float32))
    is_truncated = log_ratio > (math.log(cap) if cap else math.inf)
    is_masked = torch.zeros_like(is_truncated)
    if band is not None:
        mean_ratio = (log_ratio / num_tokens.clamp(min=1)).exp()
        is_masked = (mean_ratio < band[0]) | (mean_ratio > band[1])
    # The cap applies before the exponential, which overflows for a ratio of many tokens.
    weight = torch.where(is_truncated, cap, log_ratio.masked_fill(is_truncated, 0.0).exp())
    return weight.masked_fill(is_masked, 0.0), is_truncated & ~is_masked, is_masked


def effective_share(total: float, total_of_squares: float, count: float) -> float:
    """Compute the effective sample size of weighted samples, as a share of their number.

    (Σ w)² / (n Σ w²), after Kish, "Survey Sampling" (1965). It is 1 if all n weights are equal, and
    1/n if a single sample has all the weight.

    Args:
        total: Σ w.
        total_of_squares: Σ w².
        count: n, above 0.

    Example:
        >>> effective_share(4.0, 16.0, 4.0), effective_share(4.0, 4.0, 4.0), effective_share(0.0, 0.0, 4.0)
        (0.25, 1.0, 0.0)
    """
    return total**2 / (count * total_of_squares) if total_of_squares else 0.0

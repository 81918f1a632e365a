"""The clipped policy-gradient loss (PPO, arXiv:1707.06347) and two measures of the distance to a reference policy."""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_surrogate(
    log_ratio: Tensor, advantage: Tensor, epsilon: float, epsilon_high: float
) -> tuple[Tensor, Tensor]:
    """PPO's pessimistic loss with an asymmetric clip, element by element.

    ℓ = -min(ρ A, clip(ρ, 1-ε, 1+ε_high) A), ρ = exp(log π_new - log π_old); arXiv:1707.06347 eq. (7), the higher
    upper bound from DAPO (arXiv:2503.14476). At ρ = 1 its gradient is that of -A log π_new, the plain policy
    gradient.

    Args:
        log_ratio: real, nats, with graph; of a token, a step or a sequence.
        advantage: broadcasts to log_ratio.
        epsilon: ε >= 0; from 1 on there is no lower bound.
        epsilon_high: ε_high >= 0.

    Returns:
        The loss, float32 (float64 for float64), and a bool tensor: True where the clip is active and the gradient 0,
        that is where the ratio has already moved past the bound in the direction that the advantage asks for.

    Raises:
        ValueError: a negative bound.

    Example:
        >>> log_ratio = torch.tensor([1.0, 2.0, 0.5, 0.5]).log()
        >>> clipped_surrogate(log_ratio, torch.tensor([1.0, 1.0, 1.0, -1.0]), epsilon=0.2, epsilon_high=0.5)
        (tensor([-1.0000, -1.5000, -0.5000,  0.8000]), tensor([False,  True, False,  True]))
    """
    if epsilon < 0 or epsilon_high < 0:
        raise ValueError(
            "clipped_surrogate: needs epsilon >= 0 and epsilon_high >= 0; "
            f"got epsilon = {epsilon}, epsilon_high = {epsilon_high}"
        )
    log_ratio = log_ratio.to(torch.promote_types(log_ratio.dtype, torch.float32))
    ratio = log_ratio.detach().exp()
    low, high = 1 - epsilon, 1 + epsilon_high
    is_clipped = ((advantage > 0) & (ratio > high)) | ((advantage < 0) & (ratio < low))
    # The exponential with graph sees no clipped element: where it overflows, 0 times its gradient would be NaN.
    bounded = torch.where(is_clipped, ratio.clamp(low, high), log_ratio.masked_fill(is_clipped, 0.0).exp())
    return -bounded * advantage, is_clipped


def kl_k3(new: Tensor, reference: Tensor) -> Tensor:
    """One-sample estimate of KL(π_new || π_reference), k3 = exp(d) - d - 1 with d = log π_reference - log π_new.

    Schulman's "Approximating KL divergence" (2020), as in GRPO (arXiv:2402.03300 eq. 4). Unbiased if the sample comes
    from π_new, and never negative. Its gradient is not that of the KL: on samples of π_new it estimates the gradient
    of KL(π_reference || π_new) instead.

    Args:
        new: [...] nats, with graph: log-probabilities of the sample.
        reference: [...] nats, of the same sample.

    Returns:
        [...] float32 (float64 if either is), nats, >= 0; 0 only where the two agree.

    Example:
        >>> kl_k3(torch.tensor([-1.0, -1.0]), torch.tensor([-1.0, 0.0]))    # the second: e - 2
        tensor([0.0000, 0.7183])
    """
    d = reference.to(torch.promote_types(reference.dtype, torch.float32)) - new
    # expm1: near d = 0, exp(d) - 1 in float32 loses all digits of d²/2.
    return d.expm1() - d


def exact_kl(logprobs: Tensor, reference: Tensor) -> Tensor:
    """KL(π_new || π_reference) of whole token distributions, Σ_v p_v (log p_v - log q_v) with 0 log 0 = 0.

    A sum over the vocabulary, never a mean: a released code divides by V and so loses the term.

    Args:
        logprobs: [..., V] nats, normalised, with graph; -∞ for impossible tokens.
        reference: [..., V] nats, normalised; +∞ results where it rules out a token that logprobs allows.

    Returns:
        [...] float32 (float64 if either is), nats, >= 0 but for rounding.

    Raises:
        ValueError: the shapes disagree.

    Example:
        >>> exact_kl(torch.tensor([0.5, 0.5, 0.0]).log(), torch.tensor([0.25, 0.75, 0.0]).log())
        tensor(0.1438)
    """
    if logprobs.shape != reference.shape:
        raise ValueError(
            "exact_kl: logprobs and reference must have one shape [..., V]; "
            f"got {tuple(logprobs.shape)}, {tuple(reference.shape)}"
        )
    logprobs = logprobs.to(torch.promote_types(logprobs.dtype, torch.float32))
    probability = logprobs.exp()
    return (probability * (logprobs - reference).masked_fill(probability == 0, 0.0)).sum(dim=-1)

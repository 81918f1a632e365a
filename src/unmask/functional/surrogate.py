"""Policy-gradient losses with a trust region, and measures of the distance to a reference policy.

There are two trust regions: the clipped ratio of PPO (arXiv:1707.06347) with asymmetric and dual
bounds, and the divergence mask of DPPO (arXiv:2602.04879).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Real
from torch import Tensor


def clipped_surrogate(
    log_ratio: Float[Tensor, "*batch"],
    advantage: Real[Tensor, "*#batch"],
    epsilon: float,
    epsilon_high: float,
    dual: float = 0.0,
) -> tuple[Float[Tensor, "*batch"], Bool[Tensor, "*batch"]]:
    """Compute PPO's pessimistic loss with an asymmetric clip, elementwise.

    ℓ = -min(ρ A, clip(ρ, 1-ε, 1+ε_high) A), ρ = exp(log π_new - log π_old); arXiv:1707.06347 eq.
    (7), with the higher upper bound from DAPO (arXiv:2503.14476). At ρ = 1 its gradient is that of
    -A log π_new, the plain policy gradient. With a dual bound c, ℓ is at most -c A for A < 0 (Ye et
    al., arXiv:1912.09729), which limits the effect of a token that the new policy prefers far more
    than the old one.

    Args:
        log_ratio: real, nats, differentiable; log-ratio of a token, a step or a sequence.
        advantage: advantages, which broadcast to log_ratio.
        epsilon: lower bound ε >= 0; from 1 on there is no lower bound.
        epsilon_high: upper bound ε_high >= 0; infinite for no upper bound.
        dual: dual bound c > 1, or 0 for none.

    Returns:
        The loss, float32 (float64 for float64), and a bool tensor: True where a bound is active and
        the gradient is 0. There the ratio has moved past the bound in the direction of the
        advantage, or past c.

    Raises:
        ValueError: a bound is negative, or the dual bound is in (0, 1].

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
    if dual and dual <= 1:
        raise ValueError(f"clipped_surrogate: dual must be above 1, or 0 for none; got {dual}")
    log_ratio = log_ratio.to(torch.promote_types(log_ratio.dtype, torch.float32))
    ratio = log_ratio.detach().exp()
    low, high = torch.full_like(ratio, 1 - epsilon), torch.full_like(ratio, 1 + epsilon_high)
    is_clipped = ((advantage > 0) & (ratio > high)) | ((advantage < 0) & (ratio < low))
    if dual:
        is_beyond = (advantage < 0) & (ratio > dual)
        high, is_clipped = torch.where(is_beyond, dual, high), is_clipped | is_beyond
    # Clipped elements and elements of weight 0 are kept out of the exponential with graph: if it
    # overflows, 0 times it is NaN.
    is_idle = is_clipped | (advantage == 0)
    bounded = torch.where(is_clipped, ratio.clamp(low, high), log_ratio.masked_fill(is_idle, 0.0).exp())
    return -bounded * advantage, is_clipped


def divergence_surrogate(
    log_ratio: Float[Tensor, "*batch"],
    advantage: Real[Tensor, "*#batch"],
    divergence: Float[Tensor, "*#batch"],
    bound: float,
    cap: float = 0.0,
) -> tuple[Float[Tensor, "*batch"], Bool[Tensor, "*batch"]]:
    """Compute DPPO's loss of each token: the policy gradient with a capped ratio, and 0 where the
    policies differ too much and the update would widen the gap.

    The gradient is that of -sg(min(ρ, C)) A log π_new, where sg stops the gradient, and the value
    is -min(ρ, C) A. Both are 0 where D > δ and (A > 0 and ρ > 1, or A < 0 and ρ < 1);
    arXiv:2602.04879. D is the divergence between the distributions from which the token was and
    would be drawn. Unlike a bound on the ratio, a bound on D lets the probability of rare tokens
    move far and restrains that of frequent tokens. Unlike a clip, the cap keeps the gradient.

    Args:
        log_ratio: [...] nats, differentiable: log-ratio log ρ of a token.
        advantage: advantages, which broadcast to log_ratio.
        divergence: divergences D >= 0, which broadcast to log_ratio.
        bound: largest divergence δ >= 0.
        cap: upper bound C >= 1 of the ratio; 0 sets no bound.

    Returns:
        The loss, and a bool tensor that is True where the loss was set to 0.

    Raises:
        ValueError: a bound is out of range.

    Example:
        >>> log_ratio = torch.tensor([1.6, 4.0, 0.4, 40.0]).log()
        >>> divergence = torch.tensor([0.3, 0.03, 0.3, 0.1])
        >>> divergence_surrogate(log_ratio, torch.ones(4), divergence, bound=0.2, cap=20.0)
        (tensor([ -0.0000,  -4.0000,  -0.4000, -20.0000]), tensor([ True, False, False, False]))
    """
    if bound < 0 or (cap and cap < 1):
        raise ValueError(
            f"divergence_surrogate: needs bound >= 0, and cap >= 1 or 0 for no cap; got bound = {bound} and cap = {cap}"
        )
    log_ratio = log_ratio.to(torch.promote_types(log_ratio.dtype, torch.float32))
    moved = log_ratio.detach()
    widens = ((advantage > 0) & (moved > 0)) | ((advantage < 0) & (moved < 0))
    is_dropped = (divergence > bound) & widens
    # The cap applies before the exponential, which could overflow; so does the choice of the
    # elements whose ratio counts.
    is_idle = is_dropped | (advantage == 0)
    capped = moved.masked_fill(is_idle, 0.0).clamp(max=math.log(cap) if cap else math.inf).exp()
    # Its value is 1 and its gradient that of the log-ratio.
    unit = (log_ratio - moved).masked_fill(is_idle, 0.0).exp()
    return -(capped * unit * advantage).masked_fill(is_dropped, 0.0), is_dropped


def kl_k3(new: Float[Tensor, "*batch"], reference: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Estimate KL(π_new || π_reference) from one sample, k3 = exp(d) - d - 1 with d = log
    π_reference - log π_new.

    The estimator is from Schulman's "Approximating KL divergence" (2020), as in GRPO
    (arXiv:2402.03300 eq. 4). The estimate is unbiased for samples of π_new, and never negative. On
    samples of π_new, its gradient estimates the gradient of KL(π_reference || π_new), not of this
    KL.

    Args:
        new: [...] nats, differentiable: log-probabilities of the sample.
        reference: [...] nats: log-probabilities of the same sample.

    Returns:
        [...] float32 (float64 if either is), nats, >= 0; 0 only where the two agree.

    Example:
        >>> kl_k3(torch.tensor([-1.0, -1.0]), torch.tensor([-1.0, 0.0]))    # the second: e - 2
        tensor([0.0000, 0.7183])
    """
    d = reference.to(torch.promote_types(reference.dtype, torch.float32)) - new
    # expm1, because near d = 0 the float32 value of exp(d) - 1 loses all digits of d²/2.
    return d.expm1() - d


def kl_k2(new: Float[Tensor, "*batch"], reference: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Compute half the squared log-ratio, k2 = d²/2 with d = log π_new - log π_reference.

    The estimator is from Schulman's "Approximating KL divergence" (2020). The value is biased, but
    on samples of π_new its gradient is that of KL(π_new || π_reference). As a polynomial it does
    not overflow for large d, which is why ESPO (arXiv:2512.03759) uses it.

    Args:
        new: [...] nats, differentiable: log-probabilities (or ELBOs) of the sample.
        reference: [...] nats: those of the same sample.

    Returns:
        [...] float32 (float64 if either is), nats squared, >= 0.

    Example:
        >>> kl_k2(torch.tensor([-1.0, -1.0]), torch.tensor([-1.0, 1.0]))
        tensor([0., 2.])
    """
    return 0.5 * (new - reference.to(torch.promote_types(reference.dtype, torch.float32))).square()


def exact_kl(logprobs: Float[Tensor, "*batch V"], reference: Float[Tensor, "*batch V"]) -> Float[Tensor, "*batch"]:
    """Compute KL(π_new || π_reference) of whole token distributions, Σ_v p_v (log p_v - log q_v)
    with 0 log 0 = 0.

    This is a sum over the vocabulary, not a mean: some released code divides by V, which makes the
    term negligible.

    Args:
        logprobs: [..., V] nats, normalised, differentiable; -∞ for impossible tokens.
        reference: [..., V] nats, normalised; the result is +∞ if it excludes a token that logprobs
            allows.

    Returns:
        [...] float32 (float64 if either is), nats, >= 0 up to rounding.

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

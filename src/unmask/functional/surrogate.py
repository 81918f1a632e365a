"""Policy-gradient losses with a trust region, and measures of the distance to a reference policy.

There are two trust regions: the clipped ratio of PPO (arXiv:1707.06347) with asymmetric and dual
bounds, and the divergence mask of DPPO (arXiv:2602.04879).
"""

from __future__ import annotations

from typing import Literal

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


def divergence_masked_surrogate(
    log_ratio: Float[Tensor, "*batch"],
    advantage: Real[Tensor, "*#batch"],
    new_logprob: Float[Tensor, "*batch"],
    kind: Literal["tv", "kl"],
    bound: float,
) -> tuple[Float[Tensor, "*batch"], Bool[Tensor, "*batch"]]:
    """Compute the policy-gradient loss with DPPO's mask: 0 where the policies differ too much and
    the update would widen the gap.

    The loss is ℓ = -ρ A, but 0 where D > δ and (A > 0 and ρ > 1, or A < 0 and ρ < 1); see
    arXiv:2602.04879. D is the divergence between the two-way splits into the sample and all other
    outcomes. D needs only two probabilities of the sample, p (new) and q (old): it is the total
    variation |p - q|, or KL(old || new) = q log(q/p) + (1 - q) log((1 - q)/(1 - p)). Unlike a bound
    on the ratio, a bound on D lets the probability of rare samples move far and restrains that of
    frequent samples.

    Args:
        log_ratio: [...] nats, differentiable; log-ratio of a token or a step.
        advantage: advantages, which broadcast to log_ratio.
        new_logprob: [...] nats, log-probability of the sample under the new policy, which must be
            discrete.
        kind: kind of divergence.
        bound: largest divergence δ >= 0.

    Returns:
        The loss, and a bool tensor that is True where the loss was set to 0.

    Raises:
        ValueError: the kind is unknown, or the bound is negative.

    Example:
        >>> old, new = torch.tensor([0.5, 0.01, 0.5]), torch.tensor([0.8, 0.04, 0.2])
        >>> loss, is_dropped = divergence_masked_surrogate((new / old).log(), torch.ones(3), new.log(), "tv", 0.2)
        >>> loss, is_dropped
        (tensor([-0.0000, -4.0000, -0.4000]), tensor([ True, False, False]))
    """
    if kind not in ("tv", "kl") or bound < 0:
        raise ValueError(
            f'divergence_masked_surrogate: needs kind "tv" or "kl" and bound >= 0; got "{kind}" and bound = {bound}'
        )
    log_ratio = log_ratio.to(torch.promote_types(log_ratio.dtype, torch.float32))
    ratio = log_ratio.detach()
    new = new_logprob.detach().to(log_ratio.dtype)
    old = new - ratio
    if kind == "tv":
        divergence = (new.exp() - old.exp()).abs()
    else:
        # log(1 - p) by log1p; if a policy is certain of the sample, a floor replaces log 0.
        rest_new, rest_old = (torch.log1p(-value.exp().clamp(max=1 - 1e-7)) for value in (new, old))
        divergence = old.exp() * -ratio + rest_old.exp() * (rest_old - rest_new)
    widens = ((advantage > 0) & (ratio > 0)) | ((advantage < 0) & (ratio < 0))
    is_dropped = (divergence > bound) & widens
    return -log_ratio.masked_fill(is_dropped, -torch.inf).exp() * advantage, is_dropped


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

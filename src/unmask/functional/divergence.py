"""Divergences between two distributions of one token, by which a trust region limits an update.

The two-way divergences of DPPO (arXiv:2602.04879) need only the probabilities of the sampled token.
A masked model computes the logits of all tokens at every position that it scores, so the exact
divergence over the whole vocabulary costs no further forward pass if both distributions are at
hand.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor


def binary_divergence(
    new: Float[Tensor, "*batch"], old: Float[Tensor, "*batch"], kind: Literal["tv", "kl"]
) -> Float[Tensor, "*batch"]:
    """Compute the divergence between the two-way splits of two distributions into the sampled token
    and all other tokens.

    With p and q the new and the old probability of the token, it is the total variation |p - q|, or
    KL(old || new) = q log(q/p) + (1 - q) log((1 - q)/(1 - p)); arXiv:2602.04879, "Binary-TV" and
    "Binary-KL". Merging tokens cannot raise a divergence, so the result is a lower bound of the
    divergence over the whole vocabulary.

    Args:
        new: [...] nats: log-probability of the token under the new policy.
        old: [...] nats: its log-probability under the old policy.
        kind: total variation or KL.

    Returns:
        [...] float32 (float64 if either is), without graph; in nats for the KL.

    Raises:
        ValueError: the kind is unknown.

    Example:
        >>> binary_divergence(torch.tensor(0.8).log(), torch.tensor(0.5).log(), "tv")
        tensor(0.3000)
        >>> binary_divergence(torch.tensor(0.8).log(), torch.tensor(0.5).log(), "kl")
        tensor(0.2231)
    """
    if kind not in ("tv", "kl"):
        raise ValueError(f'binary_divergence: unknown kind "{kind}". Available: tv, kl.')
    new = new.detach().to(torch.promote_types(new.dtype, torch.float32))
    old = old.detach().to(torch.promote_types(old.dtype, new.dtype))
    if kind == "tv":
        return (new.exp() - old.exp()).abs()
    # log(1 - p) by log1p; if a policy is certain of the token, a floor replaces log 0.
    rest_new, rest_old = (torch.log1p(-value.exp().clamp(max=1 - 1e-7)) for value in (new, old))
    return old.exp() * (old - new) + rest_old.exp() * (rest_old - rest_new)


def total_variation(
    logprobs: Float[Tensor, "*batch V"], reference: Float[Tensor, "*batch V"]
) -> Float[Tensor, "*batch"]:
    """Compute the total variation between token distributions, ½ Σ_v |p_v - q_v|.

    Args:
        logprobs: [..., V] nats, normalised; -∞ for impossible tokens.
        reference: [..., V] nats, normalised.

    Returns:
        [...] float32 (float64 if either is), in [0, 1].

    Raises:
        ValueError: the shapes disagree.

    Example:
        >>> total_variation(torch.tensor([0.5, 0.5, 0.0]).log(), torch.tensor([0.25, 0.25, 0.5]).log())
        tensor(0.5000)
    """
    if logprobs.shape != reference.shape:
        raise ValueError(
            "total_variation: logprobs and reference must have one shape [..., V]; "
            f"got {tuple(logprobs.shape)}, {tuple(reference.shape)}"
        )
    logprobs = logprobs.to(torch.promote_types(logprobs.dtype, torch.float32))
    return 0.5 * (logprobs.exp() - reference.exp()).abs().sum(dim=-1)

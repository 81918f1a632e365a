"""The Plackett-Luce distribution of orderings (Plackett 1975; Luce 1959): items drawn one by one without replacement.

Each is drawn with probability proportional to exp(score) among those that are left. Sorting scores plus independent Gumbel noise
draws such an ordering (Yellott 1977), so a sampler needs one draw for each item and no loop.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def gumbel_noise(uniform: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Standard Gumbel numbers from uniform ones, -log(-log u).

    Args:
        uniform: float64 in [0, 1).

    Returns:
        Its shape, float64, finite.

    Example:
        >>> gumbel_noise(torch.tensor([0.5], dtype=torch.float64))
        tensor([0.3665], dtype=torch.float64)
    """
    return -torch.log(-torch.log(uniform.double().clamp(min=torch.finfo(torch.float64).tiny)))


def plackett_luce_logprob(
    score: Float[Tensor, "*batch n"],
    rank: Int[Tensor, "*batch n"],
    is_available: Bool[Tensor, "*batch n"],
    urn: Int[Tensor, "*batch n"] | None = None,
) -> Float[Tensor, "*batch n"]:
    """Log-probability with which each item was drawn from those that were left when its turn came.

    s_i - log Σ_{j: available, rank_j >= rank_i} exp(s_j). Summed over the first n ranks it is the log-probability of that ordered
    draw of n items; not of the set that they make, which is a sum over its orderings.

    Args:
        score: [..., n] real, with graph where wanted.
        rank: [..., n] int, place in the order of drawing; items that were not drawn have larger ranks than those that were.
        is_available: [..., n] bool, False for what cannot be drawn.
        urn: [..., n] int; items of different urns do not compete. Default one urn.

    Returns:
        [..., n] float32 (float64 for float64), nats, <= 0; of use for items that were drawn, finite for all that can be.

    Raises:
        ValueError: the shapes disagree.

    Example:
        >>> score = torch.tensor([2.0, 1.0, 1.0]).log()
        >>> plackett_luce_logprob(score, torch.tensor([0, 1, 2]), torch.ones(3, dtype=torch.bool)).exp()
        tensor([0.5000, 0.5000, 1.0000])
    """
    if not score.shape == rank.shape == is_available.shape or (urn is not None and urn.shape != score.shape):
        raise ValueError(
            "plackett_luce_logprob: score, rank, is_available and urn must have one shape [..., n]; "
            f"got {tuple(score.shape)}, {tuple(rank.shape)}, {tuple(is_available.shape)}"
        )
    score = score.to(torch.promote_types(score.dtype, torch.float32))
    is_rival = is_available.unsqueeze(-2) & (rank.unsqueeze(-2) >= rank.unsqueeze(-1))
    if urn is not None:
        is_rival = is_rival & (urn.unsqueeze(-2) == urn.unsqueeze(-1))
    # Each competes with itself, so that what cannot be drawn gives no -∞ and no NaN in the gradient.
    is_rival = is_rival | torch.eye(score.shape[-1], dtype=torch.bool, device=score.device)
    rivals = score.unsqueeze(-2).expand(is_rival.shape).masked_fill(~is_rival, -torch.inf)
    return score - rivals.logsumexp(dim=-1)

"""The Plackett-Luce distribution of orderings (Plackett 1975; Luce 1959): items drawn one by one
without replacement.

Each item is drawn with probability proportional to exp(logit) among those that are left. Sorting
logits plus independent Gumbel noise draws such an ordering (Yellott 1977), so a sampler needs one
draw per item and no loop.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def gumbel_noise(uniform: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Turn uniform numbers into standard Gumbel numbers, -log(-log u).

    Args:
        uniform: float64 in [0, 1).

    Returns:
        Finite float64 of the same shape.

    Example:
        >>> gumbel_noise(torch.tensor([0.5], dtype=torch.float64))
        tensor([0.3665], dtype=torch.float64)
    """
    return -torch.log(-torch.log(uniform.double().clamp(min=torch.finfo(torch.float64).tiny)))


def plackett_luce_logprob(
    logit: Float[Tensor, "*batch n"],
    rank: Int[Tensor, "*batch n"],
    is_available: Bool[Tensor, "*batch n"],
    urn: Int[Tensor, "*batch n"] | None = None,
) -> Float[Tensor, "*batch n"]:
    """Compute the log-probability of drawing each item from those that are left at its turn.

    The value of item i is s_i - log Σ_{j: available, rank_j >= rank_i} exp(s_j). The sum over the
    first n ranks is the log-probability of the ordered draw of n items. This is not the
    log-probability of the set of items, which is a sum over all orderings of the set.

    Args:
        logit: [..., n] real logits s; the result is differentiable in s.
        rank: [..., n] int place in the order of drawing; items that were not drawn have larger
            ranks than drawn items.
        is_available: [..., n] bool, False for items that cannot be drawn.
        urn: [..., n] int: urn that holds the item; an item competes only with items of its own urn.
            By default there is one urn.

    Returns:
        [..., n] float32 (float64 for float64), nats, <= 0. The value is meaningful for drawn items,
        and finite for all available items.

    Raises:
        ValueError: the shapes disagree.

    Example:
        >>> logit = torch.tensor([2.0, 1.0, 1.0]).log()
        >>> plackett_luce_logprob(logit, torch.tensor([0, 1, 2]), torch.ones(3, dtype=torch.bool)).exp()
        tensor([0.5000, 0.5000, 1.0000])
    """
    if not logit.shape == rank.shape == is_available.shape or (urn is not None and urn.shape != logit.shape):
        raise ValueError(
            "plackett_luce_logprob: logit, rank, is_available and urn must have one shape [..., n]; "
            f"got {tuple(logit.shape)}, {tuple(rank.shape)}, {tuple(is_available.shape)}"
        )
    logit = logit.to(torch.promote_types(logit.dtype, torch.float32))
    is_rival = is_available.unsqueeze(-2) & (rank.unsqueeze(-2) >= rank.unsqueeze(-1))
    if urn is not None:
        is_rival = is_rival & (urn.unsqueeze(-2) == urn.unsqueeze(-1))
    # Each item competes with itself, so that an unavailable one gives no -∞, and no NaN in the
    # gradient.
    is_rival = is_rival | torch.eye(logit.shape[-1], dtype=torch.bool, device=logit.device)
    rivals = logit.unsqueeze(-2).expand(is_rival.shape).masked_fill(~is_rival, -torch.inf)
    return logit - rivals.logsumexp(dim=-1)

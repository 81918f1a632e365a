"""Order `margin`: commit the positions where the most likely token leads by the most."""

from __future__ import annotations

from torch import Tensor

from unmask.sampling.orders.proposal import Proposal


def margin(proposal: Proposal) -> Tensor:
    """Return p(most likely) - p(second most likely) at temperature 1, [B, n].

    The choice is a function of the state alone, as for `entropy`.
    """
    top = proposal.logits.float().softmax(-1).topk(2, dim=-1).values
    return top[..., 0] - top[..., 1]

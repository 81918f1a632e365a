"""Order `margin`: commit the positions with the largest gap between the probabilities of the two
most likely tokens."""

from __future__ import annotations

from torch import Tensor

from unmask.sampling.orders.proposal import Proposal


def margin(proposal: Proposal) -> Tensor:
    """Return p(most likely) - p(second most likely) at temperature 1, [B, n].

    The choice is a function of the state alone, as for `entropy`.
    """
    top = proposal.logits.float().softmax(-1).topk(2, dim=-1).values
    return top[..., 0] - top[..., 1]

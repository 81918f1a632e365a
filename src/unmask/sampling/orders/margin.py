"""Order `margin`: the positions where the likeliest token leads by most."""

from __future__ import annotations

from torch import Tensor

from unmask.sampling.orders.proposal import Proposal


def margin(proposal: Proposal) -> Tensor:
    """[B, n] scores: p(likeliest) - p(second) at temperature 1. As for `entropy`, the choice is a function of the state."""
    top = proposal.logits.float().softmax(-1).topk(2, dim=-1).values
    return top[..., 0] - top[..., 1]

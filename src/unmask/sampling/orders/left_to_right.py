"""Order `left_to_right`: as an autoregressive model writes."""

from __future__ import annotations

from torch import Tensor

from unmask.sampling.orders.proposal import Proposal


def left_to_right(proposal: Proposal) -> Tensor:
    """[B, n] scores: earlier positions first, whatever the model says; the token term is exact."""
    return -proposal.positions

"""Order `left_to_right`: commit positions as an autoregressive model does."""

from __future__ import annotations

from torch import Tensor

from unmask.sampling.orders.proposal import Proposal


def left_to_right(proposal: Proposal) -> Tensor:
    """Return minus the position, [B, n]; the order does not depend on θ, so the token term is
    exact."""
    return -proposal.positions

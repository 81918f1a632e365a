"""Order `random`: commit positions in uniformly random order, independently of the model."""

from __future__ import annotations

from torch import Tensor

from unmask.functional.noise import ORDER_STREAM, counter_uniform
from unmask.sampling.orders.proposal import Proposal


def random(proposal: Proposal) -> Tensor:
    """Return fresh uniform noise at every step, [B, n].

    The choice does not depend on θ, so the term of the choice in the policy gradient is zero and
    the token term is exact.
    """
    return counter_uniform(proposal.seed.unsqueeze(-1), ORDER_STREAM, proposal.step, proposal.positions)

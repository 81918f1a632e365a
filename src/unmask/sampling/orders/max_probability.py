"""Order `max_probability`: commit the positions whose most likely token is the most probable, whatever
token was drawn there."""

from __future__ import annotations

from torch import Tensor

from unmask.sampling.orders.proposal import Proposal


def max_probability(proposal: Proposal) -> Tensor:
    """Return the log-probability of the most likely token at temperature 1, [B, n].

    The choice is a function of the state alone, as for `entropy`. At temperature 0 it is that of
    `low_confidence`.
    """
    logits = proposal.logits.float()
    return logits.max(-1).values - logits.logsumexp(-1)

"""Order `plackett_luce`: draw positions without replacement. Confident positions are drawn more
often, and the probability of each draw is known exactly.

The order follows mask-aware policy gradients (arXiv:2607.15200) except for the logit of a position.
In the paper the logit is the probability of the drawn token, so tokens drawn at uncommitted
positions are part of the action and would have to be recorded. Here the logit is the probability of
the most likely token, which is a function of the state alone. The preference for confident
positions is the same, and the state is enough to compute the probability of the choice.
"""

from __future__ import annotations

from torch import Tensor

from unmask.functional.noise import ORDER_STREAM, counter_uniform
from unmask.functional.plackett_luce import gumbel_noise
from unmask.sampling.orders.proposal import Proposal


def position_logit(logits: Tensor, temperature: float) -> Tensor:
    """Return the log-probability of the most likely token at temperature 1, divided by the order's
    temperature, [..., n].

    Args:
        logits: [..., n, V] logits at temperature 1.
        temperature: temperature τ > 0. Small values commit the most confident positions, large
            values random ones.
    """
    logits = logits.float() if logits.dtype.itemsize < 4 else logits
    return (logits.max(-1).values - logits.logsumexp(-1)) / temperature


def plackett_luce(proposal: Proposal) -> Tensor:
    """Return the position logits plus Gumbel noise, [B, n]; the largest values are a draw without
    replacement."""
    return position_logit(proposal.logits, proposal.temperature) + gumbel_of(proposal)


def gumbel_of(proposal: Proposal) -> Tensor:
    """Return the Gumbel noise of a step, [B, n] float64."""
    uniform = counter_uniform(proposal.seed.unsqueeze(-1), ORDER_STREAM, proposal.step, proposal.positions)
    return gumbel_noise(uniform)

"""Order `plackett_luce`: positions drawn without replacement, the confident ones more often; its probability is known exactly.

As in mask-aware policy gradients (arXiv:2607.15200), but for the score. There it is the probability of the token that was drawn,
so what was drawn at positions that were not committed is a part of the action and would have to be recorded and scored too. Here
it is the probability of the likeliest token, a function of the state alone: the same preference for sure positions, and the
probability of the choice needs nothing but the state.
"""

from __future__ import annotations

from torch import Tensor

from unmask.functional.noise import ORDER_STREAM, counter_uniform
from unmask.functional.plackett_luce import gumbel_noise
from unmask.sampling.orders.proposal import Proposal


def position_logit(logits: Tensor, temperature: float) -> Tensor:
    """[..., n] log-probability of the likeliest token at temperature 1, over the order's own temperature.

    Args:
        logits: [..., n, V] at temperature 1.
        temperature: τ > 0; towards 0 the surest positions are committed, for large τ random ones.
    """
    logits = logits.float() if logits.dtype.itemsize < 4 else logits
    return (logits.max(-1).values - logits.logsumexp(-1)) / temperature


def plackett_luce(proposal: Proposal) -> Tensor:
    """[B, n] scores: the choice's own plus Gumbel noise, whose largest are a draw without replacement."""
    uniform = counter_uniform(proposal.seed.unsqueeze(-1), ORDER_STREAM, proposal.step, proposal.positions)
    return position_logit(proposal.logits, proposal.temperature) + gumbel_noise(uniform)

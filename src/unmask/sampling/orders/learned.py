"""Order `learned`: draw positions without replacement by the scores of a position head, which is a
part of the model and is trained with it (DCoLT, arXiv:2505.10446).

The logit of a position is that of `plackett_luce` plus the score of the head. The score of a new head
is 0, so training starts from the order `plackett_luce`. At a large temperature of the order the first
part vanishes and the score alone remains, as in the paper.
"""

from __future__ import annotations

from torch import Tensor

from unmask.sampling.orders.plackett_luce import gumbel_of, position_logit
from unmask.sampling.orders.proposal import Proposal


def learned(proposal: Proposal) -> Tensor:
    """Return the position logits plus Gumbel noise, [B, n].

    The choice is a function of the state and of the noise, not of the drawn tokens. Greedy decoding
    commits the positions of the largest logits, without noise, as the released code of the paper
    does.
    """
    assert proposal.score is not None
    logit = position_logit(proposal.logits, proposal.temperature) + proposal.score
    return logit if proposal.is_greedy else logit + gumbel_of(proposal)

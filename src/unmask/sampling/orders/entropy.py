"""Order `entropy`: the positions of which the model is surest, whatever token was drawn there."""

from __future__ import annotations

from torch import Tensor

from unmask.functional.distribution import token_entropy, token_logprobs
from unmask.sampling.orders.proposal import Proposal


def entropy(proposal: Proposal) -> Tensor:
    """[B, n] scores: minus the entropy at temperature 1.

    The choice is a function of the state alone and piecewise constant in θ, so at a fixed θ the token term is exact. Another θ
    may order positions differently, and a ratio of token probabilities does not see that.
    """
    return -token_entropy(token_logprobs(proposal.logits))

"""Order `entropy`: commit the positions of lowest entropy, whatever token was drawn there."""

from __future__ import annotations

from torch import Tensor

from unmask.functional.distribution import token_entropy, token_logprobs
from unmask.sampling.orders.proposal import Proposal


def entropy(proposal: Proposal) -> Tensor:
    """Return minus the entropy at temperature 1, [B, n].

    The choice is a function of the state alone and piecewise constant in θ, so at a fixed θ the
    token term of the policy gradient is exact. Another θ may order the positions differently, and a
    ratio of token probabilities ignores this difference.
    """
    return -token_entropy(token_logprobs(proposal.logits))

"""Order `entropy`: the positions of which the model is surest, whatever token was drawn there."""

from __future__ import annotations

from torch import Tensor

from unmask.functional.distribution import token_entropy, token_logprobs
from unmask.samplers.orders.proposal import Proposal


def entropy(proposal: Proposal) -> Tensor:
    """[B, n] scores: minus the entropy at temperature 1. The choice depends on θ; its gradient term is dropped."""
    return -token_entropy(token_logprobs(proposal.logits))

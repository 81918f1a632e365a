"""Order `low_confidence`: the published name says what is *re*-masked, the least confident; the most confident are committed."""

from __future__ import annotations

from torch import Tensor

from unmask.sampling.orders.proposal import Proposal


def low_confidence(proposal: Proposal) -> Tensor:
    """[B, n] scores: log-probability of the proposed token at temperature 1 (LLaDA, arXiv:2502.09992).

    The choice of positions depends on θ and on the drawn tokens; its term of the policy gradient is dropped by the papers.
    """
    chosen = proposal.logits.gather(-1, proposal.tokens.unsqueeze(-1)).squeeze(-1)
    return chosen.float() - proposal.logits.float().logsumexp(-1)

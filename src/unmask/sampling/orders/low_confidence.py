"""Order `low_confidence`: commit the most confident positions. The published name refers to the
least confident positions, which are *re*masked."""

from __future__ import annotations

from torch import Tensor

from unmask.sampling.orders.proposal import Proposal


def low_confidence(proposal: Proposal) -> Tensor:
    """Return the log-probability of the proposed token at temperature 1, [B, n] (LLaDA,
    arXiv:2502.09992).

    The choice of positions depends on θ and on the drawn tokens. Published methods leave the term
    of this choice out of the policy gradient.
    """
    chosen = proposal.logits.gather(-1, proposal.tokens.unsqueeze(-1)).squeeze(-1)
    return chosen.float() - proposal.logits.float().logsumexp(-1)

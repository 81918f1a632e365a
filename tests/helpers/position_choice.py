"""The gradient of the probability of the positions that confident steps commit, by enumeration."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from tests.helpers.toy import Path, Toy

EXACT = {"rtol": 0.0, "atol": 1e-10}


def dropped_gradient(small: Toy, paths: list[Path], probability: Tensor, bound: float = inf) -> Tensor:
    """Return the part of the policy gradient that an estimate without the choice of positions lacks,
    the sum of P(path) (r - E[r]) times the gradient of log P(choice | path).

    Under the order `low_confidence` a step commits its most confident proposals, so P(U_k | x_k,
    committed tokens) is the probability that each other masked position got a proposal less confident
    than all that were committed. Under a threshold its confidence is also below the bound. The product
    with the probabilities of the committed tokens is checked against the probability of each path.

    Args:
        small: the enumerable problem.
        paths: every path, without the proposals that were not committed.
        probability: the probability of each.
        bound: threshold of the schedule, as a probability.
    """
    confidence = small.logprobs(1.0).detach().exp()
    table = small.logprobs(small.temperature)
    log_choice = []
    for path in paths:
        terms = [torch.zeros((), dtype=torch.float64)]
        for step in range(max(k for k, *_ in path.draws) + 1):
            committed = [(state, i, token) for k, state, i, token in path.draws if k == step]
            least = min(bound, *(float(confidence[draw]) for draw in committed))
            state = committed[0][0]
            for i in (i for i, when in enumerate(path.when) if when > step):
                terms.append(table[state, i][confidence[state, i] < least].exp().sum().log())
        log_choice.append(torch.stack(terms).sum())
    choice = torch.stack(log_choice)
    tokens = small.gather(table, [path.draws for path in paths])
    torch.testing.assert_close((tokens + choice).exp().detach(), probability, **EXACT)
    # The baseline matters here: without the choice, the expected score function is not zero.
    reward = small.reward(paths)
    return small.gradient((probability * (reward - (probability * reward).sum()) * choice).sum())

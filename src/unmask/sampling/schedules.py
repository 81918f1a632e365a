"""Adaptive schedules: how many positions a denoising step commits, as a function of its predictions.
Each schedule has one entry in `SCHEDULES`.

The order ranks the masked positions of the block, and the schedule commits the first of them up to a
bound. *Which* positions these are is therefore always the choice of the order, and so is the answer
to the question whether the choice depends on the drawn tokens:

- Under `low_confidence` the confidence of a position is the probability of its drawn token, as in
  Fast-dLLM (arXiv:2505.22618). The number of positions then depends on what was drawn, and the term
  of this choice is missing from the recorded log-probabilities.
- Under every other order it is the probability of the most likely token, which is a function of the
  state alone. The recorded token log-probabilities are then those of the step, as for the order
  `entropy` under a fixed schedule.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from unmask.core.config import SamplerConfig
from unmask.core.schedules import Schedule
from unmask.functional.distribution import token_entropy, token_logprobs
from unmask.functional.schedule import entropy_bound_count, factor_count, threshold_count
from unmask.sampling.orders import ORDERS, Proposal
from unmask.sampling.orders.low_confidence import low_confidence
from unmask.sampling.orders.max_probability import max_probability


def _confidence(proposal: Proposal, order: str) -> Tensor:
    """Return the probability of the drawn token under `low_confidence`, and otherwise that of the
    most likely token, [B, n] at temperature 1."""
    logprob = low_confidence if ORDERS.get(order) is low_confidence else max_probability
    return logprob(proposal).exp()


def _entropy(proposal: Proposal, order: str) -> Tensor:
    """Return the entropy of each position in nats, [B, n] at temperature 1."""
    del order
    return token_entropy(token_logprobs(proposal.logits))


class AdaptiveRule(NamedTuple):
    """A rule of `unmask.functional.schedule` with the quantity that it compares with its bound."""

    measure: Callable[[Proposal, str], Tensor]
    """Maps a proposal and the name of its order to [B, n] numbers, one for each position."""
    admitted: Callable[[Tensor, Tensor, float], Tensor]
    """Maps these numbers in the order of their ranks, the number of masked positions [B] and the
    bound to the number of positions to commit, [B]."""


SCHEDULES: dict[str, AdaptiveRule] = {
    "entropy_bound": AdaptiveRule(_entropy, entropy_bound_count),
    "factor": AdaptiveRule(_confidence, factor_count),
    "threshold": AdaptiveRule(_confidence, threshold_count),
}


def measured(proposal: Proposal, sampler: SamplerConfig) -> Tensor | None:
    """Return the quantity that the sampler's schedule compares with its bound, [B, n] for each
    position; None for the schedule `fixed`."""
    schedule = Schedule.parse(sampler.schedule)
    return SCHEDULES[schedule.type].measure(proposal, sampler.order).float() if schedule.is_adaptive else None


def adaptive_count(measure: Tensor, rank: Tensor, num_masked: Tensor, sampler: SamplerConfig) -> Tensor:
    """Return the number of positions that the sampler's adaptive schedule commits, [b] int64.

    Args:
        measure: [b, m] float32 from `measured`.
        rank: [b, m] int64, place of each position in the order; masked positions come first.
        num_masked: [b] int64, number of masked positions of the block.
        sampler: settings of the sampler.
    """
    schedule = Schedule.parse(sampler.schedule)
    ranked = torch.zeros_like(measure).scatter(-1, rank, measure)
    return SCHEDULES[schedule.type].admitted(ranked, num_masked, schedule.bound)

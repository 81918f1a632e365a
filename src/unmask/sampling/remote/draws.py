"""Checks of whether the tokens of a rollout are draws from the policy that replayed it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unmask.core.records import Trajectory
from unmask.functional.drawn import draw_evidence
from unmask.sampling.replay import Replayed

TEST_SIZE = 1e-6
"""Size of the test of whether tokens are draws from the policy, on each side: the largest
probability with which it refuses a rollout that is one."""

BY_STATE = frozenset({"entropy", "left_to_right", "margin", "max_probability", "random"})
"""Orders whose choice of positions does not depend on the drawn tokens."""


def excluded_token(found: Replayed) -> tuple[int, str] | None:
    """Return the row of a token that the sampling distribution excludes, or whose log-probability
    is not a number, with a sentence about it; None if there is none."""
    path = found.trajectory
    row, position = (~torch.isfinite(path.logprob)).nonzero(as_tuple=True)
    if not len(row):
        return None
    at, where, sampler = int(row[0]), int(position[0]), path.sampler
    return at, (
        f"the token {int(path.tokens[at, where])} at position {where} cannot be drawn under this policy with temperature = "
        f"{sampler.temperature:g}, top_k = {sampler.top_k or -1}, top_p = {sampler.top_p:g}: its log-probability is "
        f"{float(path.logprob[at, where])}. The engine sampled from another support, or with other weights."
    )


def fault_of_draws(found: Replayed) -> str | None:
    """Return sentences that say why the tokens cannot be draws from the policy; None if they can;
    see `draw_evidence`."""
    sampler, is_tested = found.trajectory.sampler, unselected(found.trajectory)
    if sampler.temperature == 0:
        return None
    is_likeliest, largest = found.is_likeliest[is_tested], found.largest[is_tested]
    few, many = draw_evidence(is_likeliest, largest)
    if max(few, many) < -math.log(TEST_SIZE):
        return None
    num, expected = int((~is_likeliest).sum()), float((1 - largest).sum())
    cause = (
        "The engine took the most likely token, or sampled at a lower temperature."
        if few > many
        else "The engine has other weights, another tokenizer or a fault: the tokens are unlikely under this policy."
    )
    return (
        f"{num} of {len(is_likeliest)} tokens are not the most likely one, and {expected:.1f} are expected at temperature "
        f"{sampler.temperature:g}. A rollout of this policy differs as much with a probability of at most {TEST_SIZE:g}. {cause}"
    )


def unselected(path: Trajectory) -> Tensor:
    """Return [B, L] bool, True for tokens whose draw had no part in the choice of their position.

    Under an order that looks at the drawn tokens, these are the tokens of a step that had to commit
    all positions that were left in the block: the last position of a block, and everything in the
    last step of a block under the fixed schedule.
    """
    is_sampled = (path.unmask_step >= 0) & (path.unmask_step < path.num_steps)
    if path.sampler.order in BY_STATE:
        return is_sampled
    in_block = path.unmask_step.unflatten(1, (-1, path.sampler.block))
    is_alone = (in_block.unsqueeze(-1) <= in_block.unsqueeze(-2)).sum(-1) == 1
    is_forced = is_alone.flatten(1)
    if not path.sampler.is_adaptive:
        per_block = path.sampler.steps_per_block
        is_forced = is_forced | (path.unmask_step % per_block == per_block - 1)
    return torch.logical_and(is_sampled, is_forced)

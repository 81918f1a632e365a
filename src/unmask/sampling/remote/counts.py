"""Checks of whether the steps of answers commit as many tokens as the fixed schedule does."""

from __future__ import annotations

import torch
from torch import Tensor

from unmask.core.config import SamplerConfig
from unmask.core.records import GIVEN
from unmask.functional.schedule import tokens_at_step
from unmask.sampling.remote.format import FormatError


def check_fixed_counts(unmask_step: Tensor, sampler: SamplerConfig, first_step: Tensor | None = None) -> None:
    """Refuse paths that are not those of the sampler's fixed schedule; see `has_fixed_counts`. Under
    an adaptive schedule, the counts depend on predictions and are not checked.

    Raises:
        FormatError: names the setting.
    """
    if not sampler.is_adaptive and not has_fixed_counts(unmask_step, sampler, first_step):
        raise FormatError(
            f"the steps do not commit as many tokens as sampler.schedule = fixed does, with {sampler.steps_per_block} steps for "
            f"each block of {sampler.block} positions. Set sampler.schedule, sampler.num_steps and sampler.block_length to what "
            "the server does."
        )


def has_fixed_counts(unmask_step: Tensor, sampler: SamplerConfig, first_step: Tensor | None = None) -> bool:
    """Return True if every step commits as many tokens as the fixed schedule of the sampler does.

    A row ends with the step that completes the tokens up to an EOS: positions with the step T were
    filled in then, and later steps commit nothing.

    Args:
        unmask_step: [B, L] integer steps; GIVEN for given tokens, T for tokens that were filled in.
        sampler: settings of the sampler, with a fixed schedule of T steps.
        first_step: [B] int64 first step of each row; default 0.
    """
    per_block, is_filled = sampler.steps_per_block, unmask_step == sampler.steps
    in_block = unmask_step.unflatten(1, (-1, sampler.block))
    first = torch.zeros(len(in_block), dtype=torch.int64) if first_step is None else first_step
    last = unmask_step.masked_fill(is_filled, GIVEN).max(-1).values
    last = torch.where(is_filled.any(-1), last, sampler.steps)
    first, last = first.to(unmask_step.device).unsqueeze(-1), last.unsqueeze(-1)
    left = (in_block != GIVEN).sum(-1)
    for step in range(per_block):
        steps = torch.arange(in_block.shape[1], device=unmask_step.device) * per_block + step
        is_taken = (first <= steps) & (steps <= last)
        share = tokens_at_step(left.flatten(), per_block - step).view_as(left) * is_taken
        if not torch.equal((in_block == steps.unsqueeze(-1)).sum(-1), share):
            return False
        left = left - share
    return True

"""Cost of the top-k and top-p limits: the number of positions whose logits they limit, and what each
of them takes."""

from __future__ import annotations

from typing import Literal, NamedTuple

from unmask.core.config import SamplerConfig
from unmask.core.records import Trajectory, Views
from unmask.sampling import LogprobSettings

OPERATIONS = {"top_k": 800, "top_p": 10_000}
"""Floating-point operations that one thread of a CPU makes in the time that it takes to limit one
logit (docs/scale.md): it searches the k largest logits and, without a top-k, sorts all of them. Of
a larger vocabulary each logit takes longer."""

BYTES = {"top_k": 60, "top_p": 300}
"""Bytes that the kernels of a GPU read and write to limit one logit, which have not been measured."""


class Limiting(NamedTuple):
    """Cost of limiting the logits of one position."""

    operations: int
    """Operations in whose time a CPU does it; 0 on a GPU and without limits."""
    bytes: int
    """Bytes that a GPU moves; 0 on a CPU and without limits."""


def cost_of_limits(sampler: SamplerConfig, vocab_size: int, device: Literal["cpu", "cuda"]) -> Limiting:
    """Return the cost of the limits of a sampler for one position."""
    if not has_limits(sampler):
        return Limiting(0, 0)
    kind = "top_k" if sampler.top_k else "top_p"
    return Limiting(vocab_size * OPERATIONS[kind], 0) if device == "cpu" else Limiting(0, vocab_size * BYTES[kind])


def has_limits(sampler: SamplerConfig) -> bool:
    """Return True if top-k or top-p limits the tokens that a rollout draws."""
    return sampler.temperature > 0 and (sampler.top_k > 0 or sampler.top_p < 1)


def limited_in_rollout(path: Trajectory) -> int:
    """Return the number of positions whose logits a rollout limits: at each step those that are
    masked in the active block, and those that the step commits once more, for their entropy, and
    again for the record of their support."""
    sampler = path.sampler
    if not has_limits(sampler):
        return 0
    step = path.unmask_step.long()
    block = step.new_tensor(range(step.shape[1])) // sampler.block
    waited = step - block * sampler.steps_per_block + 1
    return int(waited.sum()) + step.numel() * (1 if path.support is None else 2)


def limited_share(views: Views, path: Trajectory, logprob_temperature: Literal["sampling"] | float) -> float:
    """Return the share of the targets of views whose logits are limited. With a top-k, a token that
    was drawn in the state of its view keeps the support that the rollout recorded."""
    if LogprobSettings.of(path, logprob_temperature).has_full_support:
        return 0.0
    if path.support is None:
        return 1.0
    step = path.shown_step(views).unsqueeze(-1)
    is_recorded = (path.unmask_step[views.row] == step) & (step >= 0)
    return 1 - float((is_recorded & views.target).sum() / views.target.sum())

"""Completions of intermediate states by further denoising. A rollout completes its states in one
step from logits that it has computed anyway; these completions cost forward passes of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from unmask.core.config import SamplerConfig
from unmask.core.records import Needs, Row, Trajectory
from unmask.functional.noise import CONTINUATION_STREAM, counter_uniform
from unmask.sampling.engine import RolloutEngine
from unmask.sampling.one_step import with_completions


def with_denoised_branches(
    engine: RolloutEngine, rows: Sequence[Row], path: Trajectory, sampler: SamplerConfig
) -> Trajectory:
    """Return the trajectory with its branches (other completions of its states). All remaining
    denoising steps complete a branch, instead of a single step.

    A branch starts from the state after its denoising step k, so it costs T - k - 1 forward passes.

    Args:
        engine: samples the completions, within a session.
        rows: example of each path.
        path: B paths with branches at their selected steps.
        sampler: sampler settings of the rollout.
    """
    assert path.branch_tokens is not None
    assert path.selected_step is not None
    row, slot = (path.selected_step >= 0).nonzero(as_tuple=True)
    step, num = path.selected_step[row, slot].unsqueeze(-1), path.branch_tokens.shape[2]
    when, shown = path.unmask_step[row], path.rows(row).state_before(step[:, 0] + 1)
    state = torch.where((when == step).unsqueeze(1), path.branch_tokens[row, slot].long(), shown.unsqueeze(1))
    draw = torch.arange(num, device=state.device)
    branches = engine.rollout(
        [rows[int(i)]["prompt"] for i in row for _ in range(num)],
        sampler,
        _seeds(path, row, step, draw).flatten().cpu(),
        completion=state.flatten(0, 1),
        first_step=(step + 1).expand(-1, num).flatten(),
    )
    branch_tokens = path.branch_tokens.clone()
    branch_tokens[row, slot] = branches.tokens.view(state.shape).int()
    return replace(path, branch_tokens=branch_tokens)


def with_denoised_values(
    engine: RolloutEngine, rows: Sequence[Row], path: Trajectory, sampler: SamplerConfig, needs: Needs
) -> Trajectory:
    """Return the trajectory with completions of its selected states in several greedy denoising
    steps, as `one_step_tokens`.

    The state before a selected step is completed with the most likely tokens, and each block that
    has masked positions takes `needs.value_steps` steps, or one for each masked position if these
    are fewer. With a single block and one step, this is the one-step completion; with as many steps
    as the path has left, it is a greedy rollout. A completion costs up to `needs.value_steps`
    forward passes for each remaining block.

    Args:
        engine: samples the completions, within a session.
        rows: example of each path.
        path: B paths.
        sampler: sampler settings of the rollout.
        needs: rule of the selection, and the number of steps, at least 1.
    """
    greedy = _greedy(sampler, needs.value_steps)

    def complete(steps: Tensor) -> Tensor:
        row, slot = (steps >= 0).nonzero(as_tuple=True)
        completions = torch.zeros(*steps.shape, 1, path.tokens.shape[1], dtype=torch.int32, device=steps.device)
        if len(row):
            completed = engine.rollout(
                [rows[int(i)]["prompt"] for i in row],
                greedy,
                # At temperature 0, seeds decide nothing but the draws of orders that draw positions.
                _seeds(path, row, steps[row, slot].unsqueeze(-1), torch.zeros_like(row[:1])).flatten().cpu(),
                completion=path.rows(row).state_before(steps[row, slot]),
            )
            completions[row, slot, 0] = completed.tokens.int()
        return completions

    return with_completions(path, needs, complete)


def _greedy(sampler: SamplerConfig, num_steps: int) -> SamplerConfig:
    """Return the settings of a greedy rollout with a number of steps for each block."""
    blocks = sampler.max_completion_length // sampler.block
    changed = {
        "temperature": 0.0,
        # A step commits at least one position.
        "num_steps": min(num_steps, sampler.block) * blocks,
        "schedule": "fixed",
        "cache": "off",
        "cache_refresh_steps": None,
    }
    return SamplerConfig(**(sampler.model_dump() | changed))


def _seeds(path: Trajectory, row: Tensor, step: Tensor, draw: Tensor) -> Tensor:
    """Return a seed for each completion, [n, M] int64: a hash of the seed of the path, the denoising
    step and the number of the completion."""
    return (counter_uniform(path.seed[row].unsqueeze(-1), CONTINUATION_STREAM, step, draw) * 2**53).long()

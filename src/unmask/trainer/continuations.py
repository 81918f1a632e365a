"""Completions of intermediate states by further denoising. A rollout completes its states in one
step from logits that it has computed anyway; these completions cost forward passes of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from unmask.core.config import SamplerConfig
from unmask.core.records import Row, Trajectory
from unmask.functional.noise import CONTINUATION_STREAM, counter_uniform
from unmask.sampling.engine import RolloutEngine


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
    row, slot, step = _filled_slots(path)
    num = path.branch_tokens.shape[2]
    when, shown = path.unmask_step[row], _state(path, row, step + 1)
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
    engine: RolloutEngine, rows: Sequence[Row], path: Trajectory, sampler: SamplerConfig, num_steps: int
) -> Trajectory:
    """Return the trajectory with completions of its selected states in several greedy denoising
    steps, in place of the one-step completions.

    The state before a selected step is completed with the most likely tokens, and each block that
    has masked positions takes `num_steps` steps. With a single block and one step, this is the
    one-step completion; with as many steps as the path has left, it is a greedy rollout. A
    completion costs `num_steps` forward passes for each remaining block.

    Args:
        engine: samples the completions, within a session.
        rows: example of each path.
        path: B paths with one-step completions of their selected steps.
        sampler: sampler settings of the rollout.
        num_steps: number of denoising steps of a block, at least 1.
    """
    assert path.one_step_tokens is not None
    row, slot, step = _filled_slots(path)
    blocks = sampler.max_completion_length // sampler.block
    # Masked positions are few in late states, and a step of the fixed schedule commits at least
    # one, so a block may take fewer steps.
    greedy = sampler.model_copy(
        update={"temperature": 0.0, "num_steps": num_steps * blocks, "schedule": "fixed", "cache": "off"}
    )
    completed = engine.rollout(
        [rows[int(i)]["prompt"] for i in row],
        greedy,
        _seeds(path, row, step, torch.zeros(1, dtype=torch.int64, device=step.device)).flatten().cpu(),
        completion=_state(path, row, step),
    )
    tokens = path.one_step_tokens.clone()
    tokens[row, slot] = completed.tokens.int()
    return replace(path, one_step_tokens=tokens)


def _filled_slots(path: Trajectory) -> tuple[Tensor, Tensor, Tensor]:
    """Return the paths [n], slots [n] and denoising steps [n, 1] of all selected steps."""
    assert path.selected_step is not None
    row, slot = (path.selected_step >= 0).nonzero(as_tuple=True)
    return row, slot, path.selected_step[row, slot].unsqueeze(-1)


def _state(path: Trajectory, row: Tensor, step: Tensor) -> Tensor:
    """Return the states [n, L] of paths before steps [n, 1]."""
    return path.tokens[row].masked_fill(path.unmask_step[row] >= step, path.mask_id)


def _seeds(path: Trajectory, row: Tensor, step: Tensor, draw: Tensor) -> Tensor:
    """Return a seed for each completion, [n, M] int64: a hash of the seed of the path, the denoising
    step and the number of the completion."""
    return (counter_uniform(path.seed[row].unsqueeze(-1), CONTINUATION_STREAM, step, draw) * 2**53).long()

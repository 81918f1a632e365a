"""One-step completions and branches of states along finished paths: the policy's immediate guesses,
computed afterwards by full forward passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from unmask.core.branches import Branches
from unmask.core.denoising import DenoiserLike
from unmask.core.records import Needs, Trajectory
from unmask.functional.masking import compact_columns
from unmask.functional.selection import selected_path_steps
from unmask.sampling.branches import one_step_branches
from unmask.sampling.predict import predict
from unmask.sampling.step_outputs import Proposer


@torch.no_grad()
def one_step_completions(
    denoiser: DenoiserLike, trajectory: Trajectory, steps: Sequence[int], *, batch_size: int = 256
) -> Tensor:
    """Compute the one-step completion of each path at each of the given steps.

    x̂_k is the state before step k with the most likely token at every masked position. A rollout
    stores the completions of the steps that its method selects, at no cost. This function computes
    those of any step, with one forward pass per state.

    Args:
        denoiser: policy that sampled the paths, in evaluation mode.
        trajectory: B paths.
        steps: J steps.
        batch_size: maximum number of states in a forward pass.

    Returns:
        [B, J, L] int32 tokens.
    """
    of_all = torch.tensor(list(steps), device=trajectory.tokens.device).expand(len(trajectory), -1)
    return completions_of(denoiser, trajectory, of_all, batch_size=batch_size)[:, :, 0]


@torch.no_grad()
def completions_of(
    denoiser: DenoiserLike,
    trajectory: Trajectory,
    steps: Tensor,
    branches: Branches | None = None,
    *,
    batch_size: int = 256,
) -> Tensor:
    """Compute the one-step completion and the branches of each path at steps of its own, with one
    full forward pass per state.

    Args:
        denoiser: policy that sampled the paths, in evaluation mode.
        trajectory: B paths.
        steps: [B, K] int64 steps; -1 for an empty slot.
        branches: settings of M branches; default none.
        batch_size: maximum number of states in a forward pass.

    Returns:
        [B, K, 1 + M, L] int32 tokens, 0 in an empty slot: the one-step completion first, then the
        branches.
    """
    row, slot = (steps >= 0).nonzero(as_tuple=True)
    count, length = 1 + (branches.count if branches else 0), trajectory.tokens.shape[1]
    completions = torch.zeros(*steps.shape, count, length, dtype=torch.int32, device=steps.device)
    for at in zip(row.split(batch_size), slot.split(batch_size), strict=True):
        completions[at] = _completions(denoiser, trajectory.rows(at[0]), steps[at], branches)
    return completions


def with_completions(path: Trajectory, needs: Needs, complete: Callable[[Tensor], Tensor]) -> Trajectory:
    """Return a trajectory with the one-step completions and branches of its selected steps.

    Args:
        path: B paths.
        needs: rule of the selection, and settings of the branches.
        complete: function from [B, K] int64 steps to their completions; see `completions_of`.
    """
    is_eos = path.tokens == path.eos_id
    steps = selected_path_steps(needs.selection, path.unmask_step, path.entropy, is_eos, path.seed, path.num_steps)
    completions = complete(steps)
    return replace(
        path,
        selected_step=steps.int(),
        one_step_tokens=completions[:, :, 0],
        branch_tokens=completions[:, :, 1:] if needs.branches else None,
    )


def _completions(denoiser: DenoiserLike, path: Trajectory, step: Tensor, branches: Branches | None) -> Tensor:
    """Return the completions of one state of each path, [b, 1 + M, L] int32."""
    step = step.unsqueeze(-1)
    state, positions, is_valid = path.state_before(step[:, 0]), *compact_columns(path.unmask_step >= step)
    logits = predict(
        denoiser, path.prompt_ids, path.prompt_mask, state, positions, path.mask_id, path.sampler.guidance
    ).logits
    likeliest, draws = Proposer(path.sampler, branches=branches).complete(logits, path.seed, step, positions)
    committed = (path.unmask_step == step).gather(1, positions)
    tokens = one_step_branches(branches, likeliest, draws, path.tokens.gather(1, positions), committed)
    positions, is_valid, state = (t.unsqueeze(1).expand(-1, tokens.shape[1], -1) for t in (positions, is_valid, state))
    return state.scatter(2, positions, torch.where(is_valid, tokens, state.gather(2, positions))).int()

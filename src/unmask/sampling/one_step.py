"""One-step completions of states along finished paths: the policy's immediate guesses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unmask.core.records import DenoiserLike, Trajectory
from unmask.functional.masking import compact_columns
from unmask.sampling.predict import predict


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
    device = trajectory.tokens.device
    row = torch.arange(len(trajectory), device=device).repeat_interleave(len(steps))
    step = torch.tensor(list(steps), device=device).repeat(len(trajectory))
    parts = []
    for start in range(0, len(row), batch_size):
        chunk = slice(start, start + batch_size)
        path = trajectory.rows(row[chunk])
        state, hidden = path.state_before(step[chunk]), path.unmask_step >= step[chunk].unsqueeze(-1)
        positions, is_valid = compact_columns(hidden)
        logits = predict(
            denoiser, path.prompt_ids, path.prompt_mask, state, positions, path.mask_id, trajectory.sampler.guidance
        )
        likeliest = torch.where(is_valid, logits.argmax(-1), state.gather(1, positions))
        parts.append(state.scatter(1, positions, likeliest).int())
    return torch.cat(parts).view(len(trajectory), len(steps), -1)

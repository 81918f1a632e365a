"""Greedy one-step completions of states along finished paths: what the policy would have answered at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unmask.core.records import DenoiserLike, Trajectory
from unmask.sampling.logprobs import wanted_columns
from unmask.sampling.predict import predict


@torch.no_grad()
def one_step_guesses(
    denoiser: DenoiserLike, trajectory: Trajectory, steps: Sequence[int], *, batch_size: int = 256
) -> Tensor:
    """x̂_k of each path at each of the steps: the state before step k with every masked position filled by its likeliest token.

    A rollout keeps those of the steps that its method selects, from logits that it has in hand; this gives those of any step, for
    one forward each.

    Args:
        denoiser: the policy that walked the paths, in evaluation mode.
        trajectory: B paths.
        steps: J of them.
        batch_size: states in a forward.

    Returns:
        [B, J, L] int32.
    """
    device = trajectory.tokens.device
    row = torch.arange(len(trajectory), device=device).repeat_interleave(len(steps))
    step = torch.tensor(list(steps), device=device).repeat(len(trajectory))
    parts = []
    for start in range(0, len(row), batch_size):
        chunk = slice(start, start + batch_size)
        path = trajectory.rows(row[chunk])
        state, hidden = path.state_before(step[chunk]), path.unmask_step >= step[chunk].unsqueeze(-1)
        positions, is_hidden = wanted_columns(hidden)
        logits = predict(
            denoiser, path.prompt_ids, path.prompt_mask, state, positions, path.mask_id, trajectory.sampler.guidance
        )
        likeliest = torch.where(is_hidden, logits.argmax(-1), state.gather(1, positions))
        parts.append(state.scatter(1, positions, likeliest).int())
    return torch.cat(parts).view(len(trajectory), len(steps), -1)

"""Hidden states of views (masked versions of a completion), averaged over the completion."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unmask.core.records import Trajectory, Views
from unmask.functional.masking import trim_left_padding
from unmask.sampling.predict import model_input


def pooled_states(denoiser: nn.Module, trajectory: Trajectory, views: Views) -> Tensor:
    """Compute the mean, over the positions of the completion, of the hidden states that the trunk of
    a denoiser gives to each view.

    The positions of the prompt are left out. They would outnumber those of a short completion, and in
    a block-causal model they do not see it.

    Args:
        denoiser: policy; may be wrapped for training.
        trajectory: rollout that the views index.
        views: N views.

    Returns:
        [N, D] float32.
    """
    prompt_ids, prompt_mask = trim_left_padding(trajectory.prompt_ids[views.row], trajectory.prompt_mask[views.row])
    state = trajectory.tokens[views.row].masked_fill(views.hidden, trajectory.mask_id)
    positions = torch.arange(state.shape[1], device=state.device).expand_as(state)
    pooled: Tensor = denoiser(*model_input(prompt_ids, prompt_mask, state, positions), pooled=True)
    return pooled

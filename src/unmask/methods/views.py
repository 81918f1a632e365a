"""Plans that several methods share."""

from __future__ import annotations

from torch import Tensor

from unmask.records import Trajectory, Views


def step_views(trajectory: Trajectory, steps: Tensor, weight: Tensor) -> Views:
    """One view for each selected denoising step: the state before it, with the tokens it committed as targets.

    Args:
        trajectory: B completions.
        steps: [B, K] int64, -1 for an empty slot, which gives no view.
        weight: [B, K] float32.

    Returns:
        N <= B K views, rows in order, slots ascending within a row.
    """
    row, slot = (steps >= 0).nonzero(as_tuple=True)
    step = steps[row, slot].unsqueeze(-1)
    unmask_step = trajectory.unmask_step[row]
    return Views(row=row, hidden=unmask_step >= step, target=unmask_step == step, weight=weight[row, slot], slot=slot)

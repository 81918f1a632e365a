"""A method of your own: REINFORCE at one random denoising step, in 30 lines.

    unmask train sudoku-tiny model=runs/demo/base/final method.type=examples/custom_method.py:RandomStep num_iterations=1

A method states which masked versions of the completions it wants scored (`plan`), what each is worth (`advantage`) and the loss
of each (`loss`). A recipe names the class by its path; nothing in the package has to change.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from unmask.core.records import LossInputs, LossOutput, Needs, Rollout, Views
from unmask.functional.advantage import group_advantage
from unmask.functional.selection import candidate_steps, selected_path_steps
from unmask.methods import Method
from unmask.methods.views import step_views


class RandomStep(Method):
    """The policy gradient at one step drawn uniformly, times the number of candidates: unbiased, and noisy."""

    baseline: Literal["leave_one_out", "group_mean"] = "leave_one_out"
    """What a completion's reward is compared with: the mean of the others of its group, or of all of them."""

    def needs(self) -> Needs:
        return Needs()

    def plan(self, rollout: Rollout, generator: torch.Generator) -> Views:
        path = rollout.trajectory
        # No token counts as EOS: a rule that asks whether text is still to come looks into the future, which is a bias.
        is_eos = torch.zeros_like(path.tokens, dtype=torch.bool)
        steps = selected_path_steps(("uniform", 1), path.unmask_step, path.entropy, is_eos, path.seed, path.num_steps)
        # One of N candidates, each with probability 1 / N: its gradient counts N times.
        weight = candidate_steps(path.unmask_step, is_eos, path.num_steps).sum(-1, keepdim=True).float()
        return step_views(path, steps, weight)

    def advantage(self, rollout: Rollout) -> Tensor:
        return group_advantage(rollout.reward, rollout.group_size, self.baseline)

    def loss(self, inputs: LossInputs) -> LossOutput:
        return LossOutput(-inputs.weight * inputs.advantage * inputs.new.sum(-1))

"""A method of your own: REINFORCE at one random denoising step, in 40 lines.

    python examples/custom_method.py runs/demo/base/final

A method says which corrupted readings of the completions it wants scored (`plan`), what each is worth (`advantage`) and what
the loss of each is (`loss`). In the package it is one file in `methods/` and one entry in `METHODS`.
"""

from __future__ import annotations

import argparse
from typing import ClassVar, Literal

import torch
from torch import Tensor

from unmask import Trainer, load_recipe
from unmask.functional.advantage import group_advantage
from unmask.functional.selection import candidate_steps, selected_path_steps
from unmask.methods import Method
from unmask.methods.views import step_views
from unmask.records import LossInputs, LossOutput, Needs, Rollout, Views


class RandomStep(Method):
    """The policy gradient at one step drawn uniformly, times the number of candidates: unbiased, and noisy."""

    type: Literal["random_step"] = "random_step"

    paper: ClassVar[str] = "none"
    summary: ClassVar[str] = "REINFORCE at one random step"
    unbiased: ClassVar[str] = "yes"
    cost: ClassVar[str] = "1 f+b"
    estimates: ClassVar[str] = "the policy gradient, exactly under random order"

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
        return group_advantage(rollout.reward, rollout.group_size, "leave_one_out")

    def loss(self, inputs: LossInputs) -> LossOutput:
        return LossOutput(-inputs.weight * inputs.advantage * inputs.new.sum(-1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a base model, such as the one that `make demo` pretrains")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--output", default="runs/random_step")
    arguments = parser.parse_args()
    recipe = load_recipe(
        "sudoku-tiny",
        [
            f"model={arguments.model}",
            f"max_steps={arguments.steps}",
            f"output_dir={arguments.output}",
            "num_iterations=1",
        ],
    ).model_copy(update={"method": RandomStep()})
    Trainer(recipe, observe=lambda step, metrics: print(step, metrics.get("reward"))).train()

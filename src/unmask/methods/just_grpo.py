"""JustGRPO (arXiv:2601.15165): the denoiser trained as an autoregressive model, one token a step from left to right.

The order is fixed, so the likelihood of a completion is exact, and the gradient is that of GRPO on the left-to-right sampler;
afterwards the model may decode in any order. Departures are described in docs/methods/just_grpo.md.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError
from unmask.core.records import LossInputs, LossOutput, Needs, Rollout, Views
from unmask.functional.advantage import group_advantage, z_score
from unmask.methods.base import RatioMethod
from unmask.methods.views import segment_views


class JustGRPO(RatioMethod):
    """GRPO over all tokens of a left-to-right rollout."""

    type: Literal["just_grpo"] = "just_grpo"
    baseline: Literal["group_mean", "leave_one_out", "z_score"] = "z_score"
    """Over the group. `z_score` also divides by the group's standard deviation (of the sample); release."""

    paper: ClassVar[str] = "arXiv:2601.15165"
    summary: ClassVar[str] = "left-to-right rollouts of one token a step, every step trained"
    unbiased: ClassVar[str] = "with leave_one_out"
    sampler: ClassVar[str] = "order left_to_right, T = L"
    estimates: ClassVar[str] = (
        "the policy gradient of the left-to-right sampler over L, with baseline=leave_one_out; another vector with z_score"
    )
    cost: ClassVar[str] = "L f+b (+ L f old)"

    def needs(self) -> Needs:
        """Nothing but a group."""
        return Needs()

    def check(self, sampler: SamplerConfig, num_generations: int) -> None:
        """Also refuse another order than left to right, and more than one token a step."""
        super().check(sampler, num_generations)
        if sampler.order != "left_to_right" or sampler.steps != sampler.max_completion_length:
            raise ConfigError(
                f"just_grpo rolls out from left to right, one token a step; got sampler.order = {sampler.order} and "
                f"{sampler.steps} steps for {sampler.max_completion_length} positions. "
                f"Set sampler.order = left_to_right and sampler.num_steps = {sampler.max_completion_length}."
            )

    def plan(self, rollout: Rollout, generator: torch.Generator) -> Views:
        """One view for each step that committed something, with weight 1 / L."""
        path = rollout.trajectory
        steps = torch.arange(path.num_steps, device=path.tokens.device).expand(len(path), -1)
        weight = torch.full(steps.shape, 1 / path.tokens.shape[1], device=steps.device)
        return segment_views(path, steps, path.num_steps, weight)

    def advantage(self, rollout: Rollout) -> Float[Tensor, "B *K"]:
        """[B] of each completion."""
        if self.baseline == "z_score":
            return z_score(rollout.reward, rollout.group_size, correction=1)
        return group_advantage(rollout.reward, rollout.group_size, self.baseline)

    def loss(self, inputs: LossInputs) -> LossOutput:
        """-(1/L) min(ρ A, clip(ρ) A), with ρ the ratio of the step's token."""
        loss, metrics = self.token_loss(inputs.new, inputs.old, inputs.advantage, inputs.target)
        return LossOutput(inputs.weight * loss.sum(-1), metrics)

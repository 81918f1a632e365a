"""JustGRPO (arXiv:2601.15165): the denoiser is trained as an autoregressive model, one token per
step from left to right.

With a fixed order the likelihood of a completion is exact, and the gradient is that of GRPO on the
left-to-right sampler. The trained model may decode in any order. docs/methods/just_grpo.md
describes the differences from the released code.
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
from unmask.functional.behaviour import LevelOrOff
from unmask.methods.ratio import RatioMethod
from unmask.methods.views import segment_views


class JustGRPO(RatioMethod):
    """GRPO over all tokens of a left-to-right rollout."""

    type: Literal["just_grpo"] = "just_grpo"
    baseline: Literal["group_mean", "leave_one_out", "z_score"] = "z_score"
    """Baseline of the group. `z_score` is the group mean with division by the sample standard
    deviation of the group. The default is that of the released code."""

    scores: ClassVar[str] = "path steps"
    paper: ClassVar[str] = "arXiv:2601.15165"
    summary: ClassVar[str] = "left-to-right rollouts of one token per step, with every step trained"
    unbiased: ClassVar[str] = "with leave_one_out"
    sampler: ClassVar[str] = "order left_to_right, T = L"
    estimates: ClassVar[str] = (
        "the policy gradient of the left-to-right sampler over L, with baseline=leave_one_out; a different vector with z_score"
    )
    cost: ClassVar[str] = "L f+b (+ L f old)"
    penalties: ClassVar[tuple[str, ...] | None] = ()

    def needs(self) -> Needs:
        """Require groups of completions, and nothing else."""
        return Needs()

    def check(self, sampler: SamplerConfig, num_generations: int) -> None:
        """Raise ConfigError also if the order is not left to right, or if a step commits more than
        one token."""
        super().check(sampler, num_generations)
        length = sampler.max_completion_length
        order = "sampler.order = left_to_right" if sampler.order != "left_to_right" else ""
        steps = f"sampler.num_steps = {length}" if sampler.steps != length else ""
        schedule = "sampler.schedule = fixed" if sampler.is_adaptive else ""
        if order or steps or schedule:
            raise ConfigError(
                f"just_grpo needs rollouts from left to right, one token per step; got sampler.order = {sampler.order}, "
                f"sampler.schedule = {sampler.schedule} and {sampler.steps} steps for {length} positions. "
                f"Set {' and '.join(filter(None, (order, steps, schedule)))}."
            )

    def behaviour_levels(self, sampler: SamplerConfig) -> tuple[LevelOrOff, ...]:
        """Return all levels: each view is a state of the path, and the ratio is that of a token."""
        return ("token", "step", "sequence")

    def plan(self, rollout: Rollout, generator: torch.Generator) -> Views:
        """Plan one view for each step that committed a token, with weight 1 / L."""
        path = rollout.trajectory
        steps = torch.arange(path.num_steps, device=path.tokens.device).expand(len(path), -1)
        weight = torch.full(steps.shape, 1 / path.tokens.shape[1], device=steps.device)
        return segment_views(path, steps, path.num_steps, weight)

    def advantage(self, rollout: Rollout) -> Float[Tensor, "B *K"]:
        """Return the advantage of each completion, [B]."""
        if self.baseline == "z_score":
            return z_score(rollout.reward, rollout.group_size, correction=1)
        return group_advantage(rollout.reward, rollout.group_size, self.baseline)

    def loss(self, inputs: LossInputs) -> LossOutput:
        """Compute -(1/L) min(ρ A, clip(ρ) A), where ρ is the ratio of the step's token."""
        loss, metrics = self.token_loss(inputs)
        return LossOutput(inputs.weight * loss.sum(-1), metrics)

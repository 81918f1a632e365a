"""Trajectory balance (TraFL, arXiv:2605.13935): the probability of a path is matched to that of the
reference policy, tilted by the reward.

The target gives a path the probability π_ref(τ) exp(r / α) / Z. The log-normaliser Z of a prompt is
estimated by the other completions of the group, so there is no normaliser to learn. It is also the
multi-step path consistency of soft Q-learning (arXiv:2106.07704) at the first state.
docs/methods/trajectory_balance.md describes the differences.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from unmask.core.config import SamplerConfig
from unmask.core.records import LossInputs, LossOutput, Needs, Rollout, Views
from unmask.functional.advantage import group_advantage
from unmask.functional.behaviour import LevelOrOff
from unmask.functional.completions import mean_of_others, one_by_completion, sum_by_completion
from unmask.methods.base import Method
from unmask.methods.views import segment_views


class TrajectoryBalance(Method):
    """Trajectory balance with a leave-one-out log-normaliser."""

    type: Literal["trajectory_balance"] = "trajectory_balance"
    alpha: float = Field(0.04, ge=0)
    """Temperature α of the target: the smaller it is, the further the policy may move from the
    reference; with 0 there is no target, only the policy gradient. The default is that of DMPO
    (arXiv:2510.08233); the value of the paper is not known to us."""
    num_segments: int = Field(0, ge=0)
    """Number R of segments that the steps are merged into, as in StepMerge; with 0, every step is a
    segment and the probability of the path is exact."""

    paper: ClassVar[str] = "arXiv:2605.13935"
    summary: ClassVar[str] = "paths matched to the reference tilted by the reward, without a likelihood ratio"
    unbiased: ClassVar[str] = "with alpha=0"
    estimates: ClassVar[str] = (
        "on its own samples, the gradient over L of E[r] - α KL, with the KL of the tokens of each step to the reference, given "
        "its positions; under orders random and left_to_right that is the KL of whole paths"
    )
    cost: ClassVar[str] = "T f+b (+ T f reference), or R of each; two passes"
    scores: ClassVar[str] = "regression"
    penalties: ClassVar[tuple[str, ...] | None] = ("alpha",)
    separable: ClassVar[bool] = False

    def needs(self) -> Needs:
        """Require the reference policy."""
        return Needs(reference="logprob")

    def check(self, sampler: SamplerConfig, num_generations: int) -> None:
        """Raise ConfigError also if R is larger than the number T of denoising steps."""
        super().check(sampler, num_generations)
        self.refuse_more_than_steps("num_segments", sampler)

    def behaviour_levels(self, sampler: SamplerConfig) -> tuple[LevelOrOff, ...]:
        """Return only `off`: balance holds for every path or for none, whichever policy sampled it,
        and the loss is not proportional to an advantage."""
        return ("off",)

    def plan(self, rollout: Rollout, generator: torch.Generator) -> Views:
        """Plan one view for each segment that committed a token, with weight 1 / L."""
        path = rollout.trajectory
        num_segments = self.num_segments or path.num_steps
        segments = torch.arange(num_segments, device=path.tokens.device).expand(len(path), -1)
        weight = torch.full(segments.shape, 1 / path.tokens.shape[1], device=segments.device)
        return segment_views(path, segments, num_segments, weight)

    def advantage(self, rollout: Rollout) -> Float[Tensor, "B *K"]:
        """Return the reward minus the mean of the other rewards of the group, [B]."""
        return group_advantage(rollout.reward, rollout.group_size, "leave_one_out")

    def loss(self, inputs: LossInputs) -> LossOutput:
        """Compute ((α/2) d_i² - A_i d_i) / L for each completion i, which is (α/2L) (d_i - A_i / α)²
        up to a constant. Here d_i = ℓ_i - mean_{j≠i} ℓ_j for the log-ratios ℓ of the paths to the
        reference, and the gradient is that of ℓ_i alone."""
        assert inputs.reference is not None
        log_ratio = sum_by_completion((inputs.new - inputs.reference).sum(-1), inputs.row)
        advantage, weight = (one_by_completion(v, inputs.row) for v in (inputs.advantage, inputs.weight))
        # Minus log Z, up to the mean reward, which is in the advantage.
        group = inputs.row.unique() // inputs.group_size
        excess = log_ratio - mean_of_others(log_ratio.detach(), group)
        loss = 0.5 * self.alpha * excess.square() - advantage * excess
        gap = (self.alpha * excess - advantage).detach().abs()
        return LossOutput(weight * loss, {"balance/gap": gap, "balance/log_ratio": log_ratio.detach()})

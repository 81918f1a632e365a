"""Trajectory balance (TraFL, arXiv:2605.13935): the probability of a path is matched to that of the
reference policy, tilted by the reward; and path consistency, its form for parts of a path.

The target gives a path the probability π_ref(τ) exp(r / α) / Z. The log-normaliser Z of a prompt is
estimated by the other completions of the group, so there is no normaliser to learn. Path consistency
of soft Q-learning (arXiv:2106.07704) asks the same of every sub-path, with the soft values of the
states at its ends, which a critic learns. docs/methods/trajectory_balance.md describes the
differences.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError
from unmask.core.records import LossInputs, LossOutput, Needs, Rollout, Views
from unmask.functional.advantage import group_advantage
from unmask.functional.behaviour import LevelOrOff
from unmask.functional.completions import mean_of_others, one_by_completion, sum_by_completion
from unmask.functional.step_values import next_value, sum_to_come
from unmask.methods.base import Method
from unmask.methods.views import every_step, segment_views, step_views


class TrajectoryBalance(Method):
    """Trajectory balance with a leave-one-out log-normaliser, or path consistency of sub-paths."""

    type: Literal["trajectory_balance"] = "trajectory_balance"
    alpha: float = Field(0.04, ge=0)
    """Temperature α of the target: the smaller it is, the further the policy may move from the
    reference; with 0 there is no target, only the policy gradient. The default is that of DMPO
    (arXiv:2510.08233); the value of the paper is not known to us."""
    num_segments: int = Field(0, ge=0)
    """Number R of segments that the steps are merged into, as in StepMerge; with 0, every step is a
    segment and the probability of the path is exact."""
    subpath_steps: int = Field(0, ge=0)
    """Number of denoising steps of a sub-path, whose ends have values by a critic. 0 takes the whole
    path, without a critic: the group estimates the log-normaliser. The number of all steps T takes
    the whole path with the critic's log-normaliser, and 1 is one-step path consistency."""

    paper: ClassVar[str] = "arXiv:2605.13935"
    summary: ClassVar[str] = "paths matched to the reference tilted by the reward, without a likelihood ratio"
    unbiased: ClassVar[str] = "with alpha=0 and subpath_steps of 0 or T"
    estimates: ClassVar[str] = (
        "on its own samples, the gradient over L of E[r] - α KL, with the KL of the tokens of each step to the reference, given "
        "its positions; under orders random and left_to_right that is the KL of whole paths; sub-paths need exact soft values"
    )
    cost: ClassVar[str] = "T f+b (+ T f reference, f critic for each sub-path), or R of each; two passes"
    scores: ClassVar[str] = "regression"
    penalties: ClassVar[tuple[str, ...] | None] = ("alpha",)
    separable: ClassVar[bool] = False

    @property
    def by_completion(self) -> bool:  # type: ignore[override]
        """True with sub-paths, whose loss compares no completions."""
        return self.subpath_steps > 0

    def needs(self) -> Needs:
        """Require the reference policy, and a group or a critic."""
        return Needs(reference="logprob", group=not self.subpath_steps, critic=self.subpath_steps > 0)

    def check(self, sampler: SamplerConfig, num_generations: int) -> None:
        """Raise ConfigError also if R or the length of a sub-path is larger than the number T of
        denoising steps, or if both are set."""
        super().check(sampler, num_generations)
        self.refuse_more_than_steps("num_segments", sampler)
        self.refuse_more_than_steps("subpath_steps", sampler)
        if self.num_segments and self.subpath_steps:
            raise ConfigError(
                f"method.subpath_steps = {self.subpath_steps} needs the probability of each step, but method.num_segments = "
                f"{self.num_segments} merges steps. Set one of them to 0."
            )

    def behaviour_levels(self, sampler: SamplerConfig) -> tuple[LevelOrOff, ...]:
        """Return only `off`: balance holds for every path or for none, whichever policy sampled it,
        and the loss is not proportional to an advantage."""
        return ("off",)

    def critic_steps(self, rollout: Rollout) -> Int[Tensor, "B C"]:
        """Return the first step of each sub-path, [B, C]."""
        return every_step(rollout.trajectory)[:, :: self.subpath_steps]

    def plan(self, rollout: Rollout, generator: torch.Generator) -> Views:
        """Plan one view for each segment that committed a token, with weight 1 / L. The slot of a
        view is its segment, or its sub-path."""
        path = rollout.trajectory
        if self.subpath_steps:
            steps = every_step(path)
            views = step_views(path, steps, torch.full(steps.shape, 1 / path.tokens.shape[1], device=steps.device))
            return replace(views, slot=views.slot // self.subpath_steps)
        num_segments = self.num_segments or path.num_steps
        segments = torch.arange(num_segments, device=path.tokens.device).expand(len(path), -1)
        weight = torch.full(segments.shape, 1 / path.tokens.shape[1], device=segments.device)
        return segment_views(path, segments, num_segments, weight)

    def advantage(self, rollout: Rollout) -> Float[Tensor, "B *C"]:
        """Return the reward minus the mean of the other rewards of the group, [B], or the change of
        value along each sub-path, V(x_j) - V(x_i), [B, C], where V(x_T) is the reward."""
        if not self.subpath_steps:
            return group_advantage(rollout.reward, rollout.group_size, "leave_one_out")
        assert rollout.value is not None
        is_valid = self.critic_steps(rollout) >= 0
        gained = next_value(rollout.reward, rollout.value, is_valid) - rollout.value
        return gained.masked_fill(~is_valid, 0.0)

    def loss(self, inputs: LossInputs) -> LossOutput:
        """Compute ((α/2) d² - A d) / L for each completion or sub-path, which is (α/2L) (d - A / α)²
        up to a constant.

        For a whole path, d_i = ℓ_i - mean_{j≠i} ℓ_j, where ℓ is the log-ratio of the path to the
        reference, and the gradient is that of ℓ_i alone. For a sub-path, d is its own log-ratio.
        """
        assert inputs.reference is not None
        log_ratio = (inputs.new - inputs.reference).sum(-1)
        if self.subpath_steps:
            return self._consistency(inputs, log_ratio)
        log_ratio = sum_by_completion(log_ratio, inputs.row)
        advantage, weight = (one_by_completion(v, inputs.row) for v in (inputs.advantage, inputs.weight))
        # Minus log Z, up to the mean reward, which is in the advantage.
        group = inputs.row.unique() // inputs.group_size
        excess = log_ratio - mean_of_others(log_ratio.detach(), group)
        loss = 0.5 * self.alpha * excess.square() - advantage * excess
        gap = (self.alpha * excess - advantage).detach().abs()
        return LossOutput(weight * loss, {"balance/gap": gap, "balance/log_ratio": log_ratio.detach()})

    def _consistency(self, inputs: LossInputs, log_ratio: Tensor) -> LossOutput:
        """Return the loss of each sub-path, from the log-ratios of steps, and by how much the soft
        return r - α Σ ℓ from its first state exceeds the value of that state.

        The soft return is that of the old policy, which drew the path. Several updates of a rollout
        do not change it.
        """
        assert inputs.slot is not None
        assert inputs.reference is not None
        _, subpath = torch.stack([inputs.row, inputs.slot]).unique(dim=1, return_inverse=True)
        old_ratio = sum_by_completion((inputs.old - inputs.reference).sum(-1), subpath)
        log_ratio = sum_by_completion(log_ratio, subpath)
        values = (inputs.advantage, inputs.weight, inputs.row)
        advantage, weight, row = (one_by_completion(v, subpath) for v in values)
        loss = 0.5 * self.alpha * log_ratio.square() - advantage * log_ratio
        gap = (advantage - self.alpha * log_ratio).detach().abs()
        # The changes of value add up to the reward minus the value of the first state.
        error = sum_to_come(advantage - self.alpha * old_ratio, row)[subpath]
        of_path = sum_by_completion(log_ratio.detach(), row)
        metrics = {"balance/gap": gap, "balance/log_ratio": of_path}
        return LossOutput(weight * loss, metrics, error)

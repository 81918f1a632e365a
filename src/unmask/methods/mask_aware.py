"""Mask-aware policy gradients (arXiv:2607.15200): the choice of positions is an action with a
probability.

Positions are drawn without replacement in proportion to exp(confidence / τ) (order
`plackett_luce`). The probability of a path is then the product of a factor for tokens and a factor
for positions, which are computed from the same logits. Each factor has its own ratio over the whole
completion and its own clip. docs/methods/mask_aware.md describes the differences from the paper.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from unmask.core.config import DRAWN_ORDERS, SamplerConfig
from unmask.core.errors import ConfigError
from unmask.core.records import LossInputs, LossOutput, Needs, Rollout, Views
from unmask.functional.advantage import group_advantage
from unmask.functional.completions import one_by_completion, sum_by_completion
from unmask.functional.selection import step_sum
from unmask.methods.ratio import RatioMethod
from unmask.methods.views import segment_views


class MaskAware(RatioMethod):
    """Mask-aware policy gradients over sampled segments (runs of consecutive steps) of a path."""

    type: Literal["mask_aware"] = "mask_aware"
    num_segments: int = Field(32, ge=0)
    """Number R of segments that the steps are merged into; with 0, every step is a segment. The
    default is that of the paper."""
    num_sampled: int = Field(12, ge=1)
    """Number M of segments that are evaluated, drawn separately for each completion. The default is
    that of the paper."""
    baseline: Literal["group_mean", "leave_one_out"] = "group_mean"
    """Baseline of the group. The group mean shrinks the gradient by (G - 1) / G; leave-one-out does
    not."""
    position_epsilon: float = Field(0.2, ge=0)
    """Lower clip of the ratio of positions, as a distance from 1. The paper clips the two ratios
    separately, and we do not know the values that it uses."""
    position_epsilon_high: float = Field(0.2, ge=0)
    """Upper clip of the ratio of positions, as a distance from 1."""

    scores: ClassVar[str] = "path steps"
    paper: ClassVar[str] = "arXiv:2607.15200"
    summary: ClassVar[str] = "tokens and positions as actions, each with a ratio over sampled segments of the path"
    unbiased: ClassVar[str] = "with num_segments=0 and leave_one_out"
    sampler: ClassVar[str] = "order plackett_luce or learned"
    estimates: ClassVar[str] = (
        "the policy gradient over L, position choice included, if every step is a segment and with baseline=leave_one_out; "
        "otherwise the actions of a segment are treated as independent of each other"
    )
    cost: ClassVar[str] = "M f+b (+ M f old), two passes"
    penalties: ClassVar[tuple[str, ...] | None] = ()
    samples: ClassVar[str] = "whole completions"
    separable: ClassVar[bool] = False
    by_completion: ClassVar[bool] = True

    def needs(self) -> Needs:
        """Require the probability of the position choice."""
        return Needs(choice=True)

    def check(self, sampler: SamplerConfig, num_generations: int) -> None:
        """Raise ConfigError also if the order defines no probability of the position choice, if R
        is larger than the number T of denoising steps, or if M > R."""
        super().check(sampler, num_generations)
        if sampler.order not in DRAWN_ORDERS:
            raise ConfigError(
                f"mask_aware trains the position choice, but order {sampler.order} has no probability for it. "
                "Set sampler.order = plackett_luce or learned."
            )
        num_segments = self.num_segments or sampler.steps
        if not self.num_sampled <= num_segments <= sampler.steps:
            raise ConfigError(
                f"mask_aware evaluates method.num_sampled = {self.num_sampled} of method.num_segments = {num_segments} segments "
                f"of {sampler.steps} steps, and each number must be at most the next. "
                "Lower the first two, or raise sampler.num_steps."
            )

    def plan(self, rollout: Rollout, generator: torch.Generator) -> Views:
        """Plan one view for each of M segments, drawn from the n segments that committed a token,
        with weight (n / M) / L."""
        path = rollout.trajectory
        num_segments = self.num_segments or path.num_steps
        segment = (path.unmask_step * num_segments).div(path.num_steps, rounding_mode="floor")
        has_committed = step_sum(torch.ones_like(segment), segment, num_segments) > 0
        noise = torch.rand(has_committed.shape, generator=generator).to(has_committed.device)
        segments = noise.masked_fill(~has_committed, -1).argsort(-1, descending=True)[:, : self.num_sampled]
        segments = segments.masked_fill(~has_committed.gather(1, segments), -1)
        count = has_committed.sum(-1, keepdim=True)
        weight = count / count.clamp(max=self.num_sampled).clamp(min=1) / path.tokens.shape[1]
        return segment_views(path, segments, num_segments, weight.expand(segments.shape))

    def advantage(self, rollout: Rollout) -> Float[Tensor, "B *K"]:
        """Return the reward minus the baseline of the group, [B]."""
        return group_advantage(rollout.reward, rollout.group_size, self.baseline)

    def loss(self, inputs: LossInputs) -> LossOutput:
        """Compute -min(ρ A, clip(ρ) A) for the tokens and for the positions of each completion.
        Here log ρ is the sum over the views of w (new - old), where w is the weight of the view."""
        assert inputs.new_choice is not None
        assert inputs.old_choice is not None
        advantage = one_by_completion(inputs.advantage, inputs.row)
        token, position = (
            sum_by_completion(inputs.weight * (new - old).sum(-1), inputs.row)
            for new, old in ((inputs.new, inputs.old), (inputs.new_choice, inputs.old_choice))
        )
        loss, metrics = self.surrogate(token, advantage)
        bounds = {"epsilon": self.position_epsilon, "epsilon_high": self.position_epsilon_high}
        of_positions, theirs = self.model_copy(update=bounds).surrogate(position, advantage)
        metrics["clip_ratio/position_mean"] = theirs["clip_ratio/region_mean"]
        metrics["policy/position_ratio_max"] = theirs["policy/ratio_max"]
        return LossOutput(loss + of_positions, metrics)

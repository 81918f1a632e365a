"""StepMerge (d2, arXiv:2509.21474), and two special cases of the same method: TraceRL
(arXiv:2509.06949) and CJ-GRPO (arXiv:2509.23924).

The steps of a path are divided into R segments of consecutive steps. The tokens of a segment are
evaluated in the state before its first step, so R forward passes are needed instead of T. R = T
replays the path exactly; R = 1 is the mean-field likelihood of diffu-GRPO with an unmasked prompt.
docs/methods/step_merge.md describes the differences from the released code of all three.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError
from unmask.core.records import LossInputs, LossOutput, Needs, Rollout, Views
from unmask.functional.advantage import group_advantage, z_score
from unmask.functional.behaviour import LevelOrOff
from unmask.methods.ratio import RatioMethod
from unmask.methods.views import segment_views


class StepMerge(RatioMethod):
    """d2, which computes the likelihood of a path from R states, with a ratio for each token."""

    type: Literal["step_merge"] = "step_merge"
    num_segments: int = Field(16, ge=0)
    """Number R of segments; with 0, every step is a segment. The paper uses 16 on Sudoku and
    Countdown."""
    baseline: Literal["group_mean", "leave_one_out", "z_score"] = "group_mean"
    """Baseline of the group. `z_score` is the group mean with division by the population standard
    deviation of the group, as in TraceRL."""
    epsilon: float = Field(0.5, ge=0)
    """Lower clip of the token ratio, as a distance from 1. The default is that of diffu-GRPO; the
    paper's own value is not known to us."""
    epsilon_high: float = Field(0.5, ge=0)
    """Upper clip, as a distance from 1. The default is that of diffu-GRPO."""
    beta: float = Field(0.04, ge=0)
    """Weight of the KL (k3, token by token). The default is that of diffu-GRPO; the paper's own
    value is not known to us."""
    kl_to: Literal["reference", "old"] = "reference"
    """Policy that the KL is measured against: the reference policy, or the old policy (the policy
    at the start of the update), which needs no further forward pass."""

    scores: ClassVar[str] = "path steps"
    paper: ClassVar[str] = "arXiv:2509.21474"
    summary: ClassVar[str] = "the path's steps merged into R segments, each evaluated in the state before it"
    unbiased: ClassVar[str] = "with num_segments=0 and leave_one_out"
    estimates: ClassVar[str] = (
        "the policy gradient over L if every step is a segment, with baseline=leave_one_out, except under order low_confidence; "
        "otherwise the tokens of a segment are treated as independent of each other"
    )
    cost: ClassVar[str] = "R f+b (+ R f old, R f reference)"
    penalties: ClassVar[tuple[str, ...] | None] = ("beta",)

    def needs(self) -> Needs:
        """Require the reference policy if the KL is measured against it."""
        reference: Literal["none", "logprob"] = "logprob" if self.beta and self.kl_to == "reference" else "none"
        return Needs(reference=reference, choice=True)

    def check(self, sampler: SamplerConfig, num_generations: int) -> None:
        """Raise ConfigError also if R is larger than the number T of denoising steps."""
        super().check(sampler, num_generations)
        if self.num_segments > sampler.steps:
            raise ConfigError(
                f"method.num_segments = {self.num_segments} is more than the {sampler.steps} denoising steps. "
                f"Set it to {sampler.steps} or less (0 makes every step a segment), or raise sampler.num_steps."
            )

    def behaviour_levels(self, sampler: SamplerConfig) -> tuple[LevelOrOff, ...]:
        """Return all levels if every step is a segment. In a longer segment, tokens of later steps
        are evaluated in a state from which they were not drawn."""
        return ("token", "step", "sequence") if self.num_segments in (0, sampler.steps) else ("sequence",)

    def plan(self, rollout: Rollout, generator: torch.Generator) -> Views:
        """Plan one view for each segment that committed a token, with weight 1 / L."""
        path = rollout.trajectory
        num_segments = self.num_segments or path.num_steps
        segments = torch.arange(num_segments, device=path.tokens.device).expand(len(path), -1)
        weight = torch.full(segments.shape, 1 / path.tokens.shape[1], device=segments.device)
        return segment_views(path, segments, num_segments, weight)

    def advantage(self, rollout: Rollout) -> Float[Tensor, "B *K"]:
        """Return the advantage of each completion, [B]."""
        if self.baseline == "z_score":
            return z_score(rollout.reward, rollout.group_size, correction=0)
        return group_advantage(rollout.reward, rollout.group_size, self.baseline)

    def loss(self, inputs: LossInputs) -> LossOutput:
        """Compute (1/L) Σ_i (-min(ρ_i A, clip(ρ_i) A) + β k3_i) over the tokens of the segment."""
        anchor = inputs.reference if self.kl_to == "reference" else inputs.old
        loss, metrics = self.token_loss(inputs, anchor, self.beta)
        return LossOutput(inputs.weight * loss.sum(-1), metrics)


class TraceRL(StepMerge):
    """TraceRL without a value model: StepMerge with standardised advantages and a KL to the old
    policy."""

    type: Literal["trace_rl"] = "trace_rl"  # type: ignore[assignment]
    num_segments: int = Field(64, ge=0)
    """Number R of segments. The released code for LLaDA uses 512 steps, with 8 steps in a
    segment."""
    baseline: Literal["group_mean", "leave_one_out", "z_score"] = "z_score"
    """Baseline of the group. The default is that of the released code."""
    epsilon: float = Field(0.2, ge=0)
    """Lower clip, as a distance from 1. The default is that of the released code."""
    epsilon_high: float = Field(0.2, ge=0)
    """Upper clip, as a distance from 1. The default is that of the released code."""
    beta: float = Field(0.01, ge=0)
    """Weight of the KL. The default is that of the released code."""
    kl_to: Literal["reference", "old"] = "old"
    """Policy that the KL is measured against. The default is that of the released code."""

    paper: ClassVar[str] = "arXiv:2509.06949"
    summary: ClassVar[str] = "StepMerge with standardised advantages and a KL to the old policy"
    cost: ClassVar[str] = "R f+b (+ R f old)"


class CJGRPO(StepMerge):
    """CJ-GRPO: the whole path is replayed, and every step is a segment."""

    type: Literal["cj_grpo"] = "cj_grpo"  # type: ignore[assignment]
    num_segments: int = Field(0, ge=0)
    """Number R of segments; with 0, every step is a segment. The default is that of the paper."""

    paper: ClassVar[str] = "arXiv:2509.23924"
    summary: ClassVar[str] = "every step of the path replayed, a ratio for each token"
    cost: ClassVar[str] = "T f+b (+ T f old, T f reference)"

"""GDSD, guided denoiser self-distillation (arXiv:2605.29398): the log-ratio of the scores is
regressed on the advantage.

The optimum of KL-regularised RL is π_old exp(ψ A) up to a normaliser. GDSD fits the denoiser to this
teacher by least squares: the change of a completion's denoising score, per position, is to be ψ A.
There is no likelihood ratio and no normaliser. The scores are those of ESPO's pairs of complementary
masks. docs/methods/gdsd.md lists the differences from the released code.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError
from unmask.core.records import GIVEN, LossInputs, LossOutput, Needs, Rollout, Views
from unmask.functional.advantage import group_advantage
from unmask.functional.behaviour import LevelOrOff
from unmask.functional.completions import one_by_completion, sum_by_completion
from unmask.functional.elbo import coupled_masks, elbo_weight, masks_of_counts, stratified_counts
from unmask.functional.surrogate import kl_k2
from unmask.methods.base import Method
from unmask.methods.views import masked_views


class GDSD(Method):
    """Guided denoiser self-distillation."""

    type: Literal["gdsd"] = "gdsd"
    num_samples: int = Field(1, ge=1)
    """Number M of pairs of complementary masks for each completion. The default is that of the
    released recipe."""
    guidance: float = Field(0.04, gt=0)
    """Strength ψ of the guidance: the change of the score per position that an advantage of 1 asks
    for. The default is that of the released code."""
    epsilon: float = Field(4e-4, ge=0, lt=1)
    """Bound of the change of the score of a pair, a whole completion's: beyond log(1 - ε) and
    log(1 + ε) it has no gradient. 0 sets no bound. The default is that of the released recipe."""
    centred: bool = False
    """True to subtract from the log-probability of each token the mean over the vocabulary, as in
    GDSD-TLC. Such scores are no log-probabilities, so `beta` must be 0."""
    baseline: Literal["leave_one_out", "group_mean"] = "leave_one_out"
    """Baseline of the group. The default is that of the released code."""
    beta: float = Field(0.001, ge=0)
    """Weight of the KL to the reference policy; with 0, no reference policy is needed. The default
    is that of the released recipe."""

    scores: ClassVar[str] = "regression"
    paper: ClassVar[str] = "arXiv:2605.29398"
    summary: ClassVar[str] = "least squares: the change of a completion's denoising score is to be proportional to A"
    unbiased: ClassVar[str] = "no"
    estimates: ClassVar[str] = (
        "at the old policy 2ψ E[A ∇ELBO] / L, the direction of ESPO; elsewhere the gradient of a squared distance to the "
        "guided teacher, plus the variance of the masks"
    )
    cost: ClassVar[str] = "2M f+b (+ 2M f old, 2M f reference), two passes"
    penalties: ClassVar[tuple[str, ...] | None] = None
    on_path: ClassVar[bool] = False
    separable: ClassVar[bool] = False
    by_completion: ClassVar[bool] = True
    fresh_views: ClassVar[bool] = True

    def needs(self) -> Needs:
        """Require the reference policy if β > 0, and centred scores if the option is set."""
        return Needs(reference="logprob" if self.beta else "none", centred=self.centred)

    def check(self, sampler: SamplerConfig, num_generations: int) -> None:
        """Raise ConfigError also if centred scores are combined with a KL."""
        super().check(sampler, num_generations)
        if self.centred and self.beta:
            raise ConfigError(
                f"method.beta = {self.beta} measures a KL, but the scores of method.centred = true are no log-probabilities. "
                "Set method.beta to 0, or method.centred to false."
            )

    def behaviour_levels(self, sampler: SamplerConfig) -> tuple[LevelOrOff, ...]:
        """Return only `off`: the squares are not proportional to an advantage."""
        return ("off",)

    def plan(self, rollout: Rollout, generator: torch.Generator) -> Views:
        """Plan 2 M views for each completion. M random sets of 0 to L positions are masked, and the
        complement of each set too."""
        is_maskable = rollout.trajectory.unmask_step != GIVEN
        counts = stratified_counts(is_maskable.sum(-1), self.num_samples, 0, generator)
        masks = coupled_masks(masks_of_counts(counts, is_maskable, generator), is_maskable)
        return masked_views(masks, elbo_weight(masks, is_maskable, coupled=True) / 2)

    def advantage(self, rollout: Rollout) -> Float[Tensor, "B *K"]:
        """Return the reward r minus the baseline of the group, without division by a standard
        deviation."""
        return group_advantage(rollout.reward, rollout.group_size, self.baseline)

    def loss(self, inputs: LossInputs) -> LossOutput:
        """Compute (1/M) [(Δ/L - ψ A)² + β k2 / L] for each pair of each completion, where Δ is the
        change of the score of the pair within its bounds."""
        length = inputs.target.shape[1]
        assert inputs.slot is not None
        pair = inputs.row * self.num_samples + inputs.slot // 2
        score, old = (sum_by_completion(inputs.weight * value.sum(-1), pair) for value in (inputs.new, inputs.old))
        change = score - old
        if self.epsilon:
            change = change.clamp(math.log1p(-self.epsilon), math.log1p(self.epsilon))
        wanted = self.guidance * one_by_completion(inputs.advantage, pair)
        loss = (change / length - wanted).square()
        is_cut = (change != score - old).float()
        metrics = {"policy/elbo": score.detach() / length, "clip_ratio/region_mean": is_cut}
        if self.beta:
            assert inputs.reference is not None
            kl = kl_k2(score, sum_by_completion(inputs.weight * inputs.reference.sum(-1), pair)) / length
            loss = loss + self.beta * kl
            metrics["kl"] = kl.detach()
        return LossOutput(loss / self.num_samples, metrics)

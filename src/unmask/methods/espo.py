"""ESPO (arXiv:2512.03759): the whole completion is the action, and its ELBO replaces its
log-probability.

The ratio is exp((ELBO_new - ELBO_old) / L) with the fixed completion length L. ELBOs are means over
M pairs of a random set of masked positions and its complement; the new, the old and the reference
policy use the same sets.

docs/methods/espo.md describes the differences from the released code: log-probabilities are those
at the sampling temperature, padding is masked in the attention, there is no dropout, and the M
draws of a completion are evenly spaced.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from unmask.core.records import GIVEN, LossInputs, LossOutput, Needs, Rollout, Views
from unmask.functional.advantage import group_advantage
from unmask.functional.completions import one_by_completion, sum_by_completion
from unmask.functional.elbo import coupled_masks, elbo_weight, masks_of_counts, stratified_counts
from unmask.functional.surrogate import kl_k2
from unmask.methods.ratio import RatioMethod
from unmask.methods.views import masked_views


class ESPO(RatioMethod):
    """ELBO-based sequence-level policy optimisation."""

    type: Literal["espo"] = "espo"
    num_samples: int = Field(2, ge=1)
    """Number M of pairs of complementary masks for each ELBO. The default is that of the released
    recipes."""
    baseline: Literal["leave_one_out", "group_mean"] = "leave_one_out"
    """Baseline of the group. The default is that of the released code; the paper's text uses the
    group mean, which shrinks the gradient by (G - 1) / G."""
    epsilon: float = Field(0.2, ge=0)
    """Lower clip of the ratio per token, as a distance from 1. The default is that of the released
    recipes, except the recipe for Countdown, which has 0."""
    epsilon_high: float = Field(0.2, ge=0)
    """Upper clip of the ratio per token, as a distance from 1. The default is that of the lower
    clip."""
    beta: float = Field(0.01, ge=0)
    """Weight of the KL to the reference policy; with 0, no reference policy is needed. The default
    is that of the released recipes for Sudoku and code; the recipe for Countdown has 0.003, and
    those for GSM8K and MATH have 0.001."""

    scores: ClassVar[str] = "random masks"
    paper: ClassVar[str] = "arXiv:2512.03759"
    summary: ClassVar[str] = "one ratio of ELBOs for each completion, from pairs of complementary masks"
    unbiased: ClassVar[str] = "no"
    estimates: ClassVar[str] = (
        "E[A ∇ELBO] / L, which is not the policy gradient: the ELBO of a completion is below its log-probability"
    )
    cost: ClassVar[str] = "2M f+b (+ 2M f old, 2M f reference), two passes"
    penalties: ClassVar[tuple[str, ...] | None] = ("beta",)
    on_path: ClassVar[bool] = False
    samples: ClassVar[str] = "ELBOs of whole completions"
    separable: ClassVar[bool] = False
    by_completion: ClassVar[bool] = True
    fresh_views: ClassVar[bool] = True

    def needs(self) -> Needs:
        """Require the reference policy if β > 0."""
        return Needs(reference="logprob" if self.beta else "none")

    def plan(self, rollout: Rollout, generator: torch.Generator) -> Views:
        """Plan 2 M views for each completion. M random sets of 0 to L positions are masked, and the
        complement of each set too."""
        is_maskable = rollout.trajectory.unmask_step != GIVEN
        counts = stratified_counts(is_maskable.sum(-1), self.num_samples, 0, generator)
        masks = coupled_masks(masks_of_counts(counts, is_maskable, generator), is_maskable)
        weight = elbo_weight(masks, is_maskable, coupled=True)
        return masked_views(masks, weight / (2 * self.num_samples))

    def advantage(self, rollout: Rollout) -> Float[Tensor, "B *K"]:
        """Return the reward r minus the baseline of the group, without division by a standard
        deviation."""
        return group_advantage(rollout.reward, rollout.group_size, self.baseline)

    def loss(self, inputs: LossInputs) -> LossOutput:
        """Compute -min(ρ A, clip(ρ) A) + β k2 / L for each completion, where ρ and k2 are those of
        the ELBOs."""
        length = inputs.target.shape[1]
        new, old = (self._elbo(logprob, inputs) for logprob in (inputs.new, inputs.old))
        advantage = one_by_completion(inputs.advantage, inputs.row)
        loss, metrics = self.surrogate((new - old) / length, advantage)
        metrics["policy/elbo"] = new.detach() / length
        if self.beta:
            assert inputs.reference is not None
            # The division follows the square: dividing the ELBOs would shrink the term by another
            # factor of L.
            kl = kl_k2(new, self._elbo(inputs.reference, inputs)) / length
            loss = loss + self.beta * kl
            metrics["kl"] = kl.detach()
        return LossOutput(loss, metrics)

    @staticmethod
    def _elbo(logprob: Tensor, inputs: LossInputs) -> Tensor:
        return sum_by_completion(inputs.weight * logprob.sum(-1), inputs.row)

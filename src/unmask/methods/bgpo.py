"""BGPO, boundary-guided policy optimisation (arXiv:2510.11683): a lower bound of the ELBO objective
that is a sum over masks.

The objective exp(ELBO_new - ELBO_old) A needs the autograd graphs of all masks in memory at the
same time. Let d_j be the difference computed from mask j. The objective is at least the mean over
masks of (1 + d_j) A for A >= 0 (the tangent of exp), and of exp(d_j) A for A < 0 (Jensen). At the
old policy the bound has the value and the gradient of the objective, and each mask is
back-propagated alone.

docs/methods/bgpo.md lists the differences from the paper and the released code.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from unmask.core.records import LossInputs, LossOutput, Needs, Rollout, Views
from unmask.functional.advantage import group_advantage, z_score
from unmask.functional.elbo import elbo_weight, masks_of_counts, stratified_counts
from unmask.methods.ratio import RatioMethod
from unmask.methods.views import masked_views, scored_tokens


class BGPO(RatioMethod):
    """Boundary-guided policy optimisation."""

    type: Literal["bgpo"] = "bgpo"
    num_samples: int = Field(16, ge=1)
    """Number n_t of masks for each completion. The paper uses 16, and 32 for Sudoku."""
    baseline: Literal["group_mean", "leave_one_out"] = "group_mean"
    """Baseline of the group, if `scale` is `none`."""
    scale: Literal["deviation", "none"] = "deviation"
    """Scale of the advantages. `deviation` divides them by the standard deviation of the group's
    rewards, as in the paper; this biases the gradient."""
    epsilon: float = Field(0.2, ge=0)
    """Lower clip of a mask's bound, as a distance from 1. The default is that of the released
    code."""
    epsilon_high: float = Field(0.2, ge=0)
    """Upper clip, as a distance from 1. The default is that of the released code."""
    dual_clip: float = Field(3.0, ge=0)
    """Upper bound of the ratio ρ for negative advantages; 0 sets no bound. The default is that of
    the released code."""

    scores: ClassVar[str] = "random masks"
    paper: ClassVar[str] = "arXiv:2510.11683"
    summary: ClassVar[str] = "a linear bound of the ELBO objective, which needs memory for only one mask"
    unbiased: ClassVar[str] = "no"
    estimates: ClassVar[str] = (
        "E[A ∇ELBO] / L, with the ELBO of the tokens up to the first EOS; scale=deviation divides A by the deviation"
    )
    cost: ClassVar[str] = "n f+b (+ n f old)"
    penalties: ClassVar[tuple[str, ...] | None] = ()
    on_path: ClassVar[bool] = False
    samples: ClassVar[str] = "lower bounds on likelihoods"

    def needs(self) -> Needs:
        """Require groups of completions, and nothing else."""
        return Needs()

    def plan(self, rollout: Rollout, generator: torch.Generator) -> Views:
        """Plan n_t views for each completion of n tokens. A view masks l of the tokens, where l is
        between 1 and n, and has weight n / (l L), where L is the fixed completion length."""
        is_maskable = scored_tokens(rollout.trajectory)
        counts = stratified_counts(is_maskable.sum(-1), self.num_samples, 1, generator)
        masks = masks_of_counts(counts, is_maskable, generator)
        return masked_views(masks, elbo_weight(masks, is_maskable, coupled=False) / is_maskable.shape[1])

    def advantage(self, rollout: Rollout) -> Float[Tensor, "B *K"]:
        """Return the reward r minus the baseline of the group; with `scale: deviation`, return (r -
        mean) / deviation, both computed over the group."""
        if self.scale == "deviation":
            return z_score(rollout.reward, rollout.group_size, correction=1, floor=1e-6)
        return group_advantage(rollout.reward, rollout.group_size, self.baseline)

    def loss(self, inputs: LossInputs) -> LossOutput:
        """Compute -g_j / n_t for each view, where g_j is (1 + d_j) A or exp(d_j) A within the trust
        region."""
        difference = inputs.weight * (inputs.new - inputs.old).sum(-1)
        is_linear = inputs.advantage >= 0
        # The tangent is written as the exponential of log(1 + d), so that both cases share one
        # trust region. The logarithm does not exist below d = -1. Below d = -1/2 the tangent is
        # therefore used directly. The trust region does not clip it there, because A >= 0 favours
        # larger d.
        floored = difference.clamp(min=-0.5)
        log_ratio = torch.where(is_linear, floored.log1p(), difference)
        below = torch.where(is_linear, difference - floored, 0.0)
        loss, metrics = self.surrogate(log_ratio, inputs.advantage)
        return LossOutput((loss - below * inputs.advantage) / self.num_samples, metrics)

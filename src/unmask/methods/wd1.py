"""wd1 (arXiv:2507.08838): raise and lower the likelihoods of completions by softmax weights,
without a ratio.

The likelihood is the mean-field likelihood of diffu-GRPO. The method has no ratio, no clip and no
reference policy. Instead it weights the likelihoods: better completions of a group are imitated in
proportion to exp(A), and worse ones are unlearned in proportion to exp(-A).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from unmask.core.records import LossInputs, LossOutput, Needs, Rollout, Views
from unmask.functional.advantage import softmax_advantage
from unmask.methods.base import Method
from unmask.methods.views import mean_field_views


class WD1(Method):
    """wd1: weighted log-likelihood policy optimisation."""

    type: Literal["wd1"] = "wd1"
    prompt_mask_ratio: float = Field(0.15, ge=0, le=1)
    """Probability with which a prompt token is masked; 0 masks none. The default is that of the
    released code."""

    scores: ClassVar[str] = "random masks"
    paper: ClassVar[str] = "arXiv:2507.08838"
    summary: ClassVar[str] = (
        "mean-field likelihoods weighted by a softmax of the advantages and a softmax of their negatives"
    )
    unbiased: ClassVar[str] = "no"
    estimates: ClassVar[str] = (
        "the gradient of a mean-field likelihood weighted by a bounded function of the group's rewards; not the policy gradient"
    )
    cost: ClassVar[str] = "1 f+b in each iteration"
    penalties: ClassVar[tuple[str, ...] | None] = ()
    on_path: ClassVar[bool] = False
    fresh_views: ClassVar[bool] = True

    def needs(self) -> Needs:
        """Require groups of completions, and nothing else."""
        return Needs()

    def plan(self, rollout: Rollout, generator: torch.Generator) -> Views:
        """Plan one fully masked view of each completion."""
        return mean_field_views(rollout.trajectory, torch.ones_like(rollout.reward), self.prompt_mask_ratio, generator)

    def advantage(self, rollout: Rollout) -> Float[Tensor, "B *K"]:
        """Return G (softmax(A) - softmax(-A)), where the softmax is taken over the group."""
        return softmax_advantage(rollout.reward, rollout.group_size)

    def loss(self, inputs: LossInputs) -> LossOutput:
        """Compute -A Σ_k log p(o_k), a sum over the tokens instead of their mean."""
        return LossOutput(-inputs.weight * inputs.advantage * inputs.new.sum(-1))

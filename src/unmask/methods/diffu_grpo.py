"""diffu-GRPO (d1, arXiv:2504.12216): token ratios under a mean-field likelihood, with a partly
masked prompt.

The likelihood of a completion is computed in one forward pass in which the whole completion is
masked: π(o | q) ≈ Π_k p_θ(o_k | q' and no other token), where each token of the prompt q' is masked
with probability 0.15. Each pass over a rollout masks the prompt again, which regularises many
passes over the same completions.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from unmask.core.records import LossInputs, LossOutput, Needs, Rollout, Views
from unmask.functional.advantage import group_advantage
from unmask.functional.masking import strata, token_mean_weight
from unmask.methods.ratio import RatioMethod
from unmask.methods.views import mean_field_views, scored_tokens, text_views


class DiffuGRPO(RatioMethod):
    """Diffusion GRPO, the method of d1."""

    type: Literal["diffu_grpo"] = "diffu_grpo"
    prompt_mask_ratio: float = Field(0.15, ge=0, le=1)
    """Probability of masking a prompt token; 0 masks none. The default is that of the paper and the
    released code."""
    num_strata: int = Field(1, ge=1)
    """Number S of random parts of a completion that are masked in turn, each in a view of its own
    with the other parts visible. With 1, as in the paper, the whole completion is masked at once;
    more parts are the stratified masking of DACA-GRPO (arXiv:2605.16342)."""
    baseline: Literal["group_mean", "leave_one_out"] = "group_mean"
    """Baseline of the group, without division by its standard deviation. The default is that of the
    released code; the leave-one-out advantage is G / (G - 1) times as large."""
    epsilon: float = Field(0.5, ge=0)
    """Lower clip of the token ratio, as a distance from 1. The default is that of the released
    code."""
    epsilon_high: float = Field(0.5, ge=0)
    """Upper clip, as a distance from 1. The default is that of the released code."""
    beta: float = Field(0.04, ge=0)
    """Weight of the KL (k3, token by token) to the reference policy; with 0, no reference policy is
    needed. The default is that of the released code."""

    scores: ClassVar[str] = "random masks"
    paper: ClassVar[str] = "arXiv:2504.12216"
    summary: ClassVar[str] = "token ratios given an empty completion and a partly masked prompt"
    unbiased: ClassVar[str] = "no"
    estimates: ClassVar[str] = (
        "the gradient of a mean-field likelihood weighted by advantage, divided by the batch's number of tokens; not the policy "
        "gradient, in which tokens depend on each other"
    )
    cost: ClassVar[str] = "S f+b (+ S f old, S f reference) in each iteration, S = 1 as published"
    penalties: ClassVar[tuple[str, ...] | None] = ("beta",)
    on_path: ClassVar[bool] = False
    fresh_views: ClassVar[bool] = True

    def needs(self) -> Needs:
        """Require the reference policy if β > 0."""
        return Needs(reference="logprob" if self.beta else "none")

    def plan(self, rollout: Rollout, generator: torch.Generator) -> Views:
        """Plan one fully masked view of each completion, or one for each stratum of its tokens, with
        weight B divided by the number of tokens in the batch. The prompt is masked alike in all
        views of a completion."""
        path = rollout.trajectory
        target = scored_tokens(path)
        weight = token_mean_weight(target.sum(-1))
        views = mean_field_views(path, weight, self.prompt_mask_ratio, generator)
        if self.num_strata == 1:
            return views
        masks, prompt = strata(target, self.num_strata, generator), views.prompt_hidden
        if prompt is not None:
            prompt = prompt.unsqueeze(1).expand(-1, self.num_strata, -1)
        parts = text_views(path, masks, weight.unsqueeze(-1).expand(-1, self.num_strata), prompt)
        return parts.take(parts.target.any(-1))

    def advantage(self, rollout: Rollout) -> Float[Tensor, "B *K"]:
        """Return the reward r minus the baseline of the group."""
        return group_advantage(rollout.reward, rollout.group_size, self.baseline)

    def loss(self, inputs: LossInputs) -> LossOutput:
        """Compute w Σ_k (-min(ρ_k A, clip(ρ_k) A) + β k3_k), where ρ_k is the ratio of token k."""
        loss, metrics = self.token_loss(inputs, inputs.reference, self.beta)
        return LossOutput(inputs.weight * loss.sum(-1), metrics)

"""UniGRPO (MMaDA, arXiv:2505.15809): token ratios at the masked positions of randomly masked
completions.

The prompt is visible. Each view (one masked version of a completion) masks each token with a
probability of its own. The probabilities of the views of a completion are spread evenly over the
range from `min_ratio` to `max_ratio`.
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
from unmask.functional.advantage import group_advantage
from unmask.functional.elbo import mask_at_times
from unmask.methods.ratio import RatioMethod
from unmask.methods.views import scored_tokens, text_views


class UniGRPO(RatioMethod):
    """Unified GRPO of MMaDA, for text."""

    type: Literal["unigrpo"] = "unigrpo"
    num_views: int = Field(1, ge=1)
    """Number of masked views of a completion in each iteration. The default is that of the paper.
    The code that the paper links to (dLLM-RL) uses 35 views in a single iteration."""
    min_ratio: float = Field(0.1, ge=0, le=1)
    """Smallest probability t with which a token is masked. The default is that of the dLLM-RL
    code."""
    max_ratio: float = Field(0.9, ge=0, le=1)
    """Largest probability t with which a token is masked. The default is that of the dLLM-RL
    code."""
    baseline: Literal["group_mean", "leave_one_out"] = "group_mean"
    """Baseline of the group, without division by its standard deviation."""
    epsilon: float = Field(0.2, ge=0)
    """Lower clip of the token ratio, as a distance from 1. The default is that of the dLLM-RL
    code."""
    epsilon_high: float = Field(0.2, ge=0)
    """Upper clip, as a distance from 1. The default is that of the dLLM-RL code."""
    beta: float = Field(0.01, ge=0)
    """Weight of the KL (k3, token by token) to the reference policy; with 0, no reference policy is
    needed. The default is that of the dLLM-RL code."""

    scores: ClassVar[str] = "random masks"
    paper: ClassVar[str] = "arXiv:2505.15809"
    summary: ClassVar[str] = "token ratios at the masked positions of randomly masked completions"
    unbiased: ClassVar[str] = "no"
    estimates: ClassVar[str] = (
        "the gradient of the mean log-probability of randomly masked tokens, weighted by advantage; not the policy gradient"
    )
    cost: ClassVar[str] = "M f+b (+ M f old, M f reference) in each iteration"
    penalties: ClassVar[tuple[str, ...] | None] = ("beta",)
    on_path: ClassVar[bool] = False
    fresh_views: ClassVar[bool] = True

    def needs(self) -> Needs:
        """Require the reference policy if β > 0."""
        return Needs(reference="logprob" if self.beta else "none")

    def check(self, sampler: SamplerConfig, num_generations: int) -> None:
        """Raise ConfigError also if the range of mask ratios is empty or contains only 0."""
        super().check(sampler, num_generations)
        if self.min_ratio > self.max_ratio or not self.max_ratio:
            raise ConfigError(
                f"method.min_ratio = {self.min_ratio} and method.max_ratio = {self.max_ratio} leave no share of tokens to mask. "
                "Set 0 <= min_ratio <= max_ratio, and max_ratio above 0."
            )

    def plan(self, rollout: Rollout, generator: torch.Generator) -> Views:
        """Plan M views of each completion. The weight of a view is 1 / (M n), where n is the number
        of tokens that the view masks."""
        target = scored_tokens(rollout.trajectory).repeat_interleave(self.num_views, dim=0)
        # The probabilities are evenly spaced from a random start, so each of them is uniformly
        # distributed.
        start = torch.rand(len(rollout.trajectory), 1, generator=generator)
        place = (start + torch.arange(self.num_views) / self.num_views).frac().flatten()
        masks = mask_at_times(self.min_ratio + (self.max_ratio - self.min_ratio) * place, target, generator)
        masks = masks.view(len(rollout.trajectory), self.num_views, -1)
        return text_views(rollout.trajectory, masks, 1 / (self.num_views * masks.sum(-1).clamp(min=1)))

    def advantage(self, rollout: Rollout) -> Float[Tensor, "B *K"]:
        """Return the reward r minus the baseline of the group."""
        return group_advantage(rollout.reward, rollout.group_size, self.baseline)

    def loss(self, inputs: LossInputs) -> LossOutput:
        """Compute w Σ_i (-min(ρ_i A, clip(ρ_i) A) + β k3_i) over the masked tokens i. Here w is the
        weight of the view, ρ_i is the probability ratio of token i, A is the advantage, and k3_i is
        the KL estimate of token i."""
        loss, metrics = self.token_loss(inputs, inputs.reference, self.beta)
        return LossOutput(inputs.weight * loss.sum(-1), metrics)

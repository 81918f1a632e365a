"""Coupled-GRPO (DiffuCoder, arXiv:2506.20639): token ratios of log-probabilities averaged over
complementary masks.

Each token gets two log-probabilities: the first is predicted without any other token, as in
diffu-GRPO, and the second is predicted from some of the other tokens. For the second, the
completion is masked twice, by a random set and by its complement, so every token is a target
exactly once.
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
from unmask.methods.views import mean_tokens, scored_tokens, text_views

NUM_VIEWS = 3
"""Number of views (masked versions) of a completion: everything masked, a random set masked, and
its complement masked."""


class CoupledGRPO(RatioMethod):
    """Coupled-GRPO: ratios of token log-probabilities averaged over complementary masks."""

    type: Literal["coupled_grpo"] = "coupled_grpo"
    min_ratio: float = Field(0.2, gt=0, lt=1)
    """Smallest share t of tokens that the random set masks. The default is that of the released
    code."""
    max_ratio: float = Field(0.8, gt=0, lt=1)
    """Largest share t of tokens that the random set masks. The default is that of the released
    code."""
    baseline: Literal["leave_one_out", "group_mean"] = "leave_one_out"
    """Baseline of the group, without division by its standard deviation. The default is that of the
    released code."""
    epsilon: float = Field(0.5, ge=0)
    """Lower clip of the token ratio, as a distance from 1. The default is that of the released
    code."""
    epsilon_high: float = Field(0.5, ge=0)
    """Upper clip, as a distance from 1. The default is that of the released code."""
    beta: float = Field(0.01, ge=0)
    """Weight of the KL (k3 of the averaged log-probabilities) to the reference policy; with 0, no
    reference policy is needed. The default is that of the released code."""

    scores: ClassVar[str] = "random masks"
    paper: ClassVar[str] = "arXiv:2506.20639"
    summary: ClassVar[str] = "token ratios averaged over complementary masks"
    unbiased: ClassVar[str] = "no"
    estimates: ClassVar[str] = (
        "the gradient of half a mean-field likelihood plus one given random other tokens, weighted by advantage and divided by "
        "the batch's number of tokens; not the policy gradient"
    )
    cost: ClassVar[str] = "3 f+b (+ 3 f old, 3 f reference) in each iteration, two passes"
    penalties: ClassVar[tuple[str, ...] | None] = ("beta",)
    on_path: ClassVar[bool] = False
    samples: ClassVar[str] = "weighted means of two likelihoods of a token"
    separable: ClassVar[bool] = False
    by_completion: ClassVar[bool] = True
    fresh_views: ClassVar[bool] = True

    def needs(self) -> Needs:
        """Require the reference policy if β > 0."""
        return Needs(reference="logprob" if self.beta else "none")

    def check(self, sampler: SamplerConfig, num_generations: int) -> None:
        """Raise ConfigError also if the range of mask ratios is empty."""
        super().check(sampler, num_generations)
        if self.min_ratio > self.max_ratio:
            raise ConfigError(
                f"method.min_ratio = {self.min_ratio} is above method.max_ratio = {self.max_ratio}. Swap them or make them equal."
            )

    def plan(self, rollout: Rollout, generator: torch.Generator) -> Views:
        """Plan three views of each completion, which mask all tokens, a random set of them, and the
        others. Their weights in the averaged log-probability are 1/2, 1/(2 t) and 1/(2 (1 - t)),
        where t is the share of the tokens in the random set."""
        target = scored_tokens(rollout.trajectory)
        time = self.min_ratio + (self.max_ratio - self.min_ratio) * torch.rand(len(target), generator=generator)
        masked = mask_at_times(time, target, generator)
        time = time.to(target.device)
        weight = torch.stack([torch.ones_like(time), 1 / time, 1 / (1 - time)], dim=1) / 2
        return text_views(rollout.trajectory, torch.stack([target, masked, target & ~masked], dim=1), weight)

    def advantage(self, rollout: Rollout) -> Float[Tensor, "B *K"]:
        """Return the reward r minus the baseline of the group."""
        return group_advantage(rollout.reward, rollout.group_size, self.baseline)

    def loss(self, inputs: LossInputs) -> LossOutput:
        """Compute Σ_k (-min(ρ_k A, clip(ρ_k) A) + β k3_k) for each completion, divided by the mean
        number of tokens of a completion in the batch."""
        target = inputs.target[::NUM_VIEWS]
        new, old = self._averaged(inputs.new, inputs), self._averaged(inputs.old, inputs)
        reference = None if inputs.reference is None else self._averaged(inputs.reference, inputs)
        row, weight, advantage = (t[::NUM_VIEWS] for t in (inputs.row, inputs.weight, inputs.advantage))
        averaged = LossInputs(new, old, None, None, row, target, weight, advantage)
        loss, metrics = self.token_loss(averaged, reference, self.beta)
        return LossOutput(loss.sum(-1) / mean_tokens(target.sum(-1), inputs), metrics)

    @staticmethod
    def _averaged(logprob: Tensor, inputs: LossInputs) -> Tensor:
        """Return ½ (log p(o_k | nothing) + w log p(o_k | the set without k)), [B, L], where 1 / w
        is the probability with which token k is in the masked set (the random set or its
        complement)."""
        return (inputs.weight.unsqueeze(-1) * logprob).view(-1, NUM_VIEWS, logprob.shape[-1]).sum(1)

"""Direct advantage policy optimisation (arXiv:2412.18279) at the granularity of denoising steps.

The log-ratio of a step is regressed on its advantage, the change of the value of the state. The value
is the reward of the one-step completion, as in EGSPO-SA, or that of a learned critic, as in the paper.
docs/methods/direct_advantage.md describes the differences, and the relation to soft Q-learning.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from unmask.core.config import SamplerConfig
from unmask.core.records import LossInputs, LossOutput, Needs, Rollout, Views
from unmask.functional.behaviour import LevelOrOff
from unmask.functional.selection import selected_path_steps
from unmask.functional.step_values import next_value, of_steps
from unmask.methods.base import Method
from unmask.methods.views import step_views, step_weight


class DirectAdvantage(Method):
    """Regression of the log-ratio of a step on the change of value that the step made."""

    type: Literal["direct_advantage"] = "direct_advantage"
    beta: float = Field(0.04, ge=0)
    """Temperature β of the regression: the target of a step's log-ratio is A / β, and with 0 there
    is no target, only the policy gradient. The default is the KL weight of EGSPO; the value of the
    paper is not known to us."""
    anchor: Literal["old", "reference"] = "old"
    """Policy that the log-ratio is measured from: `old` for the policy at the start of the update,
    which sampled the steps, as in the paper's iterations, or `reference` for the reference
    policy."""
    num_selected: int = Field(8, ge=1)
    """Number K of denoising steps that get a gradient."""
    step_choice: Literal["all", "uniform", "entropy_topk"] = "all"
    """Rule that selects the K steps; `all` takes every step, as in the paper, and ignores
    `num_selected`."""

    value: Literal["one_step", "critic"] = "one_step"
    """Value of a state: `one_step` for the reward of its one-step completion, or `critic` for that
    of a learned critic, as in the paper."""

    paper: ClassVar[str] = "arXiv:2412.18279"
    summary: ClassVar[str] = "the log-ratio of a step regressed on the change of value that it made"
    unbiased: ClassVar[str] = "no"
    estimates: ClassVar[str] = (
        "the gradient of the value one step ahead, until the policy leaves its anchor; then minus β times the gradient of half "
        "the squared log-ratio"
    )
    cost: ClassVar[str] = "K f+b (+ K f old, or K f reference); T reward calls, or T f critic"
    scores: ClassVar[str] = "regression"
    penalties: ClassVar[tuple[str, ...] | None] = ("beta",)

    def needs(self) -> Needs:
        """Require the values of the states before all steps, and the reference policy if it is the
        anchor."""
        reference: Literal["none", "logprob"] = "logprob" if self.anchor == "reference" else "none"
        has_critic = self.value == "critic"
        return Needs(greedy=not has_critic, selection=("all", 1), reference=reference, group=False, critic=has_critic)

    def check(self, sampler: SamplerConfig, num_generations: int) -> None:
        """Raise ConfigError also if K is larger than the number T of denoising steps."""
        super().check(sampler, num_generations)
        if self.step_choice != "all":
            self.refuse_more_than_steps("num_selected", sampler)

    def behaviour_levels(self, sampler: SamplerConfig) -> tuple[LevelOrOff, ...]:
        """Return only `off`: the loss is a regression on the sampled steps, whichever policy drew
        them, and is not proportional to the advantage."""
        return ("off",)

    def plan(self, rollout: Rollout, generator: torch.Generator) -> Views:
        """Plan one view for each selected step; see `step_weight`."""
        steps = self._steps(rollout)
        return step_views(rollout.trajectory, steps, step_weight(rollout.trajectory, steps.shape[1]))

    def advantage(self, rollout: Rollout) -> Float[Tensor, "B *K"]:
        """Return A_k = V(x_{k+1}) - V(x_k), [B, K], where V(x_T) is the reward r."""
        if self.value == "critic":
            value, kept = rollout.value, self.critic_steps(rollout)
        else:
            value, kept = rollout.one_step_reward, rollout.trajectory.selected_steps
        assert value is not None
        gained = next_value(rollout.reward, value, kept >= 0) - value
        return of_steps(gained.masked_fill(kept < 0, 0.0), kept, self._steps(rollout))

    def loss(self, inputs: LossInputs) -> LossOutput:
        """Compute w ((β/2) ℓ_k² - A_k ℓ_k) for the log-ratio ℓ_k of the joint probabilities of the
        step's tokens, which is (β/2) (ℓ_k - A_k / β)² up to a constant."""
        anchor = inputs.reference if self.anchor == "reference" else inputs.old
        assert anchor is not None
        log_ratio = (inputs.new - anchor).sum(-1)
        loss = 0.5 * self.beta * log_ratio.square() - inputs.advantage * log_ratio
        gap = (self.beta * log_ratio - inputs.advantage).detach().abs()
        return LossOutput(inputs.weight * loss, {"regression/gap": gap, "policy/ratio_max": log_ratio.detach().exp()})

    def _steps(self, rollout: Rollout) -> Tensor:
        """Return the steps that are trained, [B, K]."""
        path = rollout.trajectory
        selection = (self.step_choice, self.num_selected)
        is_eos = path.tokens == path.eos_id
        return selected_path_steps(selection, path.unmask_step, path.entropy, is_eos, path.seed, path.num_steps)

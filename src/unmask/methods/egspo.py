"""EGSPO and EGSPO-SA (arXiv:2603.12554): policy gradients at the K denoising steps of highest entropy.

Denoising is a finite-horizon MDP: state x_k, action the tokens committed at step k, reward r(x_T) at the end. The policy
gradient is Σ_k E[A_k ∇ log π(x_{k+1} | x_k)]; a dropped step costs at most a constant times its entropy, so the K steps of
largest joint entropy are kept. EGSPO-SA takes as value of a state the reward of its greedy one-step completion.

Departures from the released code, each described in docs/methods/egspo.md: log-probabilities at the sampling temperature,
steps after the last non-EOS commitment are no candidates, fewer than K candidates give fewer slots.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from unmask.core.config import SamplerConfig
from unmask.core.records import LossInputs, LossOutput, Needs, Rollout, Trajectory, Views
from unmask.functional.advantage import controlled_advantage, fitted_gain, group_advantage
from unmask.functional.selection import inverse_inclusion, selected_path_steps
from unmask.functional.surrogate import kl_k3
from unmask.methods.base import RatioMethod
from unmask.methods.views import step_views


class EGSPO(RatioMethod):
    """Entropy-guided stepwise policy optimisation; with `stepwise_weight` > 0, its stepwise-advantage form."""

    type: Literal["egspo"] = "egspo"
    num_selected: int = Field(8, ge=1)
    """K, denoising steps that get a gradient. Default of the release."""
    step_choice: Literal[
        "entropy_topk", "entropy_sampled", "uniform", "low_discrepancy", "last_k", "lowest_entropy", "all"
    ] = "entropy_topk"
    """How the K steps are chosen. `entropy_sampled` draws them in proportion to entropy and weighs them by the inverse of the
    probability, which is unbiased; `all` takes every step, whatever `num_selected` says."""
    stepwise_weight: float = Field(0.0, ge=0)
    """λ: weight of r - r(x̂_k) beside r. 0 is EGSPO, 0.5 is EGSPO-SA."""
    gain: Literal["fixed", "fitted"] = "fixed"
    """Of the value as control variate: λ/(1+λ), and 1 where credit telescopes; or the coefficient fitted on the other groups of
    the process, of which there must be some."""
    credit: Literal["return", "telescoped"] = "return"
    """What a step is credited with: the reward of the finished completion, or the value of the state that it leads to."""
    baseline: Literal["group_mean", "leave_one_out"] = "group_mean"
    """Over the group, slot by slot. The group mean shrinks the gradient by (G - 1) / G; leave-one-out does not."""
    choice_term: bool = True
    """Whether the probability of the choice of positions counts, where the order has one (`plackett_luce`)."""
    epsilon: float = Field(0.2, ge=0)
    """Lower clip of the step ratio. Default of the release."""
    epsilon_high: float = Field(0.5, ge=0)
    """Upper clip. Default of the release."""
    beta: float = Field(0.04, ge=0)
    """Weight of the KL to the reference policy; 0 needs no reference. Default of the release."""
    kl: Literal["k3", "exact"] = "k3"
    """`k3` of the step's log-ratio, or the exact KL summed over the step's tokens."""

    paper: ClassVar[str] = "arXiv:2603.12554"
    summary: ClassVar[str] = "gradients at the K steps of highest entropy"
    unbiased: ClassVar[str] = "with entropy_sampled or all, and leave_one_out"
    estimates: ClassVar[str] = (
        "the policy gradient less the steps left out; exact with step_choice=all or entropy_sampled and leave_one_out, but for "
        "low_confidence order"
    )
    cost: ClassVar[str] = "K f+b (+ K f old, K f reference)"

    def needs(self) -> Needs:
        """Greedy completions where values are used, those of all steps where credit telescopes; the reference where β > 0."""
        reference: Literal["none", "logprob", "distribution"] = "none"
        if self.beta:
            reference = "distribution" if self.kl == "exact" else "logprob"
        is_telescoped = self.credit == "telescoped"
        return Needs(
            greedy=self.stepwise_weight > 0 or self.gain == "fitted" or is_telescoped,
            selection=("all" if is_telescoped else self.step_choice, self.num_selected),
            reference=reference,
            choice=self.choice_term,
        )

    def check(self, sampler: SamplerConfig, num_generations: int) -> None:
        """Also refuse K > T."""
        super().check(sampler, num_generations)
        if self.step_choice != "all":
            self.refuse_more_than_steps("num_selected", sampler)

    def plan(self, rollout: Rollout, generator: torch.Generator) -> Views:
        """One view for each selected step, with weight 1 / (K L / T): the mean over slots, per token of a step."""
        path = rollout.trajectory
        steps = self._steps(path)
        # Constants: dividing by the tokens or the slots that a path happens to have would bias the gradient.
        tokens_per_step = path.tokens.shape[1] / path.num_steps
        if self.step_choice == "entropy_sampled":
            inverse = inverse_inclusion(steps, self.num_selected, path.unmask_step, path.entropy, path.num_steps)
            return step_views(path, steps, inverse.float() / (path.num_steps * tokens_per_step))
        weight = 1 / (steps.shape[1] * tokens_per_step)
        return step_views(path, steps, torch.full(steps.shape, weight, device=steps.device))

    def advantage(self, rollout: Rollout) -> Float[Tensor, "B *K"]:
        """A_k = (R_k - R̄_k) - c (r(x̂_k) - its mean over the slot), R = r unless credit telescopes; no division by a deviation."""
        if rollout.one_step_reward is None or not self.needs().greedy:
            return group_advantage(rollout.reward, rollout.group_size, self.baseline)
        earned, value, is_valid = rollout.reward, rollout.one_step_reward, rollout.trajectory.selected_steps >= 0
        if self.credit == "telescoped":
            # The state that a step leads to is the one before the next step, and after the last one the completion.
            after = torch.cat([value[:, 1:], value[:, :1]], dim=1)
            is_last = is_valid & ~torch.cat([is_valid[:, 1:], torch.zeros_like(is_valid[:, :1])], dim=1)
            earned = torch.where(is_last, rollout.reward.unsqueeze(-1), after)
            steps = self._steps(rollout.trajectory)
            slot = (rollout.trajectory.selected_steps.unsqueeze(1) == steps.unsqueeze(-1)).int().argmax(-1)
            earned, value, is_valid = earned.gather(1, slot), value.gather(1, slot), steps >= 0
        gain: float | Tensor = self.stepwise_weight / (1 + self.stepwise_weight) if self.credit == "return" else 1.0
        if self.gain == "fitted":
            gain = fitted_gain(earned, value, is_valid, rollout.group_size)
        # Which slot a sampled step falls into depends on the rest of the path.
        pool = self.step_choice == "entropy_sampled"
        return controlled_advantage(earned, value, is_valid, rollout.group_size, gain, self.baseline, pool_slots=pool)

    def loss(self, inputs: LossInputs) -> LossOutput:
        """w (-min(ρ A, clip(ρ) A) + β KL), with ρ the ratio of the step's joint probabilities and w the view's weight."""
        log_ratio, log_step = (inputs.new - inputs.old).sum(-1), inputs.new.sum(-1)
        if inputs.choices is not None:
            new_choice, old_choice = inputs.choices
            log_ratio, log_step = log_ratio + (new_choice - old_choice).sum(-1), log_step + new_choice.sum(-1)
        surrogate, metrics = self.surrogate(log_ratio, inputs.advantage, log_step)
        if self.beta:
            kl = self._kl(inputs)
            surrogate = surrogate + self.beta * kl
            metrics["kl"] = kl.detach()
        return LossOutput(inputs.weight * surrogate, metrics)

    def _steps(self, path: Trajectory) -> Tensor:
        """[B, K] the steps that are trained."""
        is_eos = path.tokens == path.eos_id
        selection = (self.step_choice, self.num_selected)
        return selected_path_steps(selection, path.unmask_step, path.entropy, is_eos, path.seed, path.num_steps)

    def _kl(self, inputs: LossInputs) -> Tensor:
        if self.kl == "exact":
            assert inputs.exact_kl is not None
            return inputs.exact_kl.sum(-1)
        assert inputs.reference is not None
        return kl_k3(inputs.new.sum(-1), inputs.reference.sum(-1))


class EGSPOSA(EGSPO):
    """EGSPO with stepwise advantages: λ = 0.5, the published setting."""

    type: Literal["egspo_sa"] = "egspo_sa"  # type: ignore[assignment]
    stepwise_weight: float = Field(0.5, ge=0)
    """λ of the release."""

    summary: ClassVar[str] = "EGSPO with the greedy one-step completion's reward as value of a state"

"""EGSPO and EGSPO-SA (arXiv:2603.12554): policy gradients at the K denoising steps of highest
entropy.

Denoising is a finite-horizon MDP in which x_k is the state, the tokens committed at step k are the
action, and the reward r(x_T) comes at the end. The policy gradient is Σ_k E[A_k ∇ log π(x_{k+1} |
x_k)]. Dropping a step costs at most a constant times its entropy, so the K steps of largest joint
entropy are kept. In EGSPO-SA the value of a state is the reward of its one-step completion.

docs/methods/egspo.md describes the differences from the released code: log-probabilities are those
at the sampling temperature, steps after the last non-EOS step are not candidates, and fewer than K
candidates give fewer slots.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError
from unmask.core.records import LossInputs, LossOutput, Needs, Rollout, Trajectory, Views
from unmask.functional.advantage import controlled_advantage, fitted_gain, group_advantage
from unmask.functional.behaviour import LevelOrOff
from unmask.functional.selection import inverse_inclusion, selected_path_steps
from unmask.functional.step_values import next_value, of_steps
from unmask.functional.surprisal import surprisal_steps
from unmask.functional.surrogate import kl_k3
from unmask.methods.ratio import RatioMethod
from unmask.methods.views import step_views, step_weight


class EGSPO(RatioMethod):
    """Entropy-guided stepwise policy optimisation. With `stepwise_weight` > 0 it uses stepwise
    advantages (EGSPO-SA)."""

    type: Literal["egspo"] = "egspo"
    num_selected: int = Field(8, ge=1)
    """Number K of denoising steps that get a gradient. The default is that of the released code."""
    step_choice: Literal[
        "entropy_topk",
        "entropy_sampled",
        "surprisal",
        "surprisal_sampled",
        "uniform",
        "low_discrepancy",
        "last_k",
        "lowest_entropy",
        "all",
    ] = "entropy_topk"
    """Rule that selects the K steps. `entropy_sampled` draws them in proportion to entropy and
    weights them by the inverse probability, which is unbiased. `surprisal` draws them without
    replacement by a softmax of the mean surprisal of their tokens, as RLDF does (arXiv:2605.25638);
    `surprisal_sampled` does so with inverse weights. `all` takes every step and ignores
    `num_selected`."""
    choice_temperature: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Temperature of the softmax by which `surprisal` and `surprisal_sampled` draw steps, in nats.
    With 0, `surprisal` takes the K steps of largest surprisal."""
    stepwise_weight: float = Field(0.0, ge=0)
    """Weight λ of r - r(x̂_k) relative to the reward r, where x̂_k is the one-step completion of
    the state. 0 is EGSPO, 0.5 is EGSPO-SA."""
    gain: Literal["fixed", "fitted"] = "fixed"
    """Coefficient with which the value is used as a control variate. `fixed`: λ/(1+λ), or 1 with
    telescoped credit. `fitted`: the coefficient that is fitted on the other groups of the training step;
    there must be at least one other group."""
    credit: Literal["return", "telescoped"] = "return"
    """Credit of a step. `return`: the reward of the finished completion. `telescoped`: the value of
    the state after the step."""
    baseline: Literal["group_mean", "leave_one_out", "batch_leave_one_out", "value", "critic"] = "group_mean"
    """Number that is subtracted from the credit of a step. `group_mean` and `leave_one_out` are
    means over the group, computed for each slot separately (a slot holds one selected step); the
    first shrinks the gradient by (G - 1) / G, the second does not. `batch_leave_one_out` is the
    mean over all other completions of the training step, whichever prompts they answer. `value` is the value
    of the state itself, the reward of its one-step completion, and `critic` is the value that a
    learned critic gives to the state, both whatever the stepwise weight. The last three need no
    group, so one completion of each prompt is enough."""
    value_steps: int = Field(0, ge=0)
    """Number of greedy denoising steps of each remaining block that complete a state for its value
    r(x̂_k). 0 takes the one-step completion, which costs no forward pass; larger numbers are points
    on the way to a full rollout."""
    choice_term: bool = True
    """True to include the probability of the position choice (which positions a step commits), if
    the order defines one (`plackett_luce` or `learned`)."""
    epsilon: float = Field(0.2, ge=0)
    """Lower clip of the step ratio, as a distance from 1. The default is that of the released
    code."""
    epsilon_high: float = Field(0.5, ge=0)
    """Upper clip, as a distance from 1. The default is that of the released code."""
    beta: float = Field(0.04, ge=0)
    """Weight of the KL to the reference policy; with 0, no reference policy is needed. The default
    is that of the released code."""
    kl: Literal["k3", "exact"] = "k3"
    """Form of the KL: `k3` of the step's log-ratio, or the exact KL, summed over its tokens."""

    scores: ClassVar[str] = "path steps"
    paper: ClassVar[str] = "arXiv:2603.12554"
    summary: ClassVar[str] = "gradients at the K steps of highest entropy"
    unbiased: ClassVar[str] = (
        "with entropy_sampled, surprisal_sampled or all, and baseline leave_one_out, value or critic"
    )
    estimates: ClassVar[str] = (
        "the policy gradient without the dropped steps; exact with step_choice=all, entropy_sampled or surprisal_sampled and "
        "baseline=leave_one_out, value or critic, except under order low_confidence"
    )
    cost: ClassVar[str] = (
        "K f+b (+ K f old, K f reference, K f critic); value_steps=n: n f for each valued state and remaining block"
    )
    penalties: ClassVar[tuple[str, ...] | None] = ("beta",)

    def needs(self) -> Needs:
        """Require the reference policy if β > 0, and one-step completions if values are used: those
        of the selected steps, or of all steps for telescoped credit and for a choice by
        surprisal."""
        reference: Literal["none", "logprob", "distribution"] = "none"
        if self.beta:
            reference = "distribution" if self.kl == "exact" else "logprob"
        is_telescoped = self.credit == "telescoped"
        keeps_all = is_telescoped or self.step_choice.startswith("surprisal")
        has_critic = self.baseline == "critic"
        is_controlled = (self.stepwise_weight > 0 or self.gain == "fitted") and not has_critic
        return Needs(
            greedy=is_controlled or is_telescoped or self.baseline == "value",
            selection=("all" if keeps_all else self.step_choice, self.num_selected),
            value_steps=self.value_steps,
            reference=reference,
            choice=self.choice_term,
            group=self.baseline in ("group_mean", "leave_one_out"),
            critic=has_critic,
        )

    def check(self, sampler: SamplerConfig, num_generations: int) -> None:
        """Raise ConfigError also if K is larger than the number T of denoising steps, if the gain of
        a control variate is fitted without groups, or if `stepwise_weight` or `value_steps` has no effect."""
        super().check(sampler, num_generations)
        if self.gain == "fitted" and not self.needs().group:
            raise ConfigError(
                f"method.gain = fitted fits the gain within groups, but method.baseline = {self.baseline} has none. "
                "Set method.gain to fixed, or method.baseline to leave_one_out."
            )
        default = type(self).model_fields["stepwise_weight"].default
        if self.baseline in ("value", "critic") and self.stepwise_weight not in (0, default):
            raise ConfigError(
                f"method.stepwise_weight = {self.stepwise_weight:g} has no effect with method.baseline = {self.baseline}, which "
                "subtracts the whole value of a state. Leave it out, or set method.baseline to leave_one_out."
            )
        if self.value_steps and not self.needs().greedy:
            raise ConfigError(
                f"method.value_steps = {self.value_steps} completes states for their values, but with method.baseline = "
                f"{self.baseline} these settings use none. Set method.value_steps to 0, or method.baseline to value."
            )
        if self.step_choice != "all":
            self.refuse_more_than_steps("num_selected", sampler)

    def check_batch(self, num_completions: int) -> None:
        """Raise ConfigError if the baseline is the mean over the other completions of a training step
        and there are none."""
        if self.baseline == "batch_leave_one_out" and num_completions == 1:
            raise ConfigError(
                "method.baseline = batch_leave_one_out compares the completions of a training step, but there is only one. "
                "Set num_prompts or num_generations to 2 or more."
            )

    def behaviour_levels(self, sampler: SamplerConfig) -> tuple[LevelOrOff, ...]:
        """Return the levels step and sequence: the ratio is that of a step."""
        return ("step", "sequence")

    def critic_steps(self, rollout: Rollout) -> Int[Tensor, "B C"]:
        """Return the steps that are trained, [B, K]."""
        return self._steps(rollout.trajectory)[0]

    def plan(self, rollout: Rollout, generator: torch.Generator) -> Views:
        """Plan one view for each selected step, with weight 1 / (K L / T), see `step_weight`, or
        1 / (π_k L) if the step was sampled with probability π_k."""
        path = rollout.trajectory
        steps, inverse = self._steps(path)
        if inverse is not None:
            return step_views(path, steps, inverse.float() / path.tokens.shape[1])
        return step_views(path, steps, step_weight(path, steps.shape[1]))

    def advantage(self, rollout: Rollout) -> Float[Tensor, "B *K"]:
        """Return A_k = (R_k - R̄_k) - c (r(x̂_k) - mean), where the mean is that of the slot over
        the group, or over the training step; with `baseline: value`, A_k = R_k - r(x̂_k), and with
        `critic`, A_k = R_k - V(x_k). There is no division by a standard deviation.

        R_k is the reward r, unless the credit is telescoped.
        """
        baseline: Literal["group_mean", "leave_one_out"] = (
            "group_mean" if self.baseline == "group_mean" else "leave_one_out"
        )
        members = rollout.group_size if self.needs().group else len(rollout.reward)
        self.check_batch(members)
        if self.baseline == "critic" and self.credit == "return":
            return _above(rollout.reward, rollout.value, self.critic_steps(rollout) >= 0)
        if rollout.one_step_reward is None or not self.needs().greedy:
            return group_advantage(rollout.reward, members, baseline)
        earned, value, is_valid = rollout.reward, rollout.one_step_reward, rollout.trajectory.selected_steps >= 0
        if self.credit == "telescoped":
            earned = next_value(rollout.reward, value, is_valid)
        if self.needs().selection[0] != self.step_choice:
            (steps, _), kept = self._steps(rollout.trajectory), rollout.trajectory.selected_steps
            earned = of_steps(earned, kept, steps) if earned.dim() == 2 else earned
            value, is_valid = of_steps(value, kept, steps), steps >= 0
        gain: float | Tensor = self.stepwise_weight / (1 + self.stepwise_weight) if self.credit == "return" else 1.0
        if self.baseline in ("value", "critic"):
            return _above(earned, value if self.baseline == "value" else rollout.value, is_valid)
        if self.gain == "fitted":
            gain = fitted_gain(earned, value, is_valid, rollout.group_size)
        # The slot of a sampled step depends on the rest of the path.
        pool = self.step_choice in ("entropy_sampled", "surprisal_sampled")
        return controlled_advantage(earned, value, is_valid, members, gain, baseline, pool_slots=pool)

    def loss(self, inputs: LossInputs) -> LossOutput:
        """Compute w (-min(ρ A, clip(ρ) A) + β KL), where ρ is the ratio of the step's joint
        probabilities and w is the weight of its view."""
        loss, metrics = self.step_loss(inputs)
        if self.beta:
            kl = self._kl(inputs)
            loss = loss + self.beta * kl
            metrics["kl"] = kl.detach()
        return LossOutput(inputs.weight * loss, metrics)

    def _steps(self, path: Trajectory) -> tuple[Tensor, Tensor | None]:
        """Return the steps that are trained, [B, K], and the inverse of their probabilities, [B,
        K], if the rule weights by them."""
        is_eos = path.tokens == path.eos_id
        if self.step_choice.startswith("surprisal"):
            with_inverse = self.step_choice == "surprisal_sampled"
            drawn = surprisal_steps(
                self.num_selected,
                self.choice_temperature,
                path.logprob,
                path.unmask_step,
                is_eos,
                path.seed,
                path.num_steps,
                with_inverse=with_inverse,
            )
            return drawn if with_inverse else (drawn[0], None)
        selection = (self.step_choice, self.num_selected)
        steps = selected_path_steps(selection, path.unmask_step, path.entropy, is_eos, path.seed, path.num_steps)
        if self.step_choice != "entropy_sampled":
            return steps, None
        return steps, inverse_inclusion(steps, self.num_selected, path.unmask_step, path.entropy, path.num_steps)

    def _kl(self, inputs: LossInputs) -> Tensor:
        if self.kl == "exact":
            assert inputs.exact_kl is not None
            return inputs.exact_kl.sum(-1)
        assert inputs.reference is not None
        return kl_k3(inputs.new.sum(-1), inputs.reference.sum(-1))


def _above(earned: Tensor, value: Tensor | None, is_valid: Tensor) -> Tensor:
    """Return by how much the credit of each slot, [B] or [B, K], exceeds the value of its state, [B,
    K]; 0 in an empty slot."""
    assert value is not None
    credit = earned if earned.dim() == 2 else earned.unsqueeze(-1)
    return (credit - value).masked_fill(~is_valid, 0.0)


class EGSPOSA(EGSPO):
    """EGSPO with stepwise advantages: λ = 0.5, the published setting."""

    type: Literal["egspo_sa"] = "egspo_sa"  # type: ignore[assignment]
    stepwise_weight: float = Field(0.5, ge=0)
    """Weight λ of r - r(x̂_k) relative to the reward r. The default is that of the released
    code."""

    summary: ClassVar[str] = "EGSPO with the reward of the one-step completion as value of a state"

"""EGSPO-CA: counterfactual advantages at the denoising steps that EGSPO selects. The method
combines two published methods.

DiSPO (Oba, Furuta and Okazaki, arXiv:2602.06462) creates branches at intermediate masked states: it
draws the masked positions again from cached logits, computes rewards of the resulting completions
and trains the new tokens with them, in addition to a method that trains with the final reward.
EGSPO (arXiv:2603.12554) selects the states of highest entropy and values a state by its one-step
completion. EGSPO-CA draws other actions at EGSPO's states from logits that the rollout has already
computed, completes each in one step, and takes the differences of their rewards as credit. The
method needs neither a group nor a further forward pass. Two features are new: an action may consist
of only the tokens of the step, and there is an unbiased form of the gradient.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from unmask.core.branches import Branches
from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError
from unmask.core.records import LossInputs, LossOutput, Needs, Rollout, Trajectory, Views
from unmask.functional.advantage import counterfactual_advantage, fitted_gain, group_advantage, unique_advantage
from unmask.functional.behaviour import LevelOrOff
from unmask.methods.ratio import RatioMethod
from unmask.methods.views import step_views, step_weight


class EGSPOCA(RatioMethod):
    """Counterfactual advantages, which compare the rewards that different tokens at a selected
    state would have earned."""

    type: Literal["egspo_ca"] = "egspo_ca"
    num_selected: int = Field(1, ge=1)
    """Number K of selected states of each completion."""
    step_choice: Literal["entropy_topk", "spread", "uniform", "low_discrepancy", "last_k", "lowest_entropy", "all"] = (
        "entropy_topk"
    )
    """Rule that selects the states. `spread` selects the states whose branches differ most in
    reward; this requires rewards for the branches of all T states."""
    num_actions: int = Field(16, ge=2)
    """Number M of actions drawn at each state."""
    scope: Literal["step", "all"] = "step"
    """Scope of an action: tokens at the positions that the step committed, or at every masked
    position as in DiSPO."""
    finish: Literal["greedy", "sampled", "rollout"] = "greedy"
    """Rule that completes an action of scope `step`: the most likely tokens, a sample, or further
    denoising, which costs the remaining forward passes for each action."""
    form: Literal["counterfactual", "unique", "unbiased", "combined"] = "counterfactual"
    """Form of the gradient. `counterfactual` uses only the drawn actions. It is the gradient of a
    one-step value and has the lowest variance. `unique` counts each different action once, as in
    T-SPMO (arXiv:2504.20834). `unbiased` adds (r - Q̂(a)) ∇ log p(a) for the action a of the
    rollout, so that the expectation is the share of the selected states in the policy gradient.
    `combined` is the group-relative gradient with the counterfactual gradient as a control variate,
    whose coefficient is fitted on the other groups. It is unbiased too, and needs G > 1. `unbiased`
    and `combined` need scope `step`."""
    epsilon: float = Field(0.2, ge=0)
    """Lower clip of the action ratio, as a distance from 1."""
    epsilon_high: float = Field(0.5, ge=0)
    """Upper clip, as a distance from 1; the default is that of EGSPO."""

    scores: ClassVar[str] = "branches"
    paper: ClassVar[str] = "ours; 2602.06462"
    summary: ClassVar[str] = "credit from the rewards that other tokens at the selected states would have earned"
    unbiased: ClassVar[str] = "with step_choice=all, and form unbiased or combined, or finish=rollout"
    estimates: ClassVar[str] = (
        "the gradient of the one-step value at the selected states; in the unbiased forms, and with finish=rollout, their "
        "share of the policy gradient (its token term under plackett_luce)"
    )
    cost: ClassVar[str] = "K f+b (+ K f old); K M reward calls (T M by spread); finish=rollout: up to K M T f"
    penalties: ClassVar[tuple[str, ...] | None] = ()

    def needs(self) -> Needs:
        """Require M branches of the selected states, or of all states for `spread`, and the action
        of the rollout itself if a term of the loss needs it."""
        by_spread = self.step_choice == "spread"
        return Needs(
            selection=("all" if by_spread else self.step_choice, self.num_selected),
            branches=Branches(self.num_actions, self.scope, self.finish, with_taken=self._trains_taken),
            group=self.form == "combined",
        )

    def check(self, sampler: SamplerConfig, num_generations: int) -> None:
        """Raise ConfigError also if K is larger than the number T of denoising steps, or if an
        option is set that has no meaning for scope `all`."""
        super().check(sampler, num_generations)
        if self.step_choice != "all":
            self.refuse_more_than_steps("num_selected", sampler)
        if self.scope == "all" and (self._trains_taken or self.finish != "greedy"):
            raise ConfigError(
                f"method.form = {self.form} and method.finish = {self.finish} need actions at the positions that a step "
                "committed, but method.scope = all draws every masked position. Set method.scope to step."
            )

    def behaviour_levels(self, sampler: SamplerConfig) -> tuple[LevelOrOff, ...]:
        """Return `step` first if the loss has a term of the action that the rollout took. The other
        actions are drawn from the old policy itself, so only their states need weights."""
        return ("step" if self._trains_taken else "off", "sequence")

    def plan(self, rollout: Rollout, generator: torch.Generator) -> Views:
        """Plan one view for each selected state, with M token sequences, one for each action. One
        forward pass serves all of them."""
        path = rollout.trajectory
        assert path.branch_tokens is not None
        slots = self._slots(rollout)
        kept = path.selected_steps
        steps = kept.gather(1, slots.clamp(min=0)).masked_fill(slots < 0, -1)
        views = step_views(path, steps, step_weight(path, steps.shape[1]))
        slot = slots[views.row, views.slot]
        target = views.hidden if self.scope == "all" else views.target
        return Views(views.row, views.hidden, target, views.weight, slot, tokens=path.branch_tokens[views.row, slot])

    def advantage(self, rollout: Rollout) -> Float[Tensor, "B *K"]:
        """Return (Q̂_m - mean Q̂) / (M - 1) for each action m, [B, K, M], or `unique_advantage`. In the
        unbiased forms the shape is [B, K, 1 + M], and the action of the rollout comes first."""
        value = rollout.branch_reward
        assert value is not None
        if self.form == "counterfactual":
            return counterfactual_advantage(value)
        if self.form == "unique":
            return unique_advantage(value, self._actions(rollout.trajectory))
        of_taken, drawn = value[..., 0], value[..., 1:]
        is_valid = rollout.trajectory.selected_steps >= 0
        earned, gain = rollout.reward.unsqueeze(-1), torch.ones_like(rollout.reward)
        # The mean over the new draws depends only on the state, so it is a valid baseline of Q̂(a).
        baseline = torch.zeros_like(of_taken)
        if self.form == "combined":
            earned = group_advantage(rollout.reward, rollout.group_size, "leave_one_out").unsqueeze(-1)
            gain = fitted_gain(rollout.reward, of_taken, is_valid, rollout.group_size)
            baseline = drawn.mean(-1)
        gain = gain.unsqueeze(-1)
        taken = earned - gain * (of_taken - baseline)
        return torch.cat([taken.unsqueeze(-1), gain.unsqueeze(-1) * counterfactual_advantage(drawn)], dim=-1)

    def loss(self, inputs: LossInputs) -> LossOutput:
        """Compute w Σ_m -min(ρ_m A_m, clip(ρ_m) A_m), where ρ_m is the ratio of the action's joint
        probabilities."""
        loss, metrics = self.step_loss(inputs)
        return LossOutput(inputs.weight * loss.sum(-1), metrics)

    @property
    def _trains_taken(self) -> bool:
        """True if the loss has a term of the action that the rollout took."""
        return self.form in ("unbiased", "combined")

    def _actions(self, path: Trajectory) -> Tensor:
        """Return the tokens of the drawn actions, [B, K, M, L]; 0 at all other positions."""
        assert path.branch_tokens is not None
        when, step = path.unmask_step.unsqueeze(1), path.selected_steps.unsqueeze(-1)
        is_drawn = when >= step if self.scope == "all" else when == step
        return path.branch_tokens.masked_fill(~is_drawn.unsqueeze(2), 0)

    def _slots(self, rollout: Rollout) -> Tensor:
        """Return the indices of the stored states that are trained, [B, K]; -1 in an empty slot."""
        path = rollout.trajectory
        kept = path.selected_steps
        if self.step_choice != "spread":
            return torch.arange(kept.shape[1], device=kept.device).expand_as(kept).masked_fill(kept < 0, -1)
        assert rollout.branch_reward is not None
        drawn = rollout.branch_reward[..., -self.num_actions :]
        spread = drawn.var(-1).masked_fill(kept < 0, -1.0)
        order = spread.argsort(dim=1, descending=True, stable=True)[:, : self.num_selected]
        return order.masked_fill(kept.gather(1, order) < 0, -1)

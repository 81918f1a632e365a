"""AGRPO (arXiv:2510.04019): the policy gradient over denoising steps, estimated from a few steps drawn at random.

The gradient is a sum over the T steps of a path; drawing steps with known probabilities and weighing each by the inverse gives
its expectation at a fraction of the forwards. Departures, each described in docs/methods/agrpo.md: the steps after the last
non-EOS commitment are drawn too, unless `horizon` says otherwise; a step drawn twice is scored once, with twice the weight;
completions without text are trained.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from unmask.core.records import LossInputs, LossOutput, Needs, Rollout, Views
from unmask.functional.advantage import group_advantage
from unmask.functional.selection import candidate_steps, step_sum
from unmask.functional.step_draws import low_discrepancy_uniform, step_counts
from unmask.functional.surrogate import kl_k3
from unmask.methods.base import RatioMethod
from unmask.methods.views import step_views

ENTROPY_FLOOR = 1e-8
"""Added to a step's entropy, so that every step can be drawn; of the release."""


class AGRPO(RatioMethod):
    """Amortised group-relative policy optimisation: M steps drawn by Monte Carlo, a ratio for each token."""

    type: Literal["agrpo"] = "agrpo"
    mc_samples: int = Field(24, ge=1)
    """M, draws for each completion. Default of the release."""
    step_sampling: Literal["uniform", "entropy"] = "entropy"
    """How a step is drawn: evenly, or in proportion to its joint entropy. Default of the release."""
    draws: Literal["low_discrepancy", "independent"] = "low_discrepancy"
    """Whether the draws of all completions of a batch cover the steps evenly together. Default of the release."""
    horizon: Literal["scheduled", "last_text"] = "scheduled"
    """What is averaged. `scheduled`: over the T steps of the schedule, which is unbiased. `last_text`: over the steps up to the
    last that committed a non-EOS token, as released; both its end and its length lie in the future of the steps."""
    baseline: Literal["group_mean", "leave_one_out"] = "group_mean"
    """Over the group. The group mean shrinks the gradient by (G - 1) / G; leave-one-out does not."""
    beta: float = Field(0.0, ge=0)
    """Weight of the KL to the reference policy, ρ k3 for each token; 0 needs no reference. Default of the release."""

    paper: ClassVar[str] = "arXiv:2510.04019"
    summary: ClassVar[str] = "gradients at steps drawn at random, weighted by the inverse of their probability"
    unbiased: ClassVar[str] = "with leave_one_out"
    estimates: ClassVar[str] = (
        "the policy gradient over T, exactly with baseline=leave_one_out, but for low_confidence order"
    )
    cost: ClassVar[str] = "M f+b at most, less where a step is drawn twice (+ M f old, M f reference)"

    def needs(self) -> Needs:
        """The reference where β > 0, and the choice of positions where the order has a probability."""
        return Needs(reference="logprob" if self.beta else "none", choice=True)

    def plan(self, rollout: Rollout, generator: torch.Generator) -> Views:
        """One view for each step that was drawn, its weight (1/H) / P for every time, over M."""
        path = rollout.trajectory
        is_eos = (path.tokens == path.eos_id) & (self.horizon == "last_text")
        is_candidate = candidate_steps(path.unmask_step, is_eos, path.num_steps)
        entropy = step_sum(path.entropy.double(), path.unmask_step, path.num_steps) + ENTROPY_FLOOR
        mass = (entropy if self.step_sampling == "entropy" else torch.ones_like(entropy)).masked_fill(~is_candidate, 0)
        probability = mass / mass.sum(-1, keepdim=True).clamp(min=ENTROPY_FLOOR)
        num_draws = len(path) * self.mc_samples
        if self.draws == "low_discrepancy":
            uniform = low_discrepancy_uniform(num_draws, generator)
        else:
            uniform = torch.rand(num_draws, generator=generator, dtype=torch.float64)
        counts = step_counts(probability, uniform.to(mass.device).view(-1, self.mc_samples))
        steps = torch.arange(path.num_steps, device=mass.device).expand_as(counts).masked_fill(counts == 0, -1)
        horizon = is_candidate.sum(-1, keepdim=True) if self.horizon == "last_text" else path.num_steps
        return step_views(path, steps, (counts / (self.mc_samples * horizon * probability)).float())

    def advantage(self, rollout: Rollout) -> Float[Tensor, "B *K"]:
        """[B] the reward less its group's baseline; no division by a deviation."""
        return group_advantage(rollout.reward, rollout.group_size, self.baseline)

    def loss(self, inputs: LossInputs) -> LossOutput:
        """w Σ_i (-min(ρ_i A, clip(ρ_i) A) + β ρ_i k3_i) over the step's tokens, with w the view's weight."""
        loss, metrics = self.token_loss(inputs.new, inputs.old, inputs.advantage, inputs.target, choice=inputs.choices)
        if self.beta:
            assert inputs.reference is not None
            # The ratio makes the gradient that of KL(new || reference); k3 alone has that of the reverse.
            kl = (inputs.new - inputs.old).exp() * kl_k3(inputs.new, inputs.reference)
            loss = loss + self.beta * kl
            metrics["kl"] = kl.detach()[inputs.target]
        return LossOutput(inputs.weight * loss.sum(-1), metrics)

"""AGRPO (arXiv:2510.04019): the policy gradient over denoising steps, estimated from a few random
steps.

The gradient is a sum over the T steps of a path. Drawing steps with known probabilities and
weighting each by the inverse probability gives its expectation with far fewer forward passes.
docs/methods/agrpo.md describes the differences from the released code. For example, the steps after
the last non-EOS step may be drawn too, unless `horizon` excludes them. A step that is drawn twice
is evaluated once, with twice the weight. Completions without text are trained.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from unmask.core.config import SamplerConfig
from unmask.core.records import LossInputs, LossOutput, Needs, Rollout, Views
from unmask.functional.advantage import group_advantage
from unmask.functional.behaviour import LevelOrOff
from unmask.functional.selection import candidate_steps, step_sum
from unmask.functional.step_draws import low_discrepancy_uniform, step_counts
from unmask.functional.surrogate import kl_k3
from unmask.methods.ratio import RatioMethod
from unmask.methods.views import step_views

ENTROPY_FLOOR = 1e-8
"""Constant that is added to the entropy of a step so that every step can be drawn; from the
released code."""


class AGRPO(RatioMethod):
    """Amortised group-relative policy optimisation: trains M randomly drawn steps, with a
    probability ratio for each token."""

    type: Literal["agrpo"] = "agrpo"
    mc_samples: int = Field(24, ge=1)
    """Number M of draws for each completion. The default is that of the released code."""
    step_sampling: Literal["uniform", "entropy"] = "entropy"
    """Distribution of the drawn steps: uniform, or proportional to the joint entropy of a step. The
    default is that of the released code."""
    draws: Literal["low_discrepancy", "independent"] = "low_discrepancy"
    """Dependence of the draws: `low_discrepancy` draws cover the steps evenly over all completions
    of a batch. The default is that of the released code."""
    horizon: Literal["scheduled", "last_text"] = "scheduled"
    """Steps that the mean is taken over. `scheduled`: all T steps of the schedule, which is
    unbiased. `last_text`: the steps up to the last one that committed a non-EOS token, as in the
    released code. This is biased, because which step is the last one is not known yet at earlier
    steps."""
    baseline: Literal["group_mean", "leave_one_out"] = "group_mean"
    """Baseline of the group. The group mean shrinks the gradient by (G - 1) / G; leave-one-out does
    not."""
    beta: float = Field(0.0, ge=0)
    """Weight of the KL to the reference policy, estimated as ρ k3 for each token; with 0, no
    reference policy is needed. The default is that of the released code."""

    scores: ClassVar[str] = "path steps"
    paper: ClassVar[str] = "arXiv:2510.04019"
    summary: ClassVar[str] = "gradients at randomly drawn steps, weighted by their inverse probability"
    unbiased: ClassVar[str] = "with leave_one_out"
    estimates: ClassVar[str] = (
        "the policy gradient over T, exactly with baseline=leave_one_out, except under order low_confidence"
    )
    cost: ClassVar[str] = "at most M f+b, less if a step is drawn twice (+ M f old, M f reference)"
    penalties: ClassVar[tuple[str, ...] | None] = ("beta",)

    def needs(self) -> Needs:
        """Require the reference policy if β > 0, and the probability of the position choice (which
        positions a step commits) if the order defines one."""
        return Needs(reference="logprob" if self.beta else "none", choice=True)

    def behaviour_levels(self, sampler: SamplerConfig) -> tuple[LevelOrOff, ...]:
        """Return all levels: each view is a state of the path, and the ratio is that of a token."""
        return ("token", "step", "sequence")

    def plan(self, rollout: Rollout, generator: torch.Generator) -> Views:
        """Plan one view (a masked version of the completion) for each drawn step. Each draw of a
        step of probability P adds 1 / (M H P) to the weight of its view, where H is T, or with
        `horizon: last_text` the number of steps that can be drawn."""
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
        """Return the reward minus the baseline of the group, [B], without division by a standard
        deviation."""
        return group_advantage(rollout.reward, rollout.group_size, self.baseline)

    def loss(self, inputs: LossInputs) -> LossOutput:
        """Compute w Σ_i (-min(ρ_i A, clip(ρ_i) A) + β ρ_i k3_i) over the tokens of the step, where
        w is the weight of the view."""
        loss, metrics = self.token_loss(inputs)
        if self.beta:
            assert inputs.reference is not None
            # With the factor ρ, the gradient is that of KL(new || reference). Without it, the
            # gradient of k3 is that of the reverse KL.
            kl = (inputs.new - inputs.old).exp() * kl_k3(inputs.new, inputs.reference)
            loss = loss + self.beta * kl
            metrics["kl"] = kl.detach()[inputs.target]
        return LossOutput(inputs.weight * loss.sum(-1), metrics)

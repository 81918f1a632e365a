"""RLDF, reinforcement learning from denoising feedback (arXiv:2605.25638): steps of high surprisal,
with the whole remaining text as target.

A step of a path is drawn by how unlikely its tokens were. In the state before it, the targets are
all tokens of the finished completion that are still masked (the clean state), except those that
the model considers unlikely (the clipped clean state). With `targets: step` and inverse weights the
method is a policy gradient; docs/methods/rldf.md says what it estimates otherwise.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from unmask.core.config import SamplerConfig
from unmask.core.records import LossInputs, LossOutput, Needs, Rollout, Views
from unmask.functional.advantage import group_advantage, z_score
from unmask.functional.behaviour import LevelOrOff
from unmask.functional.surprisal import surprisal_steps
from unmask.methods.ratio import RatioMethod
from unmask.methods.views import step_views, step_weight


class RLDF(RatioMethod):
    """Reinforcement learning from denoising feedback, with a ratio for each token."""

    type: Literal["rldf"] = "rldf"
    num_selected: int = Field(4, ge=1)
    """Number K of denoising steps that get a gradient. The default is that of the released
    recipes."""
    step_choice: Literal["surprisal", "surprisal_sampled"] = "surprisal"
    """Rule that selects the K steps. `surprisal` draws them without replacement by a softmax of the
    mean surprisal of their tokens, without weights, as in the paper. `surprisal_sampled` draws them
    with known probabilities and weights them by the inverse, which is unbiased."""
    choice_temperature: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Temperature of the softmax, in nats; with 0, `surprisal` takes the K steps of largest
    surprisal. The default is that of the released recipes."""
    targets: Literal["clean", "step"] = "clean"
    """Tokens that are evaluated in the state before a selected step. `clean`: all tokens of the
    finished text that are still masked, with the mean over them. `step`: those that the step
    committed."""
    target_floor: float = Field(0.6, ge=0, lt=1)
    """Probability under the old policy below which a clean target is left out, unless the step
    itself committed it. The default is that of the released recipe for LLaDA and mathematics."""
    baseline: Literal["z_score", "group_mean", "leave_one_out"] = "z_score"
    """Baseline of the group. `z_score` is the group mean with division by the standard deviation of
    the group, as in the released code."""
    beta: float = Field(0.01, ge=0)
    """Weight of the KL (k3, token by token) to the reference policy; with 0, no reference policy is
    needed. The default is that of the released recipes."""

    scores: ClassVar[str] = "path steps"
    paper: ClassVar[str] = "arXiv:2605.25638"
    summary: ClassVar[str] = "all masked tokens as targets at K steps drawn by the surprisal of their tokens"
    unbiased: ClassVar[str] = "with surprisal_sampled, targets=step and leave_one_out"
    estimates: ClassVar[str] = (
        "the gradient of the mean log-probability of the tokens still masked at the drawn steps, weighted by advantage; with "
        "surprisal_sampled, targets=step and leave_one_out the policy gradient over L, except under order low_confidence"
    )
    cost: ClassVar[str] = "K f+b (+ K f old, K f reference)"
    penalties: ClassVar[tuple[str, ...] | None] = ("beta",)

    def needs(self) -> Needs:
        """Require the reference policy if β > 0, and the probability of the position choice for the
        tokens of a step, if the order defines one."""
        return Needs(reference="logprob" if self.beta else "none", choice=self.targets == "step")

    def check(self, sampler: SamplerConfig, num_generations: int) -> None:
        """Raise ConfigError also if K is larger than the number T of denoising steps."""
        super().check(sampler, num_generations)
        self.refuse_more_than_steps("num_selected", sampler)

    def behaviour_levels(self, sampler: SamplerConfig) -> tuple[LevelOrOff, ...]:
        """Return all levels for the tokens of a step. Clean targets include tokens that later steps
        committed, so only whole completions can be weighted."""
        return ("sequence",) if self.targets == "clean" else ("token", "step", "sequence")

    def plan(self, rollout: Rollout, generator: torch.Generator) -> Views:
        """Plan one view for each selected step, with weight 1 / K, or 1 / (π T) for the inclusion
        probability π. The tokens of a step have this weight divided by L / T, the constant number
        of tokens of a step; for clean targets the loss is a mean."""
        path = rollout.trajectory
        with_inverse = self.step_choice == "surprisal_sampled"
        steps, inverse = surprisal_steps(
            self.num_selected,
            self.choice_temperature,
            path.logprob,
            path.unmask_step,
            path.tokens == path.eos_id,
            path.seed,
            path.num_steps,
            with_inverse=with_inverse,
        )
        weight = inverse.float() / (path.num_steps if with_inverse else self.num_selected)
        if self.targets == "step":
            weight = (
                weight * path.num_steps / path.tokens.shape[1] if with_inverse else step_weight(path, steps.shape[1])
            )
        return step_views(path, steps, weight, clean=self.targets == "clean")

    def advantage(self, rollout: Rollout) -> Float[Tensor, "B *K"]:
        """Return the advantage of each completion, [B]."""
        if self.baseline == "z_score":
            return z_score(rollout.reward, rollout.group_size, correction=1, floor=1e-8)
        return group_advantage(rollout.reward, rollout.group_size, self.baseline)

    def loss(self, inputs: LossInputs) -> LossOutput:
        """Compute w Σ_i (-min(ρ_i A, clip(ρ_i) A) + β k3_i) over the tokens i of a step, or the
        mean over the clean targets that are not left out."""
        target = self._targets(inputs)
        loss, metrics = self.token_loss(replace(inputs, target=target), inputs.reference, self.beta)
        count = target.sum(-1).clamp(min=1) if self.targets == "clean" else 1
        return LossOutput(inputs.weight * loss.sum(-1) / count, metrics)

    def _targets(self, inputs: LossInputs) -> Bool[Tensor, "N L"]:
        """Return the targets whose probability is not below the floor, and those that the step
        committed."""
        if self.targets == "step" or not self.target_floor:
            return inputs.target
        assert inputs.committed is not None
        return inputs.target & ((inputs.old >= math.log(self.target_floor)) | inputs.committed)

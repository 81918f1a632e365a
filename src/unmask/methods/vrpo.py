"""VRPO, variance-reduced preference optimisation (LLaDA 1.5, arXiv:2505.19223): DPO on ELBOs,
applied to the policy's own groups; and dTRPO (arXiv:2603.18806), the same on steps of the path.

The best and the worst completion of a group are a preference pair. The ELBO is estimated as a mean
over n random masks, each of which hides a different number of positions. The policy and the
reference policy use the same masks, so most of the noise cancels in the difference of their ELBOs.

dTRPO estimates the log-ratio of the path instead: the sum over its steps of the log-ratios of the
tokens that a step committed, from one step of each block.

docs/methods/vrpo.md lists the differences from the papers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from unmask.core.config import SamplerConfig
from unmask.core.records import GIVEN, LossInputs, LossOutput, Needs, Rollout, Views
from unmask.functional.behaviour import LevelOrOff
from unmask.functional.completions import sum_by_completion
from unmask.functional.elbo import elbo_weight, masks_of_counts, stratified_counts
from unmask.functional.step_draws import steps_by_block
from unmask.methods.base import Method
from unmask.methods.views import masked_views, step_views


class VRPO(Method):
    """Variance-reduced preference optimisation."""

    type: Literal["vrpo"] = "vrpo"
    num_samples: int = Field(8, ge=1)
    """Number n of random masks for each ELBO estimate. The default is that of the paper;
    docs/methods/vrpo.md names the part of the paper that was available."""
    beta: float = Field(0.2, gt=0)
    """Strength β of the attraction to the reference policy: the smaller it is, the further the
    policy may move. The default is that of the paper."""

    scores: ClassVar[str] = "preferences"
    paper: ClassVar[str] = "arXiv:2505.19223"
    summary: ClassVar[str] = "preference pairs of the best and the worst completion of each group, compared by ELBO"
    unbiased: ClassVar[str] = "no"
    estimates: ClassVar[str] = (
        "at the reference (β/2) E[∇ELBO(best) - ∇ELBO(worst)]; elsewhere the gradient of a bound of DPO's loss on ELBOs"
    )
    cost: ClassVar[str] = "(2/G) (n f+b + n f reference), two passes"
    penalties: ClassVar[tuple[str, ...] | None] = ()
    on_path: ClassVar[bool] = False
    separable: ClassVar[bool] = False
    fresh_views: ClassVar[bool] = True

    def needs(self) -> Needs:
        """Require the reference policy."""
        return Needs(reference="logprob")

    def behaviour_levels(self, sampler: SamplerConfig) -> tuple[LevelOrOff, ...]:
        """Return only `off`: a preference pair may come from any policy, and the loss is not
        proportional to an advantage."""
        return ("off",)

    def plan(self, rollout: Rollout, generator: torch.Generator) -> Views:
        """Plan n views, with 1 to L masked positions, for each completion that belongs to a pair.
        Other completions have no views."""
        row = self.advantage(rollout).nonzero().squeeze(-1)
        is_maskable = rollout.trajectory.unmask_step[row] != GIVEN
        counts = stratified_counts(is_maskable.sum(-1), self.num_samples, 1, generator)
        masks = masks_of_counts(counts, is_maskable, generator)
        views = masked_views(masks, elbo_weight(masks, is_maskable, coupled=False) / self.num_samples)
        return replace(views, row=row[views.row])

    def advantage(self, rollout: Rollout) -> Float[Tensor, "B *K"]:
        """Return 1 for the best completion of a group, -1 for the worst, and 0 for the others. All
        completions of a flat group (one with equal rewards) have 0."""
        reward = rollout.reward.view(-1, rollout.group_size)
        sign = torch.zeros_like(reward)
        sign.scatter_(1, reward.argmax(1, keepdim=True), 1.0)
        sign.scatter_(1, reward.argmin(1, keepdim=True), -1.0)
        return sign.masked_fill((reward == reward[:, :1]).all(1, keepdim=True), 0.0).flatten()

    def loss(self, inputs: LossInputs) -> LossOutput:
        """Compute -G log σ(m) for each pair, where m = β [(ELBO - ELBO_ref)(best) - (ELBO -
        ELBO_ref)(worst)]."""
        assert inputs.reference is not None
        gain = inputs.weight * (inputs.new - inputs.reference).sum(-1)
        margin = self.beta * sum_by_completion(inputs.advantage * gain, inputs.row // inputs.group_size)
        metrics = {"dpo/margin": margin.detach(), "dpo/accuracy": (margin.detach() > 0).float()}
        # The trainer divides by the number of completions. Each pair stands for the G completions
        # of its group, so the result is a mean over groups, in which groups without a pair count as
        # 0.
        return LossOutput(-inputs.group_size * logsigmoid(margin), metrics)


class DTRPO(VRPO):
    """Trajectory reduction policy optimisation: VRPO whose views are states of the path, one of
    each block."""

    type: Literal["dtrpo"] = "dtrpo"  # type: ignore[assignment]
    num_samples: int = Field(1, ge=1)
    """Number n of steps that are drawn from each block. The default is that of the paper; with the
    number of steps of a block or more, the ratio is that of the whole path."""
    beta: float = Field(0.2, gt=0)
    """Strength β of the attraction to the reference policy: the smaller it is, the further the
    policy may move. The default is that of VRPO; the paper's own value is not known to us."""

    paper: ClassVar[str] = "arXiv:2603.18806"
    summary: ClassVar[str] = "VRPO with the tokens of one step of each block in place of random masks"
    estimates: ClassVar[str] = (
        "at the reference (β/2) E[∇ log π(best path) - ∇ log π(worst path)], without position choices; elsewhere the "
        "gradient of a bound of DPO's loss on paths"
    )
    cost: ClassVar[str] = "(2/G) (n f+b + n f reference) for each block, two passes"
    on_path: ClassVar[bool] = True

    def plan(self, rollout: Rollout, generator: torch.Generator) -> Views:
        """Plan one view for each drawn step of a completion that belongs to a pair. The weight of a
        view makes the sum over the drawn steps of a block an unbiased estimate of the sum over all
        its steps."""
        path = rollout.trajectory
        noise = torch.rand(len(path), path.num_steps, generator=generator, dtype=torch.float64)
        steps, weight = steps_by_block(
            path.unmask_step, path.sampler.block, self.num_samples, noise.to(path.tokens.device)
        )
        is_single = self.advantage(rollout).unsqueeze(-1) == 0
        return step_views(path, steps.masked_fill(is_single, -1), weight)

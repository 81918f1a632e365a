"""SPG (arXiv:2510.09541): raise a lower bound of the likelihood of good completions, and lower an
upper bound for bad ones; and StableDRL (arXiv:2603.06743), the same with importance weights.

The method is a policy gradient in which log π is replaced by a computable bound. Lowering an ELBO
need not lower the likelihood, so completions of negative advantage get a mixture with an evidence
upper bound. The views (masked versions of the completions) imitate a sampler that denoises block by
block.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from unmask.core.records import LossInputs, LossOutput, Needs, Rollout, Views
from unmask.functional.advantage import group_advantage
from unmask.functional.elbo import mask_at_times
from unmask.functional.masking import block_masks, evidence_upper_bound
from unmask.functional.tilted import softmax_by_group
from unmask.methods.base import Method
from unmask.methods.views import mean_tokens, scored_tokens, text_views


class SPG(Method):
    """Sandwiched policy gradient: a lower bound for positive advantages, and a mixture of both
    bounds for negative ones."""

    type: Literal["spg"] = "spg"
    num_views: int = Field(2, ge=1)
    """Number m of masked views of a completion in each iteration. The default is that of the
    released code; the paper's best runs use 4. With one view, both bounds have the same
    gradient."""
    mixture: float = Field(0.5, ge=0, le=1)
    """Share ω of the upper bound for negative advantages. With 0 the ELBO is used for all
    advantages; with 1 only the upper bound is used for negative ones. The default is that of the
    released code."""
    eubo_power: float = Field(1.5, gt=0)
    """Exponent β of the upper bound. The default is that of the released code, which uses 1 for
    Sudoku."""
    noise_ratio: float = Field(0.15, ge=0, le=1)
    """Probability with which a token of the prompt, or of a block before the chosen one, is masked.
    The default is that of the released code."""
    baseline: Literal["group_mean", "leave_one_out"] = "group_mean"
    """Baseline of the group, without division by its standard deviation. The default is that of the
    released code."""

    scores: ClassVar[str] = "random masks"
    paper: ClassVar[str] = "arXiv:2510.09541"
    summary: ClassVar[str] = (
        "an ELBO is raised for positive advantages, and an upper bound is lowered for negative ones"
    )
    unbiased: ClassVar[str] = "no"
    estimates: ClassVar[str] = (
        "E[A ∇bound], with the bound chosen by the sign of the advantage, over the batch's tokens; not the policy gradient"
    )
    cost: ClassVar[str] = "m f+b in each iteration, two passes"
    penalties: ClassVar[tuple[str, ...] | None] = ()
    on_path: ClassVar[bool] = False
    separable: ClassVar[bool] = False
    by_completion: ClassVar[bool] = True
    fresh_views: ClassVar[bool] = True

    def needs(self) -> Needs:
        """Require groups of completions, and nothing else."""
        return Needs()

    def plan(self, rollout: Rollout, generator: torch.Generator) -> Views:
        """Plan m views of each completion, weighted by the number of its tokens."""
        path = rollout.trajectory
        target = scored_tokens(path)
        masks, before = block_masks(target, path.sampler.block, self.num_views, generator)
        ratio = torch.full((len(target) * self.num_views,), self.noise_ratio)
        noise = mask_at_times(ratio, before.flatten(0, 1), generator).view(masks.shape)
        prompt = mask_at_times(ratio, path.prompt_mask.repeat_interleave(self.num_views, dim=0), generator)
        weight = target.sum(-1, keepdim=True).float().expand(-1, self.num_views)
        of_view = prompt.view(len(target), self.num_views, -1)
        # The noise in earlier blocks is meant for the blocks after them.
        return text_views(path, masks | noise, weight, of_view, sees_clean_past=False)

    def advantage(self, rollout: Rollout) -> Float[Tensor, "B *K"]:
        """Return the reward r minus the baseline of the group."""
        return group_advantage(rollout.reward, rollout.group_size, self.baseline)

    def loss(self, inputs: LossInputs) -> LossOutput:
        """Compute -A times the bound for each completion. The bound is a mean over tokens, so it is
        multiplied by the number of tokens of the completion and divided by their mean number in the
        batch."""
        lower, upper, num_tokens = self._bounds(inputs.new, inputs)
        weight = num_tokens / mean_tokens(num_tokens, inputs)
        loss = -weight * self._advantage_of(inputs) * self._bound(lower, upper, inputs)
        return LossOutput(loss, {"policy/elbo": lower.detach(), "policy/eubo": upper.detach()})

    def _bounds(self, logprob: Tensor, inputs: LossInputs) -> tuple[Tensor, Tensor, Tensor]:
        """Return the lower and the upper bound of each completion, in nats per token, and its
        number of tokens."""
        by_completion = (-1, self.num_views, inputs.target.shape[1])
        values, target = logprob.view(by_completion), inputs.target.view(by_completion)
        num_tokens = inputs.weight[:: self.num_views]
        lower = (values.sum(-1) / target.sum(-1).clamp(min=1)).mean(-1)
        return lower, evidence_upper_bound(values, target, num_tokens, self.eubo_power), num_tokens

    def _bound(self, lower: Tensor, upper: Tensor, inputs: LossInputs) -> Tensor:
        """Return the bound that applies to the sign of the advantage of each completion."""
        mixed = self.mixture * upper + (1 - self.mixture) * lower
        return torch.where(self._advantage_of(inputs) > 0, lower, mixed)

    def _advantage_of(self, inputs: LossInputs) -> Tensor:
        """Return the advantage of each completion."""
        return inputs.advantage[:: self.num_views]


class StableDRL(SPG):
    """SPG with importance weights that are clipped whatever the sign of the advantage, and divided
    by their sum over the group."""

    type: Literal["stable_drl"] = "stable_drl"  # type: ignore[assignment]
    max_weight: float = Field(5.0, gt=1)
    """Largest importance weight exp(ELBO_new - ELBO_old), with ELBOs per token. The default is that
    of the released code."""

    paper: ClassVar[str] = "arXiv:2603.06743"
    summary: ClassVar[str] = "SPG with clipped importance weights that sum to 1 in each group"
    estimates: ClassVar[str] = (
        "at the old policy E[A ∇bound], with the bound chosen by the sign of the advantage; elsewhere a self-normalised "
        "estimate of the same under the new policy; not the policy gradient"
    )
    cost: ClassVar[str] = "m f+b (+ m f old) in each iteration, two passes"
    # The sum of the weights needs all members of a group, those of advantage 0 too.
    penalties: ClassVar[tuple[str, ...] | None] = None
    by_completion: ClassVar[bool] = False

    def loss(self, inputs: LossInputs) -> LossOutput:
        """Compute -G w A times the bound for each completion, where the weights w of a group sum to
        1. They have no gradient."""
        lower, upper, _ = self._bounds(inputs.new, inputs)
        old, _, _ = self._bounds(inputs.old, inputs)
        log_ratio, most = lower.detach() - old, math.log(self.max_weight)
        group = inputs.row[:: self.num_views] // inputs.group_size
        weight = inputs.group_size * softmax_by_group(log_ratio.clamp(max=most), group)
        loss = -weight * self._advantage_of(inputs) * self._bound(lower, upper, inputs)
        metrics = {"policy/elbo": lower.detach(), "policy/eubo": upper.detach()}
        metrics |= {"clip_ratio/region_mean": (log_ratio > most).float(), "policy/ratio_max": log_ratio.exp()}
        return LossOutput(loss, metrics)

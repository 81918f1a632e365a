"""SPG (arXiv:2510.09541): raise a lower bound of the likelihood of good completions, and lower an
upper bound for bad ones.

The method is a policy gradient in which log π is replaced by a computable bound. Lowering an ELBO
need not lower the likelihood, so completions of negative advantage get a mixture with an evidence
upper bound. The views (masked versions of the completions) imitate a sampler that denoises block by
block.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from unmask.core.records import LossInputs, LossOutput, Needs, Rollout, Views
from unmask.functional.advantage import group_advantage
from unmask.functional.elbo import mask_at_times
from unmask.functional.masking import block_masks, evidence_upper_bound
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
        by_completion = (-1, self.num_views, inputs.target.shape[1])
        new, target = inputs.new.view(by_completion), inputs.target.view(by_completion)
        advantage, num_tokens = inputs.advantage[:: self.num_views], inputs.weight[:: self.num_views]
        lower = (new.sum(-1) / target.sum(-1).clamp(min=1)).mean(-1)
        upper = evidence_upper_bound(new, target, num_tokens, self.eubo_power)
        bound = torch.where(advantage > 0, lower, self.mixture * upper + (1 - self.mixture) * lower)
        loss = -advantage * bound * num_tokens / mean_tokens(num_tokens, inputs)
        return LossOutput(loss, {"policy/elbo": lower.detach(), "policy/eubo": upper.detach()})

"""DMPO, distribution matching policy optimisation (arXiv:2510.08233): a cross-entropy with the
weights of the reward-tilted reference distribution.

The target distribution is π_ref exp(r/α) up to a normaliser. Samples of the old policy, weighted by
the group's softmax of log(π_ref/π_old) + r/α, stand for samples of the target, and the forward KL to
them is a denoising cross-entropy. The softmax for -r/α is subtracted: it unlearns bad completions,
and removes what good and bad ones share. docs/methods/dmpo.md lists the differences from the
released code.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from unmask.core.config import SamplerConfig
from unmask.core.records import GIVEN, LossInputs, LossOutput, Needs, Rollout, Views
from unmask.functional.advantage import group_advantage
from unmask.functional.behaviour import LevelOrOff
from unmask.functional.completions import one_by_completion, sum_by_completion
from unmask.functional.elbo import coupled_masks, mask_at_times
from unmask.functional.tilted import tilted_weights
from unmask.methods.base import Method
from unmask.methods.views import masked_views


class DMPO(Method):
    """Distribution matching policy optimisation with the weighted denoising cross-entropy."""

    type: Literal["dmpo"] = "dmpo"
    num_samples: int = Field(2, ge=1)
    """Number M of pairs of complementary masks for each completion. The default is that of the
    released recipe."""
    alpha: float = Field(0.04, gt=0)
    """Temperature α of the tilt exp(r/α), in the unit of the reward. The default is that of the
    released recipe."""
    least_time: float = Field(0.1, ge=0, lt=1)
    """Least probability with which a token is masked by the first set of a pair. The default is
    that of the released code."""
    centring: float = Field(1.0, ge=0)
    """Weight of the softmax for -r/α that is subtracted; 0 subtracts none. The default is that of
    the released recipe."""

    scores: ClassVar[str] = "regression"
    paper: ClassVar[str] = "arXiv:2510.08233"
    summary: ClassVar[str] = "a denoising cross-entropy weighted by the reward-tilted reference distribution"
    unbiased: ClassVar[str] = "no"
    estimates: ClassVar[str] = (
        "the gradient of a denoising cross-entropy weighted by the group's softmax of log(π_ref/π_old) + r/α minus that of "
        "log(π_ref/π_old) - r/α; not the policy gradient"
    )
    cost: ClassVar[str] = "2M f+b (+ 2M f old, 2M f reference), two passes"
    # The weights of a group need all its members, whatever their rewards.
    penalties: ClassVar[tuple[str, ...] | None] = None
    on_path: ClassVar[bool] = False
    separable: ClassVar[bool] = False
    fresh_views: ClassVar[bool] = True

    def needs(self) -> Needs:
        """Require the reference policy."""
        return Needs(reference="logprob")

    def behaviour_levels(self, sampler: SamplerConfig) -> tuple[LevelOrOff, ...]:
        """Return only `off`: the weights are those of the target distribution, and not proportional
        to an advantage."""
        return ("off",)

    def plan(self, rollout: Rollout, generator: torch.Generator) -> Views:
        """Plan 2 M views for each completion. M sets mask each position with a probability uniform
        on [least_time, 1), and the complement of each set is masked too. A view that masks m
        positions has weight 1 / (2 M m)."""
        is_maskable = rollout.trajectory.unmask_step != GIVEN
        num_rows, length = is_maskable.shape
        times = self.least_time + (1 - self.least_time) * torch.rand(num_rows * self.num_samples, generator=generator)
        masks = mask_at_times(times, is_maskable.repeat_interleave(self.num_samples, 0), generator)
        masks = coupled_masks(masks.view(num_rows, self.num_samples, length), is_maskable)
        return masked_views(masks, 1 / (2 * self.num_samples * masks.sum(-1).clamp(min=1)))

    def advantage(self, rollout: Rollout) -> Float[Tensor, "B *K"]:
        """Return (r - mean) / α, where the mean is that of the group; a softmax ignores it."""
        return group_advantage(rollout.reward, rollout.group_size, "group_mean") / self.alpha

    def loss(self, inputs: LossInputs) -> LossOutput:
        """Compute -G W w Σ log p of each view, where w is the weight of the view and W = softmax(l +
        r/α) - c softmax(l - r/α) over the group, without a gradient. The log-ratio l of the reference
        to the old policy is estimated from the masks of the completion."""
        assert inputs.reference is not None
        length = inputs.target.shape[1]
        log_ratio = length * sum_by_completion(inputs.weight * (inputs.reference - inputs.old).sum(-1), inputs.row)
        tilt = one_by_completion(inputs.advantage, inputs.row)
        completion, index = inputs.row.unique(return_inverse=True)
        group = completion // inputs.group_size
        weight, wanted = tilted_weights(log_ratio, tilt, group, self.centring)
        loss = -inputs.group_size * weight[index] * inputs.weight * inputs.new.sum(-1)
        share = 1 / (inputs.group_size * sum_by_completion(wanted.square(), group))
        return LossOutput(loss, {"dmpo/effective_share": share, "dmpo/log_ratio": log_ratio.abs()})

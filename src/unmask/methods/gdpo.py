"""GDPO, group diffusion policy optimisation (arXiv:2510.08554): a sequence ratio of ELBOs,
integrated over time by quadrature; and EBPO (LLaDA 2.1, arXiv:2602.08676), the same block by block.

ELBO = ∫ (1/t) E[Σ_{i masked} log p_i] dt over (0, 1). Most of the variance of a random estimate
comes from the random time t, but the integrand is a smooth function of t. So t takes the M nodes of
Gauss-Legendre quadrature, and only the mask at each node is random. The quadrature rule is exact if
2 M >= L, the number of positions, and biased otherwise.

With `by_block` the likelihood is that of block diffusion: the sum over blocks of the ELBO of a block
given the finished blocks before it.

docs/methods/gdpo.md lists the differences from the paper and the released code, and the parts of
the paper that were not accessible.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from unmask.core.records import GIVEN, LossInputs, LossOutput, Needs, Rollout, Views
from unmask.functional.advantage import group_advantage
from unmask.functional.completions import one_by_completion, sum_by_completion
from unmask.functional.elbo import gauss_legendre, mask_at_times
from unmask.functional.masking import masks_by_block
from unmask.functional.surrogate import kl_k2
from unmask.methods.ratio import RatioMethod
from unmask.methods.views import masked_views


class GDPO(RatioMethod):
    """Group diffusion policy optimisation."""

    type: Literal["gdpo"] = "gdpo"
    num_nodes: int = Field(3, ge=1)
    """Number M of times at which the ELBO's integrand is evaluated, with one random mask each. The
    paper uses 2 or 3."""
    by_block: bool = False
    """True to take the ELBO of each block given the blocks before it, as in EBPO. The sum over the
    blocks is a bound of the likelihood under a sampler that denoises block by block."""
    baseline: Literal["group_mean", "leave_one_out"] = "group_mean"
    """Baseline of the group, without division by its standard deviation. The default is that of the
    paper; the leave-one-out advantage is G / (G - 1) times as large."""
    epsilon: float = Field(0.5, ge=0)
    """Lower clip of the ratio of the whole completion, as a distance from 1. The default is that of
    d1, whose code the released code of GDPO extends."""
    epsilon_high: float = Field(0.5, ge=0)
    """Upper clip, as a distance from 1. The default is that of d1."""
    beta: float = Field(0.04, ge=0)
    """Weight of the KL to the reference policy; with 0, no reference policy is needed. The default
    is that of d1."""

    scores: ClassVar[str] = "random masks"
    paper: ClassVar[str] = "arXiv:2510.08554"
    summary: ClassVar[str] = "one ratio of ELBOs for each completion, at fixed quadrature times"
    unbiased: ClassVar[str] = "no"
    estimates: ClassVar[str] = (
        "E[A ∇Q] / L, with Q the ELBO integrated at M nodes, up to the rule's error; the ELBO is not the log-probability"
    )
    cost: ClassVar[str] = "M f+b (+ M f old, M f reference), two passes; by_block: for each block"
    penalties: ClassVar[tuple[str, ...] | None] = ("beta",)
    samples: ClassVar[str] = "whole completions"
    on_path: ClassVar[bool] = False
    separable: ClassVar[bool] = False
    by_completion: ClassVar[bool] = True
    fresh_views: ClassVar[bool] = True

    def needs(self) -> Needs:
        """Require the reference policy if β > 0."""
        return Needs(reference="logprob" if self.beta else "none")

    def plan(self, rollout: Rollout, generator: torch.Generator) -> Views:
        """Plan M views for each completion. The view of node n masks each position with probability
        t_n and has weight w_n / t_n. With `by_block`, one such mask gives a view for each block, in
        which the blocks before it are visible and those after it are masked."""
        is_maskable = rollout.trajectory.unmask_step != GIVEN
        times, weight = gauss_legendre(self.num_nodes)
        num_rows, length = is_maskable.shape
        each = mask_at_times(times.repeat(num_rows), is_maskable.repeat_interleave(self.num_nodes, 0), generator)
        each = each.view(num_rows, self.num_nodes, length)
        by_node = (weight / times).float().to(is_maskable.device).expand(num_rows, -1)
        if not self.by_block:
            return masked_views(each, by_node)
        target, later = masks_by_block(each, is_maskable, rollout.trajectory.sampler.block)
        views = masked_views(target, by_node.repeat_interleave(target.shape[1] // self.num_nodes, 1))
        return replace(views, hidden=views.hidden | later[views.row, views.slot])

    def advantage(self, rollout: Rollout) -> Float[Tensor, "B *K"]:
        """Return the reward r minus the baseline of the group."""
        return group_advantage(rollout.reward, rollout.group_size, self.baseline)

    def loss(self, inputs: LossInputs) -> LossOutput:
        """Compute (-min(ρ A, clip(ρ) A) + β k2) / L for each completion, where ρ and k2 are those
        of the ELBOs."""
        length = inputs.target.shape[1]
        new, old = (self._elbo(logprob, inputs) for logprob in (inputs.new, inputs.old))
        loss, metrics = self.surrogate(new - old, one_by_completion(inputs.advantage, inputs.row))
        metrics["policy/elbo"] = new.detach() / length
        if self.beta:
            assert inputs.reference is not None
            kl = kl_k2(new, self._elbo(inputs.reference, inputs))
            loss = loss + self.beta * kl
            metrics["kl"] = kl.detach() / length
        return LossOutput(loss / length, metrics)

    @staticmethod
    def _elbo(logprob: Tensor, inputs: LossInputs) -> Tensor:
        return sum_by_completion(inputs.weight * logprob.sum(-1), inputs.row)


class EBPO(GDPO):
    """ELBO-based block-level policy optimisation: GDPO block by block."""

    type: Literal["ebpo"] = "ebpo"  # type: ignore[assignment]
    by_block: bool = True
    """True to take the ELBO of each block given the blocks before it; False is GDPO."""
    epsilon: float = Field(0.2, ge=0)
    """Lower clip of the ratio of the whole completion, as a distance from 1. The default is PPO's;
    the report's own value is not known to us."""
    epsilon_high: float = Field(0.2, ge=0)
    """Upper clip, as a distance from 1. The default is PPO's."""
    beta: float = Field(0.0, ge=0)
    """Weight of the KL to the reference policy; with 0, no reference policy is needed. The report
    states no such term."""

    paper: ClassVar[str] = "arXiv:2602.08676"
    summary: ClassVar[str] = "one ratio of ELBOs for each completion, block by block"
    estimates: ClassVar[str] = (
        "E[A ∇Q] / L, with Q the sum of the ELBOs of the blocks given the blocks before them, up to the quadrature's error; "
        "with blocks of one position the log-probability of left-to-right sampling"
    )
    cost: ClassVar[str] = "M f+b (+ M f old) for each block, two passes"

"""The views of one plan (a view is one masked version of a completion), together with everything
else that a loss reads, except the log-probabilities under the current policy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.core.records import LossInputs, Rollout, ViewLogprobs, Views
from unmask.functional.divergence import total_variation
from unmask.functional.surrogate import exact_kl
from unmask.methods.base import Reads
from unmask.sampling import LogprobSettings
from unmask.trainer.behaviour import ViewWeights


@dataclass(frozen=True, slots=True)
class ScoredViews:
    """Views of one plan, scored by the old and the reference policy; all minibatches of an
    iteration share them."""

    rollout: Rollout
    """The completions of all ranks."""
    plan: tuple[Views, Tensor]
    """The views of all ranks, and their advantages: [N] float32, or [N, M] if each view scores M
    completions. It includes the views that are left out."""
    views: Views
    """The views of this rank that have a gradient."""
    advantage: Tensor
    """[N] or [N, M] float32: advantages of this rank's views."""
    old: ViewLogprobs | None
    """Log-probabilities under the old policy; None if the old policy did not score the views, in
    particular if there is a single update, because the policy before it is the old policy."""
    reference: ViewLogprobs | None
    """Log-probabilities under the reference policy; None if the method needs none."""
    settings: LogprobSettings
    """Temperature and support of all log-probabilities."""
    mean_tokens: float
    """Mean number of scored tokens in a completion of the rollout."""
    weights: ViewWeights | None = None
    """Weights of this rank's views by the ratio of the old to the behaviour policy; None for no
    weights."""
    reads: Reads = Reads()
    """What the loss reads of the views."""

    def inputs(self, new: ViewLogprobs, index: Tensor) -> LossInputs:
        """Return the inputs of the loss of some views.

        Args:
            new: log-probabilities under the policy that is trained.
            index: [C] int64: the views that `new` scores.
        """
        old, old_choice = self._old(new, index)
        inputs = LossInputs(
            new=new.logprob,
            old=old,
            reference=None if self.reference is None else self.reference.logprob[index],
            exact_kl=self._exact_kl(new, index),
            row=self.views.row[index],
            target=self.views.target[index],
            weight=self.views.weight[index],
            advantage=self.advantage[index],
            slot=self.views.slot[index],
            group_size=self.rollout.group_size,
            mean_tokens=self.mean_tokens,
            committed=None if self.views.committed is None else self.views.committed[index],
            new_choice=new.choice,
            old_choice=old_choice,
            divergence=self._divergence(new, index),
            entropy=new.entropy,
        )
        return inputs if self.weights is None else self.weights.applied(inputs, index)

    def _old(self, new: ViewLogprobs, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the log-probabilities from which ratios are measured, and those of the position
        choices; see `Reads.anchor`."""
        if self.reads.anchor == "rollout":
            path, row, target = self.rollout.trajectory, self.views.row[index], self.views.target[index]
            old, choice = path.logprob[row].masked_fill(~target, 0.0), None
            if new.choice is not None and path.choice_logprob is not None:
                choice = path.choice_logprob[row].masked_fill(~target, 0.0)
            return old, choice
        if self.old is None:
            return new.logprob.detach(), None if new.choice is None else new.choice.detach()
        return self.old.logprob[index], None if self.old.choice is None else self.old.choice[index]

    def _exact_kl(self, new: ViewLogprobs, index: Tensor) -> Tensor | None:
        """Return [C, L] KL(new || reference) at the targets; None if there are no distributions."""
        if new.distribution is None or self.reference is None or self.reference.distribution is None:
            return None
        kl = exact_kl(new.distribution, self._kept(self.reference.distribution, index))
        return self._at_targets(kl, index)

    @torch.no_grad()
    def _divergence(self, new: ViewLogprobs, index: Tensor) -> Tensor | None:
        """Return [C, L] divergences between the old and the new policy at the targets; None if the
        loss reads none."""
        if self.reads.divergence == "none":
            return None
        if self.old is None:
            return torch.zeros_like(self.views.target[index], dtype=new.logprob.dtype)
        assert new.distribution is not None
        assert self.old.distribution is not None
        old = self._kept(self.old.distribution, index)
        if self.reads.divergence == "tv":
            return self._at_targets(total_variation(new.distribution, old), index)
        return self._at_targets(exact_kl(old, new.distribution), index)

    def _kept(self, distribution: Tensor, index: Tensor) -> Tensor:
        """Return the rows of a kept distribution that belong to the targets of the views `index`, in
        the order of `index`. The kept rows are in the order of all views."""
        place = torch.full_like(self.views.target, -1, dtype=torch.long)
        place[self.views.target] = torch.arange(len(distribution), device=place.device)
        return distribution[place[index][self.views.target[index]]]

    def _at_targets(self, values: Tensor, index: Tensor) -> Tensor:
        """Return [C, L] values at the targets of the views `index`; 0 elsewhere."""
        target = self.views.target[index]
        return torch.zeros_like(target, dtype=values.dtype).masked_scatter(target, values)

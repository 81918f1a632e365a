"""The views of one plan (a view is one masked version of a completion), together with everything
else that a loss reads, except the log-probabilities under the current policy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.core.records import LossInputs, Rollout, ViewLogprobs, Views
from unmask.functional.surrogate import exact_kl
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
    """Log-probabilities under the old policy; None if there is a single update, because the policy
    before it is the old policy."""
    reference: ViewLogprobs | None
    """Log-probabilities under the reference policy; None if the method needs none."""
    settings: LogprobSettings
    """Temperature and support of all log-probabilities."""
    mean_tokens: float
    """Mean number of scored tokens in a completion of the rollout."""
    weights: ViewWeights | None = None
    """Weights of this rank's views by the ratio of the old to the behaviour policy; None for no
    weights."""

    def inputs(self, new: ViewLogprobs, index: Tensor) -> LossInputs:
        """Return the inputs of the loss of some views.

        Args:
            new: log-probabilities under the policy that is trained.
            index: [C] int64: the views that `new` scores.
        """
        old_choice = None
        if new.choice is not None:
            old = new if self.old is None else self.old
            assert old.choice is not None
            old_choice = old.choice.detach() if self.old is None else old.choice[index]
        inputs = LossInputs(
            new=new.logprob,
            old=new.logprob.detach() if self.old is None else self.old.logprob[index],
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
        )
        return inputs if self.weights is None else self.weights.applied(inputs, index)

    def _exact_kl(self, new: ViewLogprobs, index: Tensor) -> Tensor | None:
        """Return [C, L] KL(new || reference) at the targets; None if there are no distributions."""
        if new.distribution is None or self.reference is None or self.reference.distribution is None:
            return None
        # The reference holds the targets of all views in their order, `new` those of `index` in its
        # order.
        place = torch.full_like(self.views.target, -1, dtype=torch.long)
        place[self.views.target] = torch.arange(len(self.reference.distribution), device=place.device)
        target = self.views.target[index]
        kl = exact_kl(new.distribution, self.reference.distribution[place[index][target]])
        return torch.zeros_like(new.logprob).masked_scatter(target, kl)

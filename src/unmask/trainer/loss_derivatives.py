"""Derivatives of a loss with respect to the log-probabilities of its views, by which a second pass
back-propagates a loss that is not a sum over views."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from unmask.core.records import ViewLogprobs


@dataclass(frozen=True, slots=True)
class LossDerivatives:
    """Value of a loss that is not a sum over views, and the derivatives of the loss with respect to
    the log-probabilities of the views."""

    loss: float
    """Value of the loss."""
    by_logprob: Tensor
    """[N, L] or [N, M, L] float32: derivative of the loss with respect to the log-probability of
    each target (a masked position whose log-probability the loss reads)."""
    by_choice: Tensor | None
    """[N, L] float32: derivative of the loss with respect to the log-probability of each position
    choice; None if the loss does not read these log-probabilities."""

    def dot(self, new: ViewLogprobs, index: Tensor) -> Tensor:
        """Return a scalar that has the gradient of the loss: the log-probabilities of the views
        `index`, multiplied by the derivatives and summed."""
        total = (new.logprob * self.by_logprob[index]).sum()
        if new.choice is not None and self.by_choice is not None:
            total = total + (new.choice * self.by_choice[index]).sum()
        return total

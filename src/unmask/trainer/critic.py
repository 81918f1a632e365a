"""The critic: a linear function of the policy's hidden states that estimates the return of a path
from one of its states, V(x_k) = a + w · mean_i h_i(x_k).

Its features are the hidden states of the last layer in a forward pass over the state, averaged over
the completion. The trunk learns nothing from the critic. What is learned, a and w, is the solution of a
ridge regression on the returns of the training steps so far, in which each step loses weight with
time. The solution follows from second moments, which the ranks add up. The moments are the whole
state of the critic; there is no learning rate, no optimizer and no random number.

The values of a training step come from the steps before it. They are then functions of the states
alone, and as a baseline they leave a policy gradient unbiased; a regression on the returns that they
are compared with would not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from unmask.core.records import Rollout, Views
from unmask.functional.least_squares import ridge_regression, second_moments
from unmask.methods import Method
from unmask.methods.views import step_views
from unmask.recipes.schema import TrainRecipe
from unmask.sampling.pooled_states import pooled_states
from unmask.trainer.distributed.ranks import Ranks
from unmask.trainer.metrics import Tally
from unmask.trainer.passes import UpdatePasses

if TYPE_CHECKING:
    from unmask.models import Denoiser

ValueErrors = Sequence[tuple[Views, Tensor]]
"""Views with their `LossOutput.value_error`."""


@dataclass(frozen=True, slots=True)
class ValuedRollout:
    """A rollout with the values of its states, and what the critic needs to learn their returns."""

    rollout: Rollout
    """The completions of all ranks, with `Rollout.value`."""
    is_valued: Tensor
    """[B, C] bool: True in the slots that hold a valued state."""
    views: Views
    """The valued states of this rank."""
    features: Tensor
    """[N, D] float32: the features of these states."""


def blank_moments(denoiser: Denoiser, device: torch.device | str) -> Tensor:
    """Return the moments of a critic that has learned nothing, [D + 2, D + 2] float64."""
    size = int(denoiser.backbone.config.hidden_size) + 2
    return torch.zeros(size, size, dtype=torch.float64, device=device)


def state_views(method: Method, rollout: Rollout) -> Views:
    """Return a view of each state that the critic values, in the slot of its step."""
    steps = method.critic_steps(rollout)
    return step_views(rollout.trajectory, steps, torch.ones_like(steps, dtype=torch.float32))


class Critic:
    """Values the states of rollouts, and learns from their returns.

    Args:
        model: the policy, as accelerate prepared it.
        moments: [D + 2, D + 2] float64 second moments of the regression, which are updated in place.
        recipe: settings of the run.
        passes: rule that divides states into forward passes.
        ranks: exchange between the ranks of the run.
    """

    def __init__(
        self, model: nn.Module, moments: Tensor, recipe: TrainRecipe, passes: UpdatePasses, ranks: Ranks
    ) -> None:
        self.model, self.moments, self.recipe, self.ranks = model, moments, recipe, ranks
        # The states of a block-causal model have a row each: they have no targets to share it for.
        self.passes = replace(passes, packing=None)

    def valued(self, rollout: Rollout) -> ValuedRollout:
        """Value the states of a rollout, from what earlier training steps taught.

        Args:
            rollout: the groups of all ranks.
        """
        steps, views = self.recipe.method.critic_steps(rollout), state_views(self.recipe.method, rollout)
        own = self.ranks.share(len(rollout.trajectory))
        views = views.take((views.row >= own.start) & (views.row < own.stop))
        features = self._features(rollout, views)
        intercept, slopes = ridge_regression(self.moments, self.recipe.critic.ridge)
        value = torch.zeros(steps.shape, dtype=torch.float32, device=steps.device)
        value[views.row, views.slot] = (intercept + features.double() @ slopes).float()
        return ValuedRollout(replace(rollout, value=self._of_all(value)), steps >= 0, views, features)

    def learn(self, valued: ValuedRollout, errors: ValueErrors, tally: Tally) -> None:
        """Learn the returns of valued states.

        Args:
            valued: the rollout with its values.
            errors: by how much the returns of this rank's states exceed their values; the return of
                any other state is the reward.
            tally: object to which the metrics are added.
        """
        reward, value, views = valued.rollout.reward, valued.rollout.value, valued.views
        assert value is not None
        returns = reward.unsqueeze(-1).expand_as(value).clone()
        for of_views, error in errors:
            returns[of_views.row, of_views.slot] = value[of_views.row, of_views.slot] + error
        # Every completion counts as much as any other, whatever its number of valued states.
        weight = 1 / views.row.bincount(minlength=len(returns))[views.row].float()
        sums = second_moments(valued.features, returns[views.row, views.slot], weight)
        self.moments.mul_(self.recipe.critic.decay).add_(self.ranks.total(sums))
        _describe(value[valued.is_valued], self._of_all(returns)[valued.is_valued], tally)

    @torch.no_grad()
    def _features(self, rollout: Rollout, views: Views) -> Tensor:
        """Return the features of this rank's views, [N, D] float32."""
        self.model.eval()
        batches = self.passes.batches(views, rollout)
        batches = batches.padded(self.ranks.largest(len(batches)))
        features = torch.zeros(len(views), len(self.moments) - 2, device=views.row.device)
        for index, batch in batches:
            pooled = pooled_states(self.model, rollout.trajectory, batch)
            if len(index):
                features[index.to(features.device)] = pooled
        return features

    def _of_all(self, table: Tensor) -> Tensor:
        """Return a table with one row for each completion, in which each rank has set its own rows,
        with the rows of all ranks."""
        own = self.ranks.share(len(table))
        rows = torch.zeros_like(table)
        rows[own] = table[own]
        return self.ranks.total(rows)


def _describe(value: Tensor, returns: Tensor, tally: Tally) -> None:
    """Log how well the values predicted the returns, over all states of all ranks."""
    value, returns = value.double(), returns.double()
    tally.add("critic/loss", (value - returns).square().mean())
    tally.add("critic/value", value.mean())
    spread = returns.var(unbiased=False)
    if spread > 0:
        tally.add("critic/explained_variance", 1 - (returns - value).var(unbiased=False) / spread)
        if value.var(unbiased=False) > 0:
            tally.add("critic/correlation", torch.corrcoef(torch.stack([value, returns]))[0, 1])

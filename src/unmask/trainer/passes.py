"""The passes over the views of a plan in one training step. A view is one masked version of a
completion. The old and the reference policy score the views first, if the method needs it; then
each minibatch makes an update.

`Learner` makes these passes, and `unmask estimate` counts them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unmask.core.records import Rollout, Views
from unmask.recipes.schema import TrainRecipe
from unmask.sampling.noisy_copies import Packing
from unmask.trainer.view_batches import ViewBatches

VIEWS_PER_FORWARD = 256
"""Default number of views in a forward pass on a device other than a CPU."""

CACHED_STATES = 160_000
"""Number of hidden states (tokens times the width of the model) whose activations in one layer fit
the cache of a CPU core. A larger forward pass is no faster and needs more memory."""


@dataclass(frozen=True, slots=True)
class UpdatePasses:
    """The passes over views in one training step, as far as the settings determine them.

    Args:
        recipe: settings of the run.
        max_tokens: maximum number of tokens in one forward pass; None limits the number of views
            instead.
        width: size of the hidden states of a model on a CPU; None on other devices.
        packing: rule that decides which views of a block-causal model share a row of a forward pass;
            None for other models.
    """

    recipe: TrainRecipe
    max_tokens: int | None = None
    width: int | None = None
    packing: Packing | None = None

    @property
    def num_plans(self) -> int:
        """Number of plans that a training step makes and scores before its first update."""
        return self.recipe.num_iterations if self.recipe.method.fresh_views else 1

    @property
    def num_updates(self) -> int:
        """Number of optimizer steps in a training step."""
        return self.recipe.num_iterations * self.recipe.num_minibatches

    @property
    def scores_old(self) -> bool:
        """True if the old policy scores each plan. A single update does not need it, because the
        policy before that update is the old policy. A loss whose ratios are measured from the
        rollout needs it only to measure how the old policy differs from the behaviour policy."""
        if self.num_updates == 1:
            return False
        recipe = self.recipe
        is_measured = recipe.measured_level is not None
        return is_measured or recipe.method.reads().anchor == "old"

    @property
    def keeps_old(self) -> bool:
        """True if the old policy's whole distributions are kept."""
        return self.scores_old and self.recipe.method.reads().divergence != "none"

    @property
    def keeps_reference(self) -> bool:
        """True if the reference policy's whole distributions are kept."""
        return self.recipe.method.needs().reference == "distribution"

    @property
    def rescored(self) -> Literal["none", "views", "path"]:
        """What the old policy scores in the sampling distribution, only to compare it with the
        behaviour policy: nothing, the views, or every state of the path. Without this pass the
        comparison uses the log-probabilities of the loss."""
        recipe = self.recipe
        level = recipe.measured_level
        if level == "sequence":
            return "path"
        is_other = level is not None and recipe.logprob_temperature != "sampling"
        return "views" if is_other or (self.averages_weights and not self.scores_old) else "none"

    @property
    def averages_weights(self) -> bool:
        """True if the weights of views are divided by their mean. All views have to be scored before
        the first update then, also those without a gradient."""
        return self.recipe.behaviour.normalise and self.recipe.weighted_level in ("token", "step")

    def is_kept(self, advantage: Tensor) -> Tensor:
        """Return [N] bool, False for the views that are left out because they have no gradient.

        Args:
            advantage: [N] or [N, M] float32: advantages of the views.
        """
        if self.averages_weights or self.recipe.speed.nll_weight:
            return torch.ones(len(advantage), dtype=torch.bool, device=advantage.device)
        return self.recipe.method.has_gradient(advantage)

    @property
    def scores_reference(self) -> bool:
        """True if the reference policy scores each plan."""
        return self.recipe.method.needs().reference != "none"

    def has_first_pass(self, num_batches: int, plan: Views, rollout: Rollout) -> bool:
        """Return True if an update of `num_batches` batches computes the derivatives of the loss in
        a separate pass, before back-propagation."""
        return not self.recipe.method.separable and num_batches > 1 and not self.by_completion(plan, rollout)

    def by_completion(self, plan: Views, rollout: Rollout) -> bool:
        """Return True if batches keep the views of a completion together, so that a loss that is a
        sum over completions needs no first pass: each completion fits into one forward pass.

        All ranks have the same plan, so they decide alike.
        """
        if not self.recipe.method.by_completion or not len(plan):
            return False
        num_views = int(plan.row.bincount().max())
        if self.max_tokens is None:
            return num_views <= (self.recipe.views_per_forward or VIEWS_PER_FORWARD)
        if self.packing is not None:
            return self.packing.widest_completion(plan, rollout.trajectory, self.max_tokens) <= self.max_tokens
        width = int(rollout.trajectory.prompt_mask.sum(-1).max()) + rollout.trajectory.tokens.shape[1]
        return num_views <= self.max_tokens // width

    def minibatches(self, rollout: Rollout, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield the indices of the completions of each minibatch, `num_minibatches` times; some
        minibatches may be empty.

        Args:
            rollout: the completions of all ranks. A completion is never divided between
                minibatches. A loss that is not a sum over views may compare the members of a group,
                so then a group is not divided either.
            generator: draws the order.
        """
        rows = torch.arange(len(rollout.trajectory))
        if self.recipe.num_minibatches == 1:
            yield rows
            return
        unit = 1 if self.recipe.method.separable else rollout.group_size
        order = torch.randperm(len(rows) // unit, generator=generator)
        for part in order.tensor_split(self.recipe.num_minibatches):
            yield rows.view(-1, unit)[part].flatten()

    def batches(self, views: Views, rollout: Rollout, *, by_completion: bool = False) -> ViewBatches:
        """Divide the views of one rank into batches that one forward pass holds; `by_completion`
        keeps the views of a completion together."""
        size, max_tokens = self._size(len(views), rollout), self.max_tokens
        if self.packing is not None and self._fills_cache and max_tokens is None:
            # Packs differ in length, so the cache holds a number of tokens and not of views.
            assert self.width is not None
            size, max_tokens = len(views), CACHED_STATES // self.width
        return ViewBatches.of(
            views, rollout.trajectory, size, max_tokens, by_completion=by_completion, packing=self.packing
        )

    @property
    def _fills_cache(self) -> bool:
        """True if a batch holds as many views as the cache of a CPU core does."""
        method = self.recipe.method
        is_free = self.recipe.views_per_forward is None and self.width is not None
        return is_free and (method.separable or method.by_completion)

    def _size(self, num_views: int, rollout: Rollout) -> int:
        """Return the number of views in a batch, if there are `num_views` views in total."""
        path = rollout.trajectory
        if not self._fills_cache:
            return self.recipe.views_per_forward or VIEWS_PER_FORWARD
        assert self.width is not None
        cached = CACHED_STATES // (self.width * (path.prompt_ids.shape[1] + path.tokens.shape[1]))
        # Batches of similar size.
        num_batches = max(1, -(-num_views // max(1, cached)))
        return max(1, -(-num_views // num_batches))

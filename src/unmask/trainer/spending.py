"""The token passes that the training steps of a run have used, and the limit that a recipe may set
for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from unmask.core.errors import ConfigError
from unmask.recipes.schema import PretrainRecipe, TrainRecipe

KEY = "compute/token_passes"
"""Metric of the token passes of a training step."""


class Spending:
    """Token passes of the training steps so far, against `max_token_passes` of a recipe.

    The cost of a step depends on its rewards and on the ends of its completions, so it is known
    only after the step. A run ends when the rest of its limit is less than the cost of its most
    expensive step so far. It uses more than its limit only if its last step is more expensive than
    every step before.

    Args:
        recipe: settings of the run; pretraining has no limit.
        lines: metrics of the steps that are done.
    """

    def __init__(self, recipe: TrainRecipe | PretrainRecipe, lines: Iterable[Mapping[str, Any]] = ()) -> None:
        self._limit = self._every = None
        if isinstance(recipe, TrainRecipe):
            self._limit, self._every = recipe.max_token_passes, recipe.evaluation.eval_token_passes
        self._total = self._largest = self._last = 0.0
        for line in lines:
            self.add(line)

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Count a training step. Metrics without token passes are not those of a step.

        Raises:
            ConfigError: the first step has used more than the limit.
        """
        if KEY not in metrics:
            return
        self._last = float(metrics[KEY])
        is_first = not self._total
        self._total += self._last
        self._largest = max(self._largest, self._last)
        if is_first and self._limit is not None and self._total > self._limit:
            raise ConfigError(
                f"max_token_passes = {self._limit:,} is less than the cost of the first training step, {self._total:,.0f} token "
                "passes. Raise it (in a comparison, the budget of the task), or lower num_prompts or num_generations.",
                agreed=True,
            )

    @property
    def share(self) -> float:
        """Share of the limit that is used; 0 without a limit."""
        return min(self._total / self._limit, 1.0) if self._limit else 0.0

    @property
    def is_over(self) -> bool:
        """True if the rest of the limit does not pay for another step."""
        return self._limit is not None and self._total + self._largest > self._limit

    @property
    def is_evaluation_due(self) -> bool:
        """True before the first step, and after a step that has completed another
        `evaluation.eval_token_passes` token passes; False without this setting."""
        if self._every is None:
            return False
        return not self._total or self._total // self._every > (self._total - self._last) // self._every

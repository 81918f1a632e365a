"""The scorer that a training recipe describes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from unmask.recipes.schema import TrainRecipe
from unmask.rewards.protocol import RewardFunc
from unmask.rewards.scorer import Scorer, make_scorer


def scorer_of(
    recipe: TrainRecipe, given: Sequence[str | RewardFunc] = (), calling: Callable[[], None] = lambda: None
) -> Scorer:
    """The scorer of a training recipe.

    Args:
        recipe: its settings.
        given: reward functions, as objects or paths, to use instead of the recipe's or the task's.
        calling: called before each call of a function.

    Raises:
        ConfigError: a function that cannot be loaded, two of one name, or none at all.
    """
    return make_scorer(
        given or recipe.reward_funcs,
        recipe.task.rewards(),
        recipe.reward_weights,
        timeout=recipe.reward_timeout,
        workers=recipe.reward_workers,
        item_timeout=recipe.reward_item_timeout,
        group_size=recipe.num_generations,
        calling=calling,
    )

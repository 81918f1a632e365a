"""The scorer (the reward functions with their weights and limits) that a training recipe
describes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from unmask.recipes.schema import TrainRecipe
from unmask.rewards.loading import make_scorer
from unmask.rewards.protocol import RewardFunc
from unmask.rewards.scorer import Scorer


def scorer_of(
    recipe: TrainRecipe, functions: Sequence[str | RewardFunc] = (), calling: Callable[[], None] = lambda: None
) -> Scorer:
    """Return the scorer of a training recipe.

    Args:
        recipe: settings of the run.
        functions: reward functions, as objects or paths, to use instead of the recipe's or the
            task's.
        calling: function called before each call of a reward function.

    Raises:
        ConfigError: if a function cannot be loaded, two functions have the same name, or there is
            no function.
    """
    return make_scorer(
        functions or recipe.reward_funcs,
        recipe.task.rewards(),
        recipe.reward_weights,
        timeout=recipe.reward_timeout,
        workers=recipe.reward_workers,
        item_timeout=recipe.reward_item_timeout,
        group_size=recipe.num_generations,
        calling=calling,
    )

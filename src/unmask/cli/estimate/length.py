"""Length of a run: the number of its training steps and of its evaluations."""

from __future__ import annotations

from unmask.recipes.schema import TrainRecipe


def num_steps(recipe: TrainRecipe, cost: int) -> int:
    """Return the number of training steps within `max_steps` and `max_token_passes`, at least 1.

    Args:
        recipe: settings of the run.
        cost: token passes of a training step.
    """
    limit = recipe.max_token_passes
    return recipe.max_steps if limit is None else max(1, min(recipe.max_steps, limit // cost))


def num_evaluations(recipe: TrainRecipe, cost: int) -> int:
    """Return the number of evaluations: before the first step, after the last, and between them
    every `eval_steps` steps and every `eval_token_passes` token passes.

    Args:
        recipe: settings of the run.
        cost: token passes of a training step.
    """
    every, tokens = recipe.evaluation.eval_steps, recipe.evaluation.eval_token_passes
    last = num_steps(recipe, cost)
    steps = {0, last} if every or tokens else {last}
    steps |= set(range(0, last, every)) if every else set()
    steps |= {step for step in range(1, last) if tokens and step * cost // tokens > (step - 1) * cost // tokens}
    return len(steps)

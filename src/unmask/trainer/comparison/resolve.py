"""Recipes of the single runs of a comparison.

A method is a set of changes to the task's training recipe, so that all methods share every other
setting.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError
from unmask.recipes.load import make_sampler, recipe_tree, validate, write_key
from unmask.recipes.schema import PretrainRecipe, TrainRecipe
from unmask.trainer.comparison.recipe import BASE, CompareMethod, CompareRecipe, Settings


def base_recipe(recipe: CompareRecipe, task: str, seed: int) -> PretrainRecipe:
    """Return the recipe that pretrains the base of a task for a seed."""
    source = recipe.tasks[task].base
    assert source is not None
    with _located(f"tasks.{task}.base"):
        tree = recipe_tree(PretrainRecipe, source)
        _write(tree, recipe.tasks[task].base_overrides | {"seed": seed})
        return validate(PretrainRecipe, tree)


def run_recipe(recipe: CompareRecipe, task: str, method: str, point: Settings, seed: int) -> TrainRecipe:
    """Return the recipe of a run: the task's recipe with the changes of the task, the method and
    the grid point, in this order.

    The initial model, the number of steps and the run folder are still those of the task's recipe.

    Raises:
        ConfigError: if the recipe with these changes is not valid.
    """
    setting, changes = recipe.tasks[task], recipe.methods.get(method, CompareMethod())
    with _located(f'method "{method}" on task "{task}"'):
        tree = recipe_tree(TrainRecipe, setting.recipe)
        tree.setdefault("model", setting.model or BASE)
        _write(tree, setting.overrides)
        settings = changes.settings | changes.by_task.get(task, {}) | point
        if "method.type" in settings:
            # The options belong to another method.
            tree["method"] = {}
        _write(tree, settings | {"seed": seed})
        run = validate(TrainRecipe, tree)
        for steps in setting.decoding_steps:
            decoded(run.sampler, steps)
        return run


def decoded(sampler: SamplerConfig, steps: int, temperature: float = 0.0) -> SamplerConfig:
    """Return the sampler with a fixed schedule of another number of steps, and another temperature.

    Raises:
        ConfigError: if the completion or its blocks cannot be denoised in this number of steps.
    """
    changes = {"num_steps": steps, "schedule": "fixed", "temperature": temperature}
    return make_sampler(**sampler.model_dump() | changes)


@contextmanager
def _located(where: str) -> Iterator[None]:
    """Add the location of a recipe to each line of a ConfigError."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError("\n".join(f"{where}: {line}" for line in str(error).splitlines())) from error


def _write(tree: dict[str, Any], settings: Settings) -> None:
    for key, value in settings.items():
        write_key(tree, key, value)

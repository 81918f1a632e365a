"""Translation of the arguments of `Trainer` (a recipe, rows, and settings under TRL's names) into
one training recipe."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError, DataError
from unmask.methods import METHODS
from unmask.models import Policy
from unmask.recipes.keys import Places
from unmask.recipes.load import Source, override, recipe_tree, task_settings, validate
from unmask.recipes.schema import TrainRecipe
from unmask.sampling.encoding import encode_all
from unmask.tasks import Task

DEFAULTS: dict[str, Any] = {"method": {"type": "egspo"}}
"""Recipe of a `Trainer` without a recipe. EGSPO takes any reward function, because EGSPO scores
only finished completions. All other settings have the defaults of `TrainRecipe`."""

_ADVICE = (
    "Give a model and rows, as in Trainer(model=policy, reward_funcs=my_reward, train_dataset=rows, max_steps=3), or a "
    'recipe, as in Trainer(load_recipe("sudoku-tiny"), model="runs/my-base/final").'
)


ARGUMENTS = {
    "model": "policy",
    "train_dataset": "dataset train_data train_rows data",
    "eval_dataset": "eval_data val_dataset validation_dataset test_dataset",
    "reward_funcs": "reward_func reward_fn reward_function reward_functions reward rewards",
    "processing_class": "tokenizer",
    "observe": "callback",
    "resume": "resume_from_checkpoint",
}
"""Arguments of `Trainer`. Each has, as a text separated by spaces, the names that other libraries
use for it."""


def check_names(settings: Mapping[str, Any]) -> None:
    """Check that no setting is an argument of `Trainer` under another name.

    Raises:
        ConfigError: a setting is an argument of `Trainer` under another name.
    """
    for argument, names in ARGUMENTS.items():
        for name in names.split():
            if name in settings:
                raise ConfigError(f'Trainer has no argument "{name}". Did you mean "{argument}"?')


def recipe_of(
    recipe: Source | None,
    settings: Mapping[str, Any],
    *,
    model: str | Policy | None = None,
    train_dataset: Any = None,
    eval_dataset: Any = None,
) -> TrainRecipe:
    """Build the recipe that the arguments of `Trainer` describe.

    Args:
        recipe: the recipe to start from; default `DEFAULTS`.
        settings: changes to the recipe. A key is a key of the recipe, dotted or a whole section, or
            a name that TRL or another library has for exactly one key of the recipe, such as
            learning_rate for optim.learning_rate.
        model: model to start from, instead of the model of the recipe. If it is a policy, the
            caller writes it to the folder `settings["model"]` before the run reads it; this
            function uses only the policy's context length.
        train_dataset: rows to train on, instead of the task of the recipe.
        eval_dataset: rows to evaluate on; default a part of `train_dataset`.

    Raises:
        ConfigError: there is no model or no task, or a setting is unknown or cannot be used.
    """
    tree = recipe_tree(TrainRecipe, DEFAULTS if recipe is None else recipe)
    named = {key: _section(key, value) for key, value in settings.items()}
    exact = {key: value for key, value in named.items() if key in TrainRecipe.model_fields or "." in key}
    override(tree, exact)
    if isinstance(model, str):
        tree["model"] = model
    _set_rows(tree, train_dataset, eval_dataset)
    for key, missing in (("model", "no model to train"), ("task", "no rows and no task to train on")):
        if not tree.get(key):
            raise ConfigError(f"Trainer has {missing}. {_ADVICE}")
    places = Places(TrainRecipe, tree)
    override(tree, {_key(places, name): value for name, value in named.items() if name not in exact})
    if recipe is not None:
        return validate(TrainRecipe, tree)
    resolved = validate(TrainRecipe, _with_few_steps(tree))
    if isinstance(model, Policy) and "max_completion_length" not in tree.get("sampler", {}):
        length = _length_with_room(model, resolved.task, resolved)
        fitting = {**tree.get("sampler", {}), "max_completion_length": length}
        resolved = validate(TrainRecipe, _with_few_steps(tree | {"sampler": fitting}))
    return resolved


def _with_few_steps(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with a `num_selected` that is at most the number of denoising steps,
    unless it is set. The default of the method suits the completions of large language models and
    can be too large for short ones."""
    method = tree["method"]
    cls = METHODS.get(method["type"]) if isinstance(method, dict) and isinstance(method.get("type"), str) else None
    if cls is None or "num_selected" in method or "num_selected" not in cls.model_fields:
        return tree
    try:
        steps = SamplerConfig.model_validate(tree.get("sampler", {})).steps
    except ValidationError:
        # The validation of the whole recipe names the setting.
        return tree
    if steps >= cls.model_fields["num_selected"].default:
        return tree
    return tree | {"method": {**method, "num_selected": steps}}


def _section(key: str, value: Any) -> Any:
    """Return a value in the form that a recipe needs. The name or the class of a method or task
    becomes a section, and a path becomes text."""
    if key == "task" and isinstance(value, str):
        return task_settings(value)
    if key in ("method", "task") and isinstance(value, str | type):
        return {"type": value}
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _key(places: Places, name: str) -> str:
    """Return the key of the recipe that a setting's name stands for. If no key or several keys
    match, return the name itself."""
    keys = places.instead([name])
    return keys[0] if len(keys) == 1 else name


def _set_rows(tree: dict[str, Any], train: Any, held_out: Any) -> None:
    """Write rows into the recipe as its task; a task of type dataset keeps its other options."""
    if train is None and held_out is None:
        return
    if train is None:
        raise ConfigError(
            "eval_dataset is given without train_dataset. Give both, or set task.test_path in the recipe."
        )
    task = tree.get("task")
    if not isinstance(task, Mapping):
        task = task.model_dump() if isinstance(task, Task) else {}
    # Options of another task mean other things.
    options = dict(task) if task.get("type", "dataset") == "dataset" else {}
    options.pop("test_path", None)
    test = {} if held_out is None else {"test_path": held_out}
    tree["task"] = {"type": "dataset", **options, "path": train, **test}


def _length_with_room(policy: Policy, task: Task, recipe: TrainRecipe) -> int:
    """Return the completion length of `SamplerConfig`, or, if it is smaller, the number of
    positions that the model has left after the longest prompt."""
    default = SamplerConfig().max_completion_length
    positions: int | None = getattr(policy.denoiser.backbone.config, "max_position_embeddings", None)
    if positions is None:
        return default
    try:
        prompts = [row["prompt"] for row in task.candidates("train", recipe.num_rows, recipe.seed).rows]
        longest = max(map(len, encode_all(policy.tokenizer, prompts)), default=0)
    except DataError:
        # The run names the row that cannot be used.
        return default
    return min(default, max(1, positions - longest))

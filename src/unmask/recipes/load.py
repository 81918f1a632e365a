"""Find, read, override and validate recipes.

A recipe is loaded from a shipped file, a YAML file, a dict or another recipe. The run folder
records it in the form that `dump` writes and `load` accepts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError, no_file, unknown_name
from unmask.core.files import YamlError, parse_yaml, read_yaml
from unmask.core.settings import Config
from unmask.recipes.messages import explain
from unmask.recipes.schema import PretrainRecipe, RunRecipe, TrainRecipe, check_order
from unmask.tasks import TASKS, Task

RecipeT = TypeVar("RecipeT", bound=RunRecipe)
ConfigT = TypeVar("ConfigT", bound=Config)


Source = str | os.PathLike[str] | Mapping[str, Any] | RunRecipe
"""Source of a recipe: the name of a shipped recipe, a YAML file, a dict of settings, or a
recipe."""

Overrides = Sequence[str] | Mapping[str, Any]
"""Changes to a recipe: `key=value` texts, or a dict, whose keys may be dotted and whose values may
be dicts."""


def load_recipe(source: Source, overrides: Overrides = (), **settings: Any) -> TrainRecipe:
    """Load a training recipe.

    Args:
        source: a shipped name, a YAML file, a dict, or a recipe to change.
        overrides: `key=value` texts, applied in order, or a dict such as {"max_steps": 2,
            "optim.learning_rate": 1e-4}.
        settings: further changes by keyword; a dict changes only the keys that it holds.

    Raises:
        ConfigError: if the recipe does not exist or is not valid.
    """
    return load(TrainRecipe, source, overrides, **settings)


def load(kind: type[RecipeT], source: Source, overrides: Overrides = (), **settings: Any) -> RecipeT:
    """Read, override and validate a recipe of one kind. The arguments are those of `load_recipe`.

    Raises:
        ConfigError: if the recipe does not exist, is of the other kind, is not valid YAML or fails
            validation, or if an override is malformed.
    """
    tree = recipe_tree(kind, source)
    override(tree, overrides)
    override(tree, settings)
    return validate(kind, tree)


def recipe_tree(kind: type[RunRecipe], source: Source) -> dict[str, Any]:
    """Return the keys and values of a recipe before validation."""
    if isinstance(source, RunRecipe):
        return source.model_dump()
    if isinstance(source, Mapping):
        tree: dict[str, Any] = {}
        override(tree, source)
        _check_kind(kind, "", tree)
        return tree
    if not isinstance(source, str | os.PathLike):
        raise ConfigError(
            f"a recipe is a shipped name, a YAML file or a dict of its settings, not {type(source).__name__}: "
            'load_recipe("sudoku-tiny", {"max_steps": 3}).'
        )
    path = find_recipe(str(source))
    tree = read_tree(path)
    _check_kind(kind, str(source), tree)
    tree.setdefault("output_dir", f"runs/{path.stem}")
    return tree


def read_tree(path: Path) -> dict[str, Any]:
    """Return the keys and values of a YAML file.

    Raises:
        ConfigError: if the file cannot be read or does not hold a mapping.
    """
    return read_yaml(path, ConfigError)


def _check_kind(kind: type[RunRecipe], source: str, tree: Mapping[str, Any]) -> None:
    """Refuse a recipe of the other command with a single sentence instead of one sentence for each
    key."""
    only_pretrain = PretrainRecipe.model_fields.keys() - TrainRecipe.model_fields.keys()
    is_train, is_pretrain = "method" in tree, "method" not in tree and bool(only_pretrain & tree.keys())
    if (kind is TrainRecipe and is_pretrain) or (kind is PretrainRecipe and is_train):
        command = "train" if is_train else "pretrain"
        raise ConfigError(
            f"{source or 'this dict'} is a recipe for the other command: unmask {command} {source or 'RECIPE'}"
        )


COLLECTIONS = ("published", "single-gpu")
"""Folders of shipped run recipes; the name of such a recipe begins with its folder, as in
single-gpu/NAME."""


def find_recipe(source: str, kind: str = "") -> Path:
    """Return the file of a recipe: `source` itself if it is a file, otherwise the shipped recipe of
    this name.

    Args:
        source: the path of a YAML file, or a shipped name, with or without the folder of its
            collection.
        kind: the kind of recipe, as in `shipped_recipes`.
    """
    file = Path(source).expanduser()
    if file.is_dir():
        inside = file / "config.yaml"
        hint = f" The recipe of the run in this folder is {inside}." if inside.is_file() else ""
        raise ConfigError(f"{file} is a folder, but a recipe is a YAML file or a shipped name.{hint}")
    if source.endswith((".yaml", ".yml")) or file.is_file():
        if not file.is_file():
            shipped = f" The shipped recipe is called {file.stem}." if file.stem in shipped_recipes(kind) else ""
            raise ConfigError(no_file(file, "recipe file") + shipped)
        return file
    if "=" in source:
        raise ConfigError(f"name the recipe first, and give settings such as {source} after it.")
    return find_shipped(source, kind)


def find_shipped(source: str, kind: str = "") -> Path:
    """Return the file of a shipped recipe.

    Raises:
        ConfigError: if no shipped recipe of this kind has this name.
    """
    own = shipped_recipes(kind)
    further = {} if kind else {f"{c}/{name}": path for c in COLLECTIONS for name, path in shipped_recipes(c).items()}
    by_stem = {path.stem: path for path in further.values()}
    for names in (own, further, by_stem):
        if source in names:
            return names[source]
    if command := _other_command(source, kind):
        raise ConfigError(f"{source} is a recipe for another command: unmask {command} {source}")
    near = get_close_matches(source, [*own, *further, *by_stem], n=1, cutoff=0.5)
    message = unknown_name("recipe", source, [*own, *near] if near and near[0] not in own else own)
    raise ConfigError(
        f"{message} Or give a .yaml file." + ("" if kind else " `unmask recipes` lists all shipped recipes.")
    )


def _other_command(source: str, kind: str) -> str | None:
    """Return the command that takes the shipped recipe of this name, if it is not a command for
    recipes of `kind`."""
    if kind == "" and source in shipped_recipes("compare"):
        return "compare"
    if kind == "compare" and (path := shipped_recipes().get(source)):
        return "train" if "method" in read_tree(path) else "pretrain"
    return None


def shipped_recipes(kind: str = "") -> dict[str, Path]:
    """Return the files of the shipped recipes by name.

    Args:
        kind: the folder of the kind of recipe, such as compare; empty for the recipes of runs.
    """
    folder = Path(str(resources.files("unmask") / "recipes")) / kind
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def override(tree: dict[str, Any], changes: Overrides) -> None:
    """Write changes into a tree of dicts. Changes of a `type` are applied first, because a change
    of `type` removes the options of the previous type.

    Example:
        >>> tree = {"optim": {"warmup_steps": 5}}
        >>> override(tree, {"optim": {"learning_rate": 1e-3}, "evaluation.num_rows": 8})
        >>> tree
        {'optim': {'warmup_steps': 5, 'learning_rate': 0.001}, 'evaluation': {'num_rows': 8}}
    """
    if isinstance(changes, Mapping):
        flat = list(_flat(changes))
        for key, value in sorted(flat, key=lambda change: not change[0].endswith(".type")):
            write_key(tree, key, value)
        return
    if isinstance(changes, str):
        changes = [changes]
    for change in sorted(changes, key=lambda text: not str(text).partition("=")[0].strip().endswith(".type")):
        apply_override(tree, change)


def _flat(changes: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in changes.items():
        if isinstance(value, Config) and not isinstance(value, Task):
            # A task stays an object, because its options may hold rows.
            value = value.model_dump()
        # Only plain dicts are sections, because an example that is passed in Python may be another
        # kind of mapping.
        if type(value) is dict and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Write one `a.b.c=value` into a tree of dicts. The value is YAML.

    Example:
        >>> tree = {"optim": {"learning_rate": 1.0}}
        >>> apply_override(tree, "optim.learning_rate=3e-4")
        >>> apply_override(tree, "seed=1")
        >>> tree
        {'optim': {'learning_rate': '3e-4'}, 'seed': 1}
    """
    key, equals, value = str(override).partition("=")
    if not equals or not key:
        raise ConfigError(f'override "{override}" is not of the form key=value, such as optim.learning_rate=3e-4.')
    try:
        write_key(tree, key.strip(), parse_yaml(value))
    except YamlError as error:
        raise ConfigError(f'override "{override[:200]}": the value is not valid YAML ({error}).') from error
    except ConfigError as error:
        raise ConfigError(f'override "{override}": {error}') from error


def write_key(tree: dict[str, Any], key: str, value: object) -> None:
    """Write a value under a dotted key into a tree of dicts. A new value of `type` removes the
    options of the previous type.

    Raises:
        ConfigError: if a part of the key before the last one holds a single value.
    """
    *parents, leaf = key.split(".")
    for name in parents:
        if tree.get(name) is None:
            tree[name] = {}
        tree = tree[name]
        if not isinstance(tree, dict):
            raise ConfigError(f"{name} is a single value and has no keys below it.")
    if leaf == "type" and tree.get("type", value) != value:
        # Options with the same name have different meanings in different methods and tasks.
        if parents[-1:] == ["optim"]:
            tree.pop("options", None)
        else:
            tree.clear()
    tree[leaf] = value


def validate(kind: type[ConfigT], tree: Mapping[str, Any]) -> ConfigT:
    """Return the recipe that `tree` describes.

    Raises:
        ConfigError: if the tree is not valid; the message has a line for each fault.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(kind, fault, tree) for fault in error.errors())) from error


def completed(kind: type[ConfigT]) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    """Return a function that fills in defaults for keys that were added after a recipe was saved.

    If the tree is no longer valid, the function returns it unchanged.
    """

    def complete(tree: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            return validate(kind, tree).model_dump(mode="json")
        except ConfigError:
            return tree

    return complete


def make_task(name: str, options: Sequence[str] = ()) -> Task:
    """Return the task of a name (see `task_settings`) with `key=value` options."""
    tree = task_settings(name)
    for option in options:
        apply_override(tree, option)
    return validate(RunRecipe, {"task": tree}).task


def task_settings(name: str) -> dict[str, Any]:
    """Return the settings for a task's name on the command line. The form TYPE:NAME sets the option
    `name` too.

    Example:
        >>> task_settings("reasoning_gym:chain_sum"), task_settings("my_task.py:Mine")
        ({'type': 'reasoning_gym', 'name': 'chain_sum'}, {'type': 'my_task.py:Mine'})
    """
    kind, colon, own_name = name.partition(":")
    return {"type": kind, "name": own_name} if colon and kind in TASKS else {"type": name}


def make_sampler(**settings: Any) -> SamplerConfig:
    """Return a sampler from keyword settings; an invalid setting raises ConfigError."""
    sampler = validate(SamplerConfig, settings)
    check_order(sampler)
    return sampler


def dump(recipe: Config) -> str:
    """Return YAML that `load` reads back to the same recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)

"""Loading of a comparison's settings, with changes and a selection of tasks and methods.

The recipe of every run is resolved, and therefore checked, before the first run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from unmask.core.errors import ConfigError, unknown_name
from unmask.core.files import YamlError, parse_yaml
from unmask.recipes.load import Overrides, apply_override, find_recipe, override, read_tree, validate
from unmask.trainer.comparison.recipe import CompareRecipe
from unmask.trainer.comparison.resolve import base_recipe, run_recipe

CompareSource = str | os.PathLike[str] | Mapping[str, Any]
"""Source of a comparison: a shipped name, a YAML file, or a dict of settings."""


def load_compare(source: CompareSource | CompareRecipe, overrides: Overrides = ()) -> CompareRecipe:
    """Load a comparison, and check the recipes of all its runs.

    Args:
        source: a shipped name, a YAML file, a dict, or a comparison to change.
        overrides: `key=value` texts or a dict. A list of names as the value of `tasks` or `methods`
            selects these entries, and `tasks.NAME=` leaves one task out.

    Raises:
        ConfigError: if the recipe does not exist, an override is malformed, or the comparison or
            one of its runs is not valid.
    """
    tree = _tree_of(source)
    selected: dict[str, list[str]] = {}
    if isinstance(overrides, Mapping):
        for key, value in overrides.items():
            if key in SELECTABLE and (names := _listed_names(value)):
                selected[key] = names
            else:
                override(tree, {key: value})
        overrides = ()
    for text in [overrides] if isinstance(overrides, str) else overrides:
        key, _, value = text.partition("=")
        if key.strip() in SELECTABLE and (names := _names(value)):
            selected[key.strip()] = names
        else:
            apply_override(tree, text)
    _select(tree, selected)
    recipe = validate(CompareRecipe, tree)
    for name, task in recipe.tasks.items():
        if task.base is not None:
            base_recipe(recipe, name, recipe.seeds[0])
    for task_name, label in recipe.pairs():
        for point in recipe.points(label):
            run_recipe(recipe, task_name, label, point, recipe.seeds[0])
    return recipe


SELECTABLE = ("tasks", "methods")
"""Keys whose entries can be selected by name."""


def _tree_of(source: CompareSource | CompareRecipe) -> dict[str, Any]:
    """Return the keys and values of a comparison before validation."""
    if isinstance(source, CompareRecipe):
        return source.model_dump()
    if isinstance(source, Mapping):
        return deepcopy(dict(source))
    path = find_recipe(os.fspath(source), "compare")
    tree = read_tree(path)
    if "method" in tree:
        raise ConfigError(f"{source} is a recipe for another command: unmask train {source}")
    tree.setdefault("output_dir", f"runs/compare/{path.stem}")
    return tree


def _names(value: str) -> list[str]:
    """Return the names in a text such as sudoku or [sudoku, countdown]. Return an empty list if the
    text holds whole entries with their settings."""
    try:
        return _listed_names(parse_yaml(value))
    except YamlError:
        return []


def _listed_names(value: object) -> list[str]:
    """Return one name or several names as a list. Return an empty list if the value holds whole
    entries with their settings."""
    names = value if isinstance(value, list | tuple) else [value]
    return [str(name) for name in names] if all(isinstance(name, str | int | float) for name in names) else []


def _select(tree: dict[str, Any], selected: Mapping[str, list[str]]) -> None:
    """Remove the tasks and methods that are not selected or are null, and all references to
    them."""
    for group in SELECTABLE:
        entries = tree.get(group)
        if not isinstance(entries, dict):
            continue
        kept = [_label(group, name, entries) for name in selected[group]] if group in selected else list(entries)
        left_out = {name for name, entry in entries.items() if entry is None or name not in kept}
        tree[group] = {name: entry for name, entry in entries.items() if name not in left_out}
        if group == "tasks" and isinstance(tree.get("methods"), dict):
            tree["methods"] = _on_other_tasks(tree["methods"], left_out)
        elif isinstance(tree.get("baselines"), list):
            tree["baselines"] = [name for name in tree["baselines"] if name not in left_out]


def _label(group: str, name: str, entries: Mapping[str, Any]) -> str:
    """Return the label of the entry with this name. The name egspo_sa also finds the label
    EGSPO-SA."""
    same = [label for label in entries if label == name] or [label for label in entries if _bare(label) == _bare(name)]
    if not same:
        raise ConfigError(unknown_name(group.removesuffix("s"), name, entries))
    return same[0]


def _bare(label: str) -> str:
    return re.sub(r"[-_ ]", "", label).lower()


def _on_other_tasks(methods: Mapping[str, Any], left_out: set[str]) -> dict[str, Any]:
    """Return the methods without their references to tasks that are left out. A method that has no
    remaining task becomes None."""
    changed: dict[str, Any] = {}
    for label, method in methods.items():
        if not isinstance(method, dict):
            changed[label] = method
            continue
        method = dict(method)
        tasks, by_task = method.get("tasks"), method.get("by_task")
        if isinstance(tasks, list):
            method["tasks"] = [task for task in tasks if task not in left_out]
        if isinstance(by_task, dict):
            method["by_task"] = {task: changes for task, changes in by_task.items() if task not in left_out}
        changed[label] = None if tasks and not method["tasks"] else method
    return changed

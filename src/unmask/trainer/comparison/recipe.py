"""What is compared: tasks, methods and seeds, what each run may spend, and what is tuned.

A method is a set of changes to the task's own training recipe, so that whatever is not named there is the same for all of
them. Every combination is resolved, and so checked, before the first run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, model_validator

from unmask.core.config import Config, SamplerConfig, flat
from unmask.core.errors import ConfigError, unknown_name
from unmask.core.files import YamlError, parse_yaml
from unmask.recipes.load import (
    Overrides,
    apply_override,
    find_recipe,
    make_sampler,
    override,
    read_tree,
    recipe_tree,
    validate,
    write_key,
)
from unmask.recipes.schema import PretrainRecipe, TrainRecipe


def _flat_if_tree(value: object) -> object:
    return flat(value) if isinstance(value, Mapping) else value


def _grid(value: object) -> object:
    """Values to try by dotted key; a single value stands for a list of one."""
    if not isinstance(value, Mapping):
        return value
    return {key: tried if isinstance(tried, list | tuple) else [tried] for key, tried in flat(value).items()}


Settings = Annotated[dict[str, Any], BeforeValidator(_flat_if_tree)]
"""Values by dotted key, as in {optim.learning_rate: 1.0e-3}; a key may also hold a tree of keys."""

Grid = Annotated[dict[str, tuple[Any, ...]], BeforeValidator(_grid)]
"""For dotted keys the values to try, each with each."""

Seeds = Annotated[tuple[int, ...], Field(min_length=1)]

BASE = "base"
"""What results of the untrained model are called; no method may be."""


class CompareTask(Config):
    """A task, the model to start from, and what a run may spend on it."""

    leads_to: ClassVar[Mapping[str, type[Config]]] = {"overrides": TrainRecipe, "base_overrides": PretrainRecipe}

    recipe: str
    """Training recipe that every method starts from: a shipped name or a YAML file."""
    base: str | None = None
    """Pretraining recipe; each seed gets a base of its own, which all methods and all tasks with the same one share."""
    model: str | None = None
    """Folder or hub id of a model to start from instead, for all seeds."""
    overrides: Settings = {}
    """Changes to `recipe` for this task."""
    base_overrides: Settings = {}
    """Changes to `base` for this task."""
    budget: int = Field(ge=1)
    """Token passes of a run: a token in a forward counts once, in a forward with backward three times."""
    decoding_steps: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Numbers of denoising steps at which finished models are evaluated greedily, besides the recipe's own."""

    @model_validator(mode="after")
    def _check_start(self) -> CompareTask:
        if (self.base is None) == (self.model is None):
            given = "neither" if self.base is None else "both"
            raise ValueError(
                f"{given} of base and model is set. Set base to pretrain one for each seed, or model for all seeds."
            )
        return self


class CompareMethod(Config):
    """What one line of the table changes in the tasks' training recipes."""

    leads_to: ClassVar[Mapping[str, type[Config]]] = {"settings": TrainRecipe}

    settings: Settings = {}
    """Changes to every task's recipe. With `method.type` among them the recipe's own `method` is dropped whole."""
    tune: Grid | None = None
    """Grid of this method instead of `tuning.grid`; it must be as large."""
    tasks: tuple[str, ...] = ()
    """Tasks that it is run on; default all."""
    by_task: dict[str, Settings] = {}
    """Further changes for single tasks."""


class Tuning(Config):
    """How each method's settings are chosen: the best of a grid on the validation split."""

    grid: Grid = {}
    """Tried for every method, on each task by itself."""
    seeds: Seeds = (0,)
    """Seeds of the trials; take others than those of the comparison, so that no method is tuned to its own test."""
    budget_share: float = Field(0.5, gt=0, le=1)
    """What a trial may spend, as a share of the task's budget."""
    num_rows: int = Field(256, ge=1)
    """Validation rows of a trial."""


class CompareEvaluation(Config):
    """What is measured, on the test split."""

    temperatures: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)] = (0.0, 0.9)
    """One result for each: 0 is greedy."""
    num_rows: int = Field(512, ge=1)
    """Rows at the end of a run."""
    curve_points: int = Field(5, ge=1)
    """Evaluations along a run, the last at its end; one before it comes on top."""
    curve_rows: int = Field(128, ge=1)
    """Rows of each of these."""


class CompareRecipe(Config):
    """Methods x tasks x seeds at equal compute."""

    tasks: Annotated[dict[str, CompareTask], Field(min_length=1)]
    """By name."""
    methods: Annotated[dict[str, CompareMethod], Field(min_length=1)]
    """By the label that they have in tables and figures."""
    seeds: Seeds
    """Each is one run of each method on each task, with a base, rows and draws of its own."""
    tuning: Tuning | None = None
    """Default: nothing is tuned."""
    baselines: tuple[str, ...] = ()
    """Methods from which the differences of all others are given, paired by seed."""
    evaluation: CompareEvaluation = CompareEvaluation()
    """What is measured."""
    output_dir: str | None = None
    """Folder of the comparison; default runs/compare/NAME of the recipe."""

    @model_validator(mode="after")
    def _check_names(self) -> CompareRecipe:
        if BASE in self.methods:
            raise ValueError(f'a method is called "{BASE}", as the untrained model is. Give it another label.')
        for label in self.baselines:
            if label not in self.methods:
                raise ValueError(unknown_name("method in baselines", label, self.methods))
        for label, method in self.methods.items():
            for task in [*method.tasks, *method.by_task]:
                if task not in self.tasks:
                    raise ValueError(unknown_name(f"task in methods.{label}", task, self.tasks))
        for name, seeds in (("seeds", self.seeds), ("tuning.seeds", self.tuning.seeds if self.tuning else ())):
            if len(set(seeds)) < len(seeds):
                raise ValueError(f"{name} = {list(seeds)} names a seed twice. Leave one of them out.")
        return self

    @model_validator(mode="after")
    def _check_equal_tuning(self) -> CompareRecipe:
        sizes = {label: len(self.points(label)) for label in self.methods}
        if len(set(sizes.values())) > 1:
            listed = ", ".join(f"{label} {size}" for label, size in sizes.items())
            raise ValueError(
                f"the methods have grids of different sizes ({listed}), which favours those with more to choose from. "
                "Give each method's tune as many settings."
            )
        return self

    @property
    def folder(self) -> Path:
        """Of the comparison."""
        return Path(self.output_dir or "runs/compare/comparison")

    def grid(self, method: str) -> Grid:
        """What is tried for a method."""
        if self.tuning is None:
            return {}
        own = self.methods[method].tune
        return self.tuning.grid if own is None else own

    def points(self, method: str) -> list[Settings]:
        """The grid of a method, point by point; one empty point where nothing is tuned."""
        grid = self.grid(method)
        return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Every task with every method that is run on it."""
        for task in self.tasks:
            for label, method in self.methods.items():
                if not method.tasks or task in method.tasks:
                    yield task, label


CompareSource = str | os.PathLike[str] | Mapping[str, Any]
"""A shipped name, a YAML file, or a dict of the same keys."""


def load_compare(source: CompareSource | CompareRecipe, overrides: Overrides = ()) -> CompareRecipe:
    """Load a comparison, and resolve all its runs once.

    Args:
        source: a shipped name, a YAML file, a dict, or a comparison to change.
        overrides: `key=value` texts or a dict. Names under `tasks` or `methods` pick these from the recipe, and
            `tasks.NAME=` leaves one out.

    Raises:
        ConfigError: there is no such recipe, an override is malformed, or the recipe or one of its runs cannot be used.
    """
    tree = _tree_of(source)
    picked: dict[str, list[str]] = {}
    if isinstance(overrides, Mapping):
        for key, value in overrides.items():
            if key in PICKED and (names := _listed_names(value)):
                picked[key] = names
            else:
                override(tree, {key: value})
        overrides = ()
    for text in [overrides] if isinstance(overrides, str) else overrides:
        key, _, value = text.partition("=")
        if key.strip() in PICKED and (names := _names(value)):
            picked[key.strip()] = names
        else:
            apply_override(tree, text)
    _pick(tree, picked)
    recipe = validate(CompareRecipe, tree)
    for name, task in recipe.tasks.items():
        if task.base is not None:
            base_recipe(recipe, name, recipe.seeds[0])
    for task_name, label in recipe.pairs():
        for point in recipe.points(label):
            run_recipe(recipe, task_name, label, point, recipe.seeds[0])
    return recipe


PICKED = ("tasks", "methods")
"""Keys whose entries can be picked by name."""


def _tree_of(source: CompareSource | CompareRecipe) -> dict[str, Any]:
    """Return the keys and values of a comparison as its source has them, not yet validated."""
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
    """The names in a value such as sudoku or [sudoku, countdown]; none where it holds whole entries."""
    try:
        given = parse_yaml(value)
    except YamlError:
        return []
    return _listed_names(given)


def _listed_names(value: object) -> list[str]:
    """Return one name or several as a list; an empty list if the value holds whole entries."""
    names = value if isinstance(value, list | tuple) else [value]
    return [str(name) for name in names] if all(isinstance(name, str | int | float) for name in names) else []


def _pick(tree: dict[str, Any], picked: Mapping[str, list[str]]) -> None:
    """Leave the tasks and methods out that are not picked or are set to null, and what the others say of these."""
    for group in PICKED:
        entries = tree.get(group)
        if not isinstance(entries, dict):
            continue
        kept = [_label(group, name, entries) for name in picked[group]] if group in picked else list(entries)
        left_out = {name for name, entry in entries.items() if entry is None or name not in kept}
        tree[group] = {name: entry for name, entry in entries.items() if name not in left_out}
        if group == "tasks" and isinstance(tree.get("methods"), dict):
            tree["methods"] = _on_other_tasks(tree["methods"], left_out)
        elif isinstance(tree.get("baselines"), list):
            tree["baselines"] = [name for name in tree["baselines"] if name not in left_out]


def _label(group: str, name: str, entries: Mapping[str, Any]) -> str:
    """The entry of this name; EGSPO-SA may also be called egspo_sa."""
    same = [label for label in entries if label == name] or [label for label in entries if _bare(label) == _bare(name)]
    if not same:
        raise ConfigError(unknown_name(group.removesuffix("s"), name, entries))
    return same[0]


def _bare(label: str) -> str:
    return re.sub(r"[-_ ]", "", label).lower()


def _on_other_tasks(methods: Mapping[str, Any], left_out: set[str]) -> dict[str, Any]:
    """The methods without what they say of tasks that are left out; null for those that ran on no other task."""
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


def base_recipe(recipe: CompareRecipe, task: str, seed: int) -> PretrainRecipe:
    """How the base of a task is pretrained for a seed."""
    source = recipe.tasks[task].base
    assert source is not None
    where = f"tasks.{task}.base"
    with _located(where):
        tree = recipe_tree(PretrainRecipe, source)
        _write(tree, recipe.tasks[task].base_overrides | {"seed": seed})
        return validate(PretrainRecipe, tree)


def run_recipe(recipe: CompareRecipe, task: str, method: str, point: Settings, seed: int) -> TrainRecipe:
    """How a method is trained on a task: the task's recipe, changed by the task, the method and the grid point, in this order.

    Where it starts, how long it goes on and where it writes are still the recipe's own.

    Raises:
        ConfigError: the changes do not go together.
    """
    setting, changes = recipe.tasks[task], recipe.methods.get(method, CompareMethod())
    with _located(f"{method} on {task}"):
        tree = recipe_tree(TrainRecipe, setting.recipe)
        tree.setdefault("model", setting.model or BASE)
        _write(tree, setting.overrides)
        settings = changes.settings | changes.by_task.get(task, {}) | point
        if "method.type" in settings:
            # Another method's options are not this one's.
            tree["method"] = {}
        _write(tree, settings | {"seed": seed})
        found = validate(TrainRecipe, tree)
        for steps in setting.decoding_steps:
            decoded(found.sampler, steps)
        return found


def decoded(sampler: SamplerConfig, steps: int, temperature: float = 0.0) -> SamplerConfig:
    """The sampler with another number of steps and another temperature.

    Raises:
        ConfigError: the completion or its blocks cannot be denoised in these many steps.
    """
    return make_sampler(**sampler.model_dump() | {"num_steps": steps, "temperature": temperature})


def named(settings: Mapping[str, Any]) -> str:
    """Settings in words, as in tables: `learning_rate 0.001, num_selected 2`."""
    return ", ".join(f"{key.rpartition('.')[2]} {_short(value)}" for key, value in settings.items())


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


@contextmanager
def _located(where: str) -> Iterator[None]:
    """Say of a fault which of the many recipes it is in."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError("\n".join(f"{where}: {line}" for line in str(error).splitlines())) from error


def _write(tree: dict[str, Any], settings: Settings) -> None:
    for key, value in settings.items():
        write_key(tree, key, value)

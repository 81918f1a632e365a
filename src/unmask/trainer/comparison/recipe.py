"""Settings of a comparison: tasks, methods, seeds, the budget of a run, and the tuning.

A method is a set of changes to the task's training recipe, so that all methods share every other
setting. The recipe of every combination is resolved, and therefore checked, before the first run.
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

from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError, unknown_name
from unmask.core.files import YamlError, parse_yaml
from unmask.core.settings import Config, flat
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
    """Return lists of values by dotted key. A single value becomes a list of one value."""
    if not isinstance(value, Mapping):
        return value
    return {key: values if isinstance(values, list | tuple) else [values] for key, values in flat(value).items()}


Settings = Annotated[dict[str, Any], BeforeValidator(_flat_if_tree)]
"""Values by dotted key, as in {optim.learning_rate: 1.0e-3}; a value can be a tree of keys."""

Grid = Annotated[dict[str, tuple[Any, ...]], BeforeValidator(_grid)]
"""Values to try, by dotted key; all combinations of them are tried."""

Seeds = Annotated[tuple[int, ...], Field(min_length=1)]

BASE = "base"
"""Label of the results of the untrained model; no method can have it."""


class CompareTask(Config):
    """A task, the model to start from, and the budget of a run."""

    leads_to: ClassVar[Mapping[str, type[Config]]] = {"overrides": TrainRecipe, "base_overrides": PretrainRecipe}

    recipe: str
    """Training recipe that every method starts from: a shipped name or a YAML file."""
    base: str | None = None
    """Pretraining recipe of the base model. Each seed has its own base model. All methods share it,
    and so do all tasks that have the same pretraining recipe."""
    model: str | None = None
    """Folder or hub id of an existing model from which the runs of all seeds start, instead of a
    base model."""
    overrides: Settings = {}
    """Changes to `recipe` for this task."""
    base_overrides: Settings = {}
    """Changes to `base` for this task."""
    budget: int = Field(ge=1)
    """Number of token passes that a run may use. A token counts once in a forward pass, and three
    times in a forward pass that has a backward pass."""
    decoding_steps: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Numbers of denoising steps at which finished models are evaluated greedily, in addition to
    the number of the recipe."""

    @model_validator(mode="after")
    def _check_start(self) -> CompareTask:
        if (self.base is None) == (self.model is None):
            fault = "neither base nor model is set" if self.base is None else "base and model are both set"
            raise ValueError(f"{fault}. Set base to pretrain a model for each seed, or model to use one for all seeds.")
        return self


class CompareMethod(Config):
    """A method of the comparison, defined by its changes to the tasks' training recipes. It has one
    line in the table of each task."""

    leads_to: ClassVar[Mapping[str, type[Config]]] = {"settings": TrainRecipe}

    settings: Settings = {}
    """Changes to every task's recipe. If `method.type` is among them, the recipe's own `method`
    section is dropped."""
    tune: Grid | None = None
    """Grid of this method instead of `tuning.grid`; both must have the same number of points."""
    tasks: tuple[str, ...] = ()
    """Tasks to run the method on; default all."""
    by_task: dict[str, Settings] = {}
    """Further changes for single tasks, by the task's name."""


class Tuning(Config):
    """Tuning of each method's settings, which chooses the point of a grid that is best on the
    validation split."""

    grid: Grid = {}
    """Grid of settings for every method. The best point is chosen separately for each task."""
    seeds: Seeds = (0,)
    """Seeds of the trials. Use seeds that differ from those of the comparison, so that tuning does
    not see the runs that are tested."""
    budget_share: float = Field(0.5, gt=0, le=1)
    """Budget of a trial, as a share of the task's budget."""
    num_rows: int = Field(256, ge=1)
    """Number of validation examples in a trial."""


class CompareEvaluation(Config):
    """Evaluation of the runs on the test split."""

    temperatures: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)] = (0.0, 0.9)
    """Sampling temperatures at which each model is evaluated; 0 means greedy decoding."""
    num_rows: int = Field(512, ge=1)
    """Number of examples in the evaluation of a finished run."""
    samples: int = Field(1, ge=1)
    """Number of completions for each example in the evaluation of a finished run, at temperatures
    above 0. With several, the tables also give pass@k, which shows whether a method has narrowed
    what the model can find."""
    curve_points: int = Field(5, ge=1)
    """Number of evaluations during a run; the last one is at its end. There is one more evaluation
    before the run."""
    curve_rows: int = Field(128, ge=1)
    """Number of examples in each evaluation during a run."""


class CompareRecipe(Config):
    """Settings of a comparison of methods on tasks over seeds, at equal compute."""

    tasks: Annotated[dict[str, CompareTask], Field(min_length=1)]
    """Tasks by name."""
    methods: Annotated[dict[str, CompareMethod], Field(min_length=1)]
    """Methods by their label in tables and figures."""
    seeds: Seeds
    """Seeds of the runs. Each method runs on each task once for each seed, with its own base,
    examples and random draws."""
    tuning: Tuning | None = None
    """Tuning of the methods; by default there is none."""
    baselines: tuple[str, ...] = ()
    """Methods to compare all others with; the tables give the differences, paired by seed."""
    evaluation: CompareEvaluation = CompareEvaluation()
    """Evaluation of the runs."""
    output_dir: str | None = None
    """Folder of the comparison; default runs/compare/NAME of the recipe."""

    @model_validator(mode="after")
    def _check_names(self) -> CompareRecipe:
        if BASE in self.methods:
            raise ValueError(f'a method has the label "{BASE}", which the untrained model has. Use another label.')
        for label in self.baselines:
            if label not in self.methods:
                raise ValueError(unknown_name("method in baselines", label, self.methods))
        for label, method in self.methods.items():
            for task in [*method.tasks, *method.by_task]:
                if task not in self.tasks:
                    raise ValueError(unknown_name(f"task in methods.{label}", task, self.tasks))
        for name, seeds in (("seeds", self.seeds), ("tuning.seeds", self.tuning.seeds if self.tuning else ())):
            if len(set(seeds)) < len(seeds):
                raise ValueError(f"{name} = {list(seeds)} contains a seed twice. Remove one of them.")
        return self

    @model_validator(mode="after")
    def _check_equal_tuning(self) -> CompareRecipe:
        sizes = {label: len(self.points(label)) for label in self.methods}
        if len(set(sizes.values())) > 1:
            listed = ", ".join(f"{label} {size}" for label, size in sizes.items())
            raise ValueError(
                f"the methods have grids of different sizes ({listed}), which favours methods with more trials. "
                "Give all methods the same number of grid points."
            )
        return self

    @property
    def folder(self) -> Path:
        """Folder of the comparison."""
        return Path(self.output_dir or "runs/compare/comparison")

    def grid(self, method: str) -> Grid:
        """Return the grid of a method; empty without tuning."""
        if self.tuning is None:
            return {}
        own = self.methods[method].tune
        return self.tuning.grid if own is None else own

    def points(self, method: str) -> list[Settings]:
        """Return the points of a method's grid; without tuning, one empty point."""
        grid = self.grid(method)
        return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Yield every task with every method that runs on it."""
        for task in self.tasks:
            for label, method in self.methods.items():
                if not method.tasks or task in method.tasks:
                    yield task, label


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


def named(settings: Mapping[str, Any]) -> str:
    """Return settings as text for tables, such as `learning_rate 0.001, num_selected 2`."""
    return ", ".join(f"{key.rpartition('.')[2]} {_short(value)}" for key, value in settings.items())


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


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

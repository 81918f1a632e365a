"""Settings of a comparison: tasks, methods, seeds, the budget of a run, and the tuning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from unmask.core.errors import unknown_name
from unmask.core.settings import Config, flat
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


class Scheduler(Config):
    """Place outside this process where the jobs run, through submitit (`pip install
    'unmask[slurm]'`). All machines need the same folders and the same Python environment."""

    type: Literal["slurm", "local"] = "slurm"
    """`slurm` submits each job to SLURM; `local` starts each as a process of this machine, which is
    for trying out the settings."""
    minutes: int = Field(240, ge=1)
    """Time limit of a job. A run that reaches it saves, and is submitted again to continue."""
    partition: str | None = None
    """Partition of SLURM; default that of the cluster."""
    account: str | None = None
    """Account of SLURM that is charged."""
    gpus: int = Field(0, ge=0)
    """Number of GPUs of a job."""
    cpus: int = Field(1, ge=1)
    """Number of CPU cores, and of threads, of a job."""
    memory_gb: float | None = Field(None, gt=0)
    """Memory of a job, in GB; default that of the cluster."""
    options: dict[str, Any] = {}
    """Further options of sbatch, such as {qos: long}."""
    setup: tuple[str, ...] = ()
    """Shell commands before a job, such as `module load cuda`."""


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
    scheduler: Scheduler | None = None
    """Scheduler that runs the jobs; by default they run in processes of this machine."""
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


def named(settings: Mapping[str, Any]) -> str:
    """Return settings as text for tables, such as `learning_rate 0.001, num_selected 2`."""
    return ", ".join(f"{key.rpartition('.')[2]} {_short(value)}" for key, value in settings.items())


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)

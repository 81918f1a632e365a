"""What a comparison consists of: pretrainings, probes and cells. Each is done by one process and leaves one record.

A job is known by what it depends on: its `variant` is a hash of the resolved recipe and of what is measured, with the seed beside
it. A job that has a record is not done again, unless the code that made the record was edited since (see `sources`). A job
whose recipe changed is another job.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from unmask import __version__
from unmask.core.config import Config, EvalConfig
from unmask.core.errors import ConfigError
from unmask.evaluation.evaluate import evaluate
from unmask.evaluation.usable import faults_for, usable_rows
from unmask.models import load_model
from unmask.recipes.schema import PretrainRecipe, RunRecipe, TrainRecipe
from unmask.recipes.scorer import scorer_of
from unmask.runs.metrics import evaluations, read_metrics
from unmask.sampling.engine import BatchLimits, LocalEngine
from unmask.trainer import Trainer
from unmask.trainer.comparison.recipe import BASE, decoded
from unmask.trainer.comparison.sources import digest_of, engine_files, own_files
from unmask.trainer.distributed.accelerator import make_accelerator
from unmask.trainer.pretrain import pretrain

Record = dict[str, Any]
"""A line of cells.jsonl."""

Key = tuple[Any, ...]

Stage = Literal["pretraining", "base", "probe", "tuning", "final"]

PROBE_STEPS = 2
"""Steps that a probe takes; the dearest of them counts."""
SAVES = 4
"""Checkpoints along a cell's run: what a cell that was cut off has to do again is at most a quarter."""

_SET_HERE = {
    *("seed", "output_dir", "report_to", "save_steps", "save_total_limit"),
    *("log_rollouts_steps", "log_rollouts_groups", "log_rollouts_guesses", "evaluation"),
}
"""Keys of a recipe that the comparison sets itself, or that change no result."""


@dataclass(frozen=True)
class ComparisonJob(ABC):
    """One piece of work.

    `run` is called in the process that does it, and returns what the record says besides the labels.
    """

    root: Path
    """Folder of the comparison."""
    stage: Stage
    task: str
    method: str
    seed: int
    code: tuple[str, ...] = field(default=(), kw_only=True)
    """Names of `files` as they were when the job began; empty before that."""

    @property
    @abstractmethod
    def variant(self) -> str:
        """A hash of everything that the result depends on but for the seed."""

    @property
    def recipes(self) -> tuple[RunRecipe, ...]:
        """Of the run, and of the base that it starts from."""
        return ()

    @property
    def files(self) -> tuple[Mapping[str, str], Mapping[str, str]]:
        """Hashes of all files that the result depends on: those that every run goes through, and the others."""
        return engine_files(), own_files(self.recipes)

    @property
    def code_now(self) -> tuple[str, ...]:
        """Names of `files` as they are now."""
        return tuple(digest_of(files) for files in self.files)

    @property
    def folder(self) -> Path:
        """Of the run; edited code writes into a folder of its own, so that it never goes on with what other code began."""
        return folder_of(self.root, self.record(code=self.code or self.code_now))

    @abstractmethod
    def run(self) -> Record:
        """Do it, or go on with it."""

    @property
    def key(self) -> Key:
        """What a record has to agree in to be this job's."""
        return (self.stage, self.task, self.method, self.seed, self.variant)

    def record(self, **facts: Any) -> Record:
        """The line of cells.jsonl."""
        labels = {name: getattr(self, name) for name in ("stage", "task", "method", "seed", "variant")}
        return labels | facts | {"version": __version__} | ({"code": list(self.code)} if self.code else {})

    def clean_up(self) -> None:
        """Remove what only a run that goes on would need."""
        shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)


def key_of(record: Record) -> Key:
    """The `key` of the job that left a record."""
    return tuple(record[name] for name in ("stage", "task", "method", "seed", "variant"))


def folder_of(root: Path, record: Record) -> Path:
    """The run folder of the job that left a record."""
    labels = " ".join(str(part) for part in key_of(record))
    # Versions that kept no track of code named folders without it.
    code = f"_{_hash(list(record['code']))[:8]}" if "code" in record else ""
    return root / "runs" / re.sub(r"\W+", "-", labels + code)


@dataclass(frozen=True)
class Pretraining(ComparisonJob):
    """The base of a seed, for all tasks that start from it."""

    recipe: PretrainRecipe

    @property
    def variant(self) -> str:
        return _hash(_varying(self.recipe))

    @property
    def recipes(self) -> tuple[RunRecipe, ...]:
        return (self.recipe,)

    def run(self) -> Record:
        folder = pretrain(self.recipe.model_copy(update={"output_dir": str(self.folder)}), resume=True)
        lines = read_metrics(folder)
        return {
            "steps": self.recipe.max_steps,
            "seconds": round(sum(line["time/step"] for line in lines), 1),
            "loss": lines[-1]["loss"],
        }


class Measure(Config):
    """What is evaluated at the end, and along the way."""

    split: Literal["validation", "test"]
    num_rows: int
    temperatures: tuple[float, ...]
    decoding_steps: tuple[int, ...] = ()
    """Also measured greedily at these numbers of steps."""
    curve_points: int = 0
    curve_rows: int = 1


@dataclass(frozen=True)
class Cell(ComparisonJob):
    """One run of a method on a task; for the method `base`, no run but an evaluation of what all begin with."""

    recipe: TrainRecipe
    """With the settings of the method and the grid point; `model` is where it starts."""
    start: str
    """What it starts from, whatever the seed: the variant of the base, or the model's name."""
    measure: Measure
    base: PretrainRecipe | None = None
    """How what it starts from was pretrained; None if that is a model that was there."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The grid point among its settings."""
    budget: int = 0
    """Token passes."""
    max_steps: int = 0
    """Run steps that these buy."""

    @property
    def variant(self) -> str:
        return _hash(self.stage, _varying(self.recipe), self.start, self.budget, self.measure.model_dump())

    @property
    def recipes(self) -> tuple[RunRecipe, ...]:
        return (self.recipe, *([self.base] if self.base else []))

    @property
    def files(self) -> tuple[Mapping[str, str], Mapping[str, str]]:
        return engine_files(), own_files(self.recipes, model=None if self.base else self.start)

    @property
    def cost_variant(self) -> str:
        """A hash of what the cost of a step depends on, which the optimizer's settings are no part of."""
        return _hash(_varying(self.recipe) | {"optim": None}, self.start)

    def record(self, **facts: Any) -> Record:
        shape = {"num_prompts": self.recipe.num_prompts, "num_generations": self.recipe.num_generations}
        return super().record(settings=dict(self.settings), budget=self.budget, **shape, **facts)

    def run(self) -> Record:
        if self.method == BASE:
            return {"steps": 0, "token_passes": 0, "reward_calls": 0, "seconds": 0.0} | self._measured()
        recipe, measure = self.recipe, self.measure
        recipe = recipe.model_copy(
            update={
                "max_steps": self.max_steps,
                "output_dir": str(self.folder),
                "save_steps": math.ceil(self.max_steps / SAVES),
                "save_total_limit": 1,
                "log_rollouts_steps": 0,
                "evaluation": EvalConfig(
                    split=measure.split,
                    num_rows=measure.curve_rows,
                    eval_steps=math.ceil(self.max_steps / measure.curve_points) if measure.curve_points else 0,
                    temperatures=measure.temperatures,
                    batch_size=recipe.evaluation.batch_size,
                ),
            }
        )
        folder = Trainer(recipe, resume=True).train()
        lines = read_metrics(folder)
        facts = {
            "steps": self.max_steps,
            "token_passes": int(_total(lines, "compute/token_passes")),
            "reward_calls": int(_total(lines, "compute/reward_calls")),
            "seconds": round(_total(lines, "time/rollout") + _total(lines, "time/update"), 1),
        }
        curve = _curve(lines, measure.split) if measure.curve_points else []
        return facts | self._measured() | {"curve": curve}

    def clean_up(self) -> None:
        super().clean_up()
        if self.stage == "tuning":
            # Nobody looks at the models of a trial.
            for name in ("final", "best"):
                shutil.rmtree(self.folder / name, ignore_errors=True)

    def _measured(self) -> Record:
        """Accuracy and reward at each temperature, and of greedy decoding at each number of steps."""
        recipe, measure = self.recipe, self.measure
        policy = load_model(recipe.model if self.method == BASE else self.folder / "final")
        denoiser, tokenizer = policy
        denoiser.to(make_accelerator(recipe).device)
        engine = LocalEngine(policy, BatchLimits(recipe.evaluation.batch_size))
        scorer = scorer_of(recipe)
        longest = recipe.sampler.max_completion_length
        faults_of = faults_for(recipe.task, denoiser, tokenizer, longest, needs_answer=not recipe.reward_funcs)
        candidates = recipe.task.candidates(measure.split, measure.num_rows, recipe.seed)
        rows = usable_rows({measure.split: candidates}, faults_of).rows[measure.split]

        def at(temperature: float, steps: int) -> tuple[float, float]:
            sampler = decoded(recipe.sampler, steps, temperature)
            found = evaluate(engine, recipe.task, scorer, rows, sampler, seed=recipe.seed)
            return found.accuracy, found.reward

        own = recipe.sampler.steps
        by_temperature = {f"{t:g}": at(t, own) for t in measure.temperatures}
        known = {own: by_temperature["0"]} if "0" in by_temperature else {}
        asked = sorted({own, *measure.decoding_steps}) if measure.decoding_steps else []
        by_steps = {str(steps): known[steps] if steps in known else at(0.0, steps) for steps in asked}
        return {
            "accuracy": {name: accuracy for name, (accuracy, _) in by_temperature.items()},
            "reward": {name: reward for name, (_, reward) in by_temperature.items()},
            "decoding_accuracy": {name: accuracy for name, (accuracy, _) in by_steps.items()},
            "decoding_reward": {name: reward for name, (_, reward) in by_steps.items()},
        }


@dataclass(frozen=True)
class Probe(ComparisonJob):
    """The cost of a step, by taking a few; what a budget buys follows from it."""

    cell: Cell

    @property
    def variant(self) -> str:
        return self.cell.cost_variant

    @property
    def files(self) -> tuple[Mapping[str, str], Mapping[str, str]]:
        return self.cell.files

    def run(self) -> Record:
        recipe = self.cell.recipe
        with tempfile.TemporaryDirectory() as folder:
            update = {
                "max_steps": PROBE_STEPS,
                "output_dir": folder,
                "evaluation": EvalConfig(num_rows=1, eval_steps=0, batch_size=1),
                "log_rollouts_steps": 0,
                # One probe serves all learning rates, the one that ruins the model included.
                "optim": recipe.optim.model_copy(update={"learning_rate": 1e-9}),
            }
            lines = read_metrics(Trainer(recipe.model_copy(update=update)).train())
        return {"cost": max(line["compute/token_passes"] for line in lines if "compute/token_passes" in line)}


def steps_within(budget: int, cost: float, task: str) -> int:
    """Run steps that a budget buys.

    Raises:
        ConfigError: none.
    """
    if budget < cost:
        raise ConfigError(
            f"a budget of {budget:,} token passes does not buy one step, which costs {cost:,.0f}. "
            f"Raise tasks.{task}.budget, or lower num_prompts or num_generations."
        )
    return int(budget // cost)


def _varying(recipe: RunRecipe) -> dict[str, Any]:
    """What tells a recipe from others; of a training recipe, its start and its length are told apart elsewhere.

    What stands at its default is left out, so that an option that is added to a method later does not make its results
    another method's.
    """
    skipped, types = _SET_HERE, {"task.type": recipe.task.type}
    if isinstance(recipe, TrainRecipe):
        skipped, types = skipped | {"model", "max_steps"}, types | {"method.type": recipe.method.type}
    tree = recipe.model_dump(mode="json", exclude_defaults=True)
    return {key: value for key, value in tree.items() if key not in skipped} | types


def _curve(lines: list[Record], split: str) -> list[Record]:
    """Return the accuracies on a split by temperature along a run, against the token passes spent until then."""
    curve, spent = [], 0.0
    for line in lines:
        spent += line.get("compute/token_passes", 0)
        if accuracy := {point.temperature: point.accuracy for point in evaluations(line) if point.split == split}:
            curve.append({"step": line["step"], "token_passes": int(spent), "accuracy": accuracy})
    return curve


def _total(lines: list[Record], name: str) -> float:
    return sum(float(line.get(name, 0)) for line in lines)


def _hash(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]

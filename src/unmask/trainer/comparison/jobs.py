"""The jobs of a comparison: pretrainings, and cells, which train and evaluate one method. One process
runs a job, and the job leaves one record.

The `variant` of a job is a hash of its resolved recipe and its measurements, without the seed. A
job that has a record does not run again, unless the code behind the record has changed (see
`sources`). A job whose recipe has changed is another job.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from unmask import __version__
from unmask.core.config import EvalConfig, SamplerConfig
from unmask.core.settings import Config
from unmask.evaluation.evaluate import Evaluation, evaluate
from unmask.evaluation.usable import faults_for, usable_rows
from unmask.models import load_model
from unmask.recipes.schema import PretrainRecipe, RunRecipe, TrainRecipe
from unmask.recipes.scorer import scorer_of
from unmask.runs.metrics import evaluations, read_metrics
from unmask.sampling.engine import BatchLimits, LocalEngine
from unmask.trainer import Trainer
from unmask.trainer.comparison.outcomes import packed
from unmask.trainer.comparison.recipe import BASE
from unmask.trainer.comparison.resolve import decoded
from unmask.trainer.comparison.sources import digest_of, engine_files, own_files
from unmask.trainer.distributed.accelerator import make_accelerator
from unmask.trainer.pretrain import pretrain

Record = dict[str, Any]
"""Line of cells.jsonl."""

Key = tuple[Any, ...]
"""Stage, task, method, seed and variant of a job, which together identify the job."""

Stage = Literal["pretraining", "base", "tuning", "final"]
"""Stage of a comparison that a job belongs to."""

_SET_HERE = {
    *("seed", "output_dir", "report_to", "save_steps", "save_total_limit"),
    *("log_rollouts_steps", "log_rollouts_groups", "log_rollouts_guesses", "evaluation"),
}
"""Keys of a recipe that the variant ignores, because the comparison sets them or because they do
not change results."""


@dataclass(frozen=True)
class ComparisonJob(ABC):
    """A job of a comparison. `run` runs in the process of the job, and returns the entries of the
    record without the job's labels."""

    root: Path
    """Folder of the comparison."""
    stage: Stage
    """Stage of the comparison."""
    task: str
    """Name of the task; for a pretraining, name of its recipe."""
    method: str
    """Label of the method, or `base`."""
    seed: int
    """Seed of the run."""
    code: tuple[str, ...] = field(default=(), kw_only=True)
    """Hashes of `files` at the start of the job; empty before the start."""

    @property
    @abstractmethod
    def variant(self) -> str:
        """Hash of everything that the result depends on, except the seed and the code."""

    @property
    def recipes(self) -> tuple[RunRecipe, ...]:
        """Recipes of the run, and of the base model that the run starts from."""
        return ()

    @property
    def files(self) -> tuple[Mapping[str, str], Mapping[str, str]]:
        """Hashes of all files that the result depends on: first those that every run uses, then the
        others."""
        return engine_files(), own_files(self.recipes)

    @property
    def code_now(self) -> tuple[str, ...]:
        """Hashes of `files` now."""
        return tuple(digest_of(files) for files in self.files)

    @property
    def folder(self) -> Path:
        """Run folder. After a change of the code the folder has another name, so that the new code
        does not continue a run of the old code."""
        return folder_of(self.root, self.record(code=self.code or self.code_now))

    @abstractmethod
    def run(self) -> Record:
        """Run the job, or continue it, and return the entries of its record."""

    @property
    def key(self) -> Key:
        """Labels that identify the job's record."""
        return (self.stage, self.task, self.method, self.seed, self.variant)

    def record(self, **facts: Any) -> Record:
        """Return the line of cells.jsonl with the job's labels and `facts`."""
        labels = {name: getattr(self, name) for name in ("stage", "task", "method", "seed", "variant")}
        return labels | facts | {"version": __version__} | ({"code": list(self.code)} if self.code else {})

    def clean_up(self) -> None:
        """Remove files that only an unfinished run needs."""
        shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)


def key_of(record: Record) -> Key:
    """Return the `key` of the job of a record."""
    return tuple(record[name] for name in ("stage", "task", "method", "seed", "variant"))


def folder_of(root: Path, record: Record) -> Path:
    """Return the run folder of the job of a record."""
    labels = " ".join(str(part) for part in key_of(record))
    # Versions that did not track code named folders without it.
    code = f"_{_hash(list(record['code']))[:8]}" if "code" in record else ""
    return root / "runs" / re.sub(r"\W+", "-", labels + code)


@dataclass(frozen=True)
class Pretraining(ComparisonJob):
    """Pretraining of the base model of one seed, for all tasks that start from this model."""

    recipe: PretrainRecipe
    """Recipe of the pretraining."""

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
    """Evaluations during and at the end of a run."""

    split: Literal["validation", "test"]
    """Split of the task."""
    num_rows: int
    """Number of examples in the final evaluation."""
    temperatures: tuple[float, ...]
    """Sampling temperatures; 0 is greedy."""
    decoding_steps: tuple[int, ...] = ()
    """Numbers of denoising steps for additional greedy evaluations."""
    curve_points: int = 0
    """Number of evaluations during the run."""
    curve_rows: int = 1
    """Number of examples in each evaluation during the run."""
    samples: int = 1
    """Number of completions for each example of the final evaluation, at temperatures above 0."""

    def facts(self) -> dict[str, Any]:
        """Return the values that identify the measurements. An option that came later is left out at
        its default, so that older results stay valid."""
        return self.model_dump(exclude={"samples"} if self.samples == 1 else None)


@dataclass(frozen=True)
class Cell(ComparisonJob):
    """One run of a method on a task; for the method `base`, only an evaluation of the initial
    model."""

    recipe: TrainRecipe
    """Recipe with the settings of the method and the grid point; `model` is the initial model."""
    start: str
    """Initial model, named in a way that does not depend on the seed: by the variant of the
    pretraining, or by the model's name."""
    measure: Measure
    """Evaluations of the run."""
    base: PretrainRecipe | None = None
    """Recipe that pretrains the initial model; None if the model exists already."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Values of the grid point, by dotted key."""
    budget: int = 0
    """Token passes that the run may use."""

    @property
    def variant(self) -> str:
        return _hash(self.stage, _varying(self.recipe), self.start, self.budget, self.measure.facts())

    @property
    def recipes(self) -> tuple[RunRecipe, ...]:
        return (self.recipe, *([self.base] if self.base else []))

    @property
    def files(self) -> tuple[Mapping[str, str], Mapping[str, str]]:
        return engine_files(), own_files(self.recipes, model=None if self.base else self.start)

    def record(self, **facts: Any) -> Record:
        shape = {"num_prompts": self.recipe.num_prompts, "num_generations": self.recipe.num_generations}
        return super().record(settings=dict(self.settings), budget=self.budget, **shape, **facts)

    def run(self) -> Record:
        if self.method == BASE:
            return {"steps": 0, "token_passes": 0, "reward_calls": 0, "seconds": 0.0} | self._measured()
        recipe, measure = self.recipe, self.measure
        recipe = recipe.model_copy(
            update={
                # A step uses at least one token pass, so only the budget ends the run.
                "max_steps": self.budget,
                "max_token_passes": self.budget,
                "output_dir": str(self.folder),
                "save_total_limit": 1,
                "log_rollouts_steps": 0,
                "evaluation": EvalConfig(
                    split=measure.split,
                    num_rows=measure.curve_rows,
                    eval_steps=0,
                    eval_token_passes=math.ceil(self.budget / measure.curve_points) if measure.curve_points else None,
                    temperatures=measure.temperatures,
                    batch_size=recipe.evaluation.batch_size,
                ),
            }
        )
        folder = Trainer(recipe, resume=True).train()
        lines = read_metrics(folder)
        facts = {
            "steps": lines[-1]["step"],
            "token_passes": int(_total(lines, "compute/token_passes")),
            "reward_calls": int(_total(lines, "compute/reward_calls")),
            "seconds": round(_total(lines, "time/rollout") + _total(lines, "time/update"), 1),
        }
        curve = _curve(lines, measure.split) if measure.curve_points else []
        return facts | self._measured() | {"curve": curve}

    def clean_up(self) -> None:
        super().clean_up()
        if self.stage == "tuning":
            # The models of a trial are never used.
            for name in ("final", "best"):
                shutil.rmtree(self.folder / name, ignore_errors=True)

    def _measured(self) -> Record:
        """Return accuracy, reward and pass@k at each temperature, accuracy and reward of greedy
        decoding at each number of denoising steps, and the outcome of each example."""
        recipe, measure = self.recipe, self.measure
        model = recipe.model if self.method == BASE else self.folder / "final"
        policy = load_model(model, device=make_accelerator(recipe).device)
        denoiser, tokenizer = policy
        engine = LocalEngine(policy, BatchLimits(recipe.evaluation.batch_size))
        scorer = scorer_of(recipe)
        longest = recipe.sampler.max_completion_length
        faults_of = faults_for(recipe.task, denoiser, tokenizer, longest, needs_answer=not recipe.reward_funcs)
        candidates = recipe.task.candidates(measure.split, measure.num_rows, recipe.seed)
        rows = usable_rows({measure.split: candidates}, faults_of).rows[measure.split]

        def at(sampler: SamplerConfig) -> Evaluation:
            samples = measure.samples if sampler.temperature else 1
            return evaluate(engine, recipe.task, scorer, rows, sampler, seed=recipe.seed, samples=samples)

        own = recipe.sampler
        by_temperature = {f"{t:g}": at(own.model_copy(update={"temperature": t})) for t in measure.temperatures}
        known = {own.steps: by_temperature["0"]} if "0" in by_temperature and not own.is_adaptive else {}
        of_own = () if own.is_adaptive else (own.steps,)
        step_counts = sorted({*of_own, *measure.decoding_steps}) if measure.decoding_steps else []
        by_steps = {str(steps): known.get(steps) or at(decoded(own, steps)) for steps in step_counts}
        pass_at = {
            name: {str(k): estimate[0] for k, estimate in result.pass_at.items()}
            for name, result in by_temperature.items()
            if result.pass_at
        }

        def outcomes(results: Mapping[str, Evaluation]) -> Record:
            return {
                name: packed([item["solved"] for item in result.items], result.samples)
                for name, result in results.items()
            }

        return {
            "accuracy": {name: result.accuracy for name, result in by_temperature.items()},
            "reward": {name: result.reward for name, result in by_temperature.items()},
            "forwards": {name: result.forwards for name, result in by_temperature.items()},
            "tokens_per_forward": {name: result.tokens_per_forward for name, result in by_temperature.items()},
            "decoding_accuracy": {name: result.accuracy for name, result in by_steps.items()},
            "decoding_reward": {name: result.reward for name, result in by_steps.items()},
            "outcomes": {"accuracy": outcomes(by_temperature), "decoding_accuracy": outcomes(by_steps)},
        } | ({"pass_at": pass_at} if pass_at else {})


def _varying(recipe: RunRecipe) -> dict[str, Any]:
    """Return the values that identify a recipe, without the initial model and the length of a
    training recipe's run.

    Defaults are left out, so that results stay valid if a later version adds an option to a method.
    """
    skipped, types = _SET_HERE, {"task.type": recipe.task.type}
    if isinstance(recipe, TrainRecipe):
        skipped, types = (
            skipped | {"model", "max_steps", "max_token_passes"},
            types | {"method.type": recipe.method.type},
        )
    tree = recipe.model_dump(mode="json", exclude_defaults=True)
    return {key: value for key, value in tree.items() if key not in skipped} | types


def _curve(lines: list[Record], split: str) -> list[Record]:
    """Return the accuracies of a run on a split, by temperature. Each accuracy comes with the
    numbers of token passes and reward calls before its evaluation."""
    curve, spent = [], {"token_passes": 0.0, "reward_calls": 0.0}
    for line in lines:
        spent = {name: total + line.get(f"compute/{name}", 0) for name, total in spent.items()}
        if accuracy := {point.temperature: point.accuracy for point in evaluations(line) if point.split == split}:
            totals = {name: int(total) for name, total in spent.items()}
            curve.append({"step": line["step"]} | totals | {"accuracy": accuracy})
    return curve


def _total(lines: list[Record], name: str) -> float:
    return sum(float(line.get(name, 0)) for line in lines)


def _hash(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]

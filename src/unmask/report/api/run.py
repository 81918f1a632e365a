"""A run folder opened in Python: its recipe, metrics, rollouts, models and reports."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from unmask.core.errors import RunError, no_file
from unmask.core.files import read_yaml
from unmask.models import Policy, load_model
from unmask.recipes.load import load
from unmask.recipes.schema import PretrainRecipe, TrainRecipe
from unmask.report.build import write_report
from unmask.report.comparison import is_comparison
from unmask.report.plot import plot_metrics
from unmask.runs.checkpoints import checkpoints_in, step_of
from unmask.runs.metrics import EVALUATION_NUMBERS, evaluations, read_metrics
from unmask.runs.metrics import FILE as METRICS
from unmask.runs.saved_rollouts import SavedRollout, saved_path, saved_steps


def open_run(folder: str | os.PathLike[str]) -> Run:
    """Open the folder of a run that has ended or is still in progress.

    Args:
        folder: the folder, such as `runs/sudoku-tiny`.

    Raises:
        RunError: there is no such folder, or it is not a run folder.

    Example:
        >>> open_run("runs/nothing-here")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        unmask.core.errors.RunError: there is no folder runs/nothing-here. ...
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise RunError(no_file(folder, "folder"))
    if not is_run(path):
        raise RunError(f"{folder} is not a run folder: it has no config.yaml and no run.json. {_instead(path)}")
    return Run(path)


def is_run(folder: Path) -> bool:
    """Check whether a folder is the folder of a training or pretraining run."""
    has_run_file = any((folder / name).is_file() for name in ("run.json", "run.lock", METRICS))
    return (folder / "config.yaml").is_file() and has_run_file


def _instead(path: Path) -> str:
    """Return a sentence that names the folder to give instead."""
    if is_comparison(path):
        return f"It is the folder of a comparison; its results are in {path / 'table.md'}."
    near = [parent for parent in path.resolve().parents[:2] if is_run(parent)]
    near += sorted(child for child in path.iterdir() if child.is_dir() and is_run(child))
    return f"Did you mean {near[0]}?" if near else "Give the output_dir of a run."


class Rollouts:
    """The saved rollouts of a run, by training step. A rollout is read from disk when it is looked
    up.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __getitem__(self, step: int) -> SavedRollout:
        steps = saved_steps(self._folder)
        if not steps:
            raise RunError(f"{self._folder} has no saved rollouts. Set log_rollouts_steps above 0 to save some.")
        if step not in steps:
            raise RunError(
                f"{self._folder} has no saved rollout of step {step}. It has those of the steps {steps}; "
                "log_rollouts_steps sets how often a run saves one."
            )
        return SavedRollout.load(saved_path(self._folder, step))

    def __iter__(self) -> Iterator[int]:
        return iter(saved_steps(self._folder))

    def __len__(self) -> int:
        return len(saved_steps(self._folder))

    def __repr__(self) -> str:
        return f"Rollouts(steps={list(self)})"


class Run:
    """Contents of a run folder. Each access reads the files again, so that the object shows the
    progress of a run that has not ended.

    Args:
        folder: a run folder that `open_run` has checked.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __repr__(self) -> str:
        last = self.metrics[-1]["step"] if self.metrics else 0
        return f"Run({str(self.folder)!r}, step {last} of {self.recipe.max_steps})"

    @cached_property
    def recipe(self) -> TrainRecipe | PretrainRecipe:
        """The recipe with every setting, as the run recorded it.

        Raises:
            ConfigError: a setting has changed since the run was made, or the file of a method or
                task is missing.
        """
        path = self.folder / "config.yaml"
        return load(TrainRecipe, path) if "method" in read_yaml(path) else load(PretrainRecipe, path)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The metrics of each training step, as dicts; empty before the first step."""
        return read_metrics(self.folder) if (self.folder / METRICS).exists() else []

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """The evaluations along the run: dicts of step, split, temperature, accuracy, low, high,
        reward, forwards and tokens_per_forward."""
        return [
            {
                "step": line["step"],
                "split": point.split,
                "temperature": float(point.temperature),
                **{name: getattr(point, name) for name in EVALUATION_NUMBERS},
            }
            for line in self.metrics
            for point in evaluations(line)
        ]

    @property
    def rollouts(self) -> Rollouts:
        """The saved rollouts by training step: `list(run.rollouts)` gives the steps,
        `run.rollouts[25]` reads one."""
        return Rollouts(self.folder)

    def texts(self, step: int | None = None) -> list[dict[str, Any]]:
        """Return the prompts, completions, answers and rewards of a saved rollout as dicts.

        Args:
            step: training step of the rollout; default the last one that was saved.

        Raises:
            RunError: the run saved no rollout of that step, or none at all.
        """
        saved = self.rollouts[max(self.rollouts, default=0) if step is None else step]
        size = saved.rollout.group_size
        return [
            {
                "prompt": saved.prompts[i // size] if saved.prompts else None,
                "completion": completion,
                "answer": saved.answers[i // size] if saved.answers else None,
                "reward": float(saved.rollout.reward[i]),
            }
            for i, completion in enumerate(saved.completions)
        ]

    @property
    def checkpoints(self) -> list[int]:
        """The training steps of the checkpoints, oldest first."""
        return [step_of(path) for path in checkpoints_in(self.folder)]

    def model_path(self, which: str | int | None = None) -> Path:
        """Return the folder of a model of the run.

        Args:
            which: "final", "best", or the training step of a checkpoint; default the final model,
                or the newest checkpoint of a run that has not ended.

        Raises:
            RunError: the run has no such model, or none yet.
        """
        if which is None:
            which = "final" if self._has("final") or not self.checkpoints else self.checkpoints[-1]
        if isinstance(which, int) and which in self.checkpoints:
            return next(path for path in checkpoints_in(self.folder) if step_of(path) == which)
        if which in ("final", "best") and self._has(str(which)):
            return self.folder / str(which)
        models = [*filter(self._has, ("final", "best")), *self.checkpoints]
        there = (
            f"Its models are {', '.join(map(str, models))}."
            if models
            else "It has no model yet: no checkpoint was written."
        )
        advice = " A run keeps best/ if evaluation.split is validation." if which == "best" else ""
        raise RunError(f"{self.folder} has no model {which!r}. {there}{advice}")

    def model(self, which: str | int | None = None, dtype: str = "auto") -> Policy:
        """Load a model of the run; see `model_path` and `load_model`.

        Raises:
            RunError: the run has no such model, or none yet.
            ModelError: the model cannot be read.
        """
        return load_model(self.model_path(which), dtype)

    def plot(self, *metrics: str, target: str | os.PathLike[str] | None = None, **options: Any) -> Path:
        """Draw metrics against steps and return the file of the figure.

        Args:
            metrics: keys of `metrics`; default the accuracies and the reward.
            target: a .png, .svg or .pdf file; default curve.png in the run folder.
            options: further arguments of `plot_metrics`, such as x="token_passes" or smooth=5.

        Raises:
            ConfigError: the run has not logged the metric, or the file has another suffix.
        """
        file = Path(target or self.folder / "curve.png")
        return plot_metrics([self.folder], metrics, file, suffixes=[file.suffix], **options)

    def report(self, target: str | os.PathLike[str] | None = None) -> Path:
        """Write the report of the run, one HTML file, and return its path; default report.html in
        the run folder."""
        return write_report([self.folder], None if target is None else Path(target)).path

    def _has(self, name: str) -> bool:
        return (self.folder / name / "config.json").is_file()

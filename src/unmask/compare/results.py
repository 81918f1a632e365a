"""From records to numbers: which settings are chosen, means over seeds with intervals, differences paired by seed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import nan, sqrt
from statistics import fmean, stdev
from typing import Any

from unmask.compare.jobs import Record
from unmask.compare.recipe import BASE, CompareRecipe
from unmask.functional.intervals import mean_interval


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over seeds."""

    mean: float
    half: float
    """Half the width of its 95 % Student-t interval; nan for a single seed."""
    se: float
    """Standard error; nan for a single seed."""
    number: int
    """Of seeds."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """Of at least one value."""
        mean, half = mean_interval(values)
        return cls(mean, half, stdev(values) / sqrt(len(values)) if len(values) > 1 else nan, len(values))


@dataclass(frozen=True, slots=True)
class Trial:
    """A grid point of a method on a task, over the tuning seeds."""

    task: str
    method: str
    settings: dict[str, Any]
    accuracy: dict[str, float]
    """By temperature, mean over the seeds that ended well; empty if none did."""
    reward: float
    """Mean over the temperatures and these seeds."""
    num_seeds: int
    failures: list[str]

    @property
    def score(self) -> float:
        """What the choice goes by: mean accuracy over the temperatures."""
        return fmean(self.accuracy.values()) if self.accuracy else nan


def tried(recipe: CompareRecipe, records: Iterable[Record]) -> list[Trial]:
    """All that was tried, method by method, in the order of the grid."""
    seeds = recipe.tuning.seeds if recipe.tuning else ()
    found: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        if record["stage"] == "tuning" and record["seed"] in seeds:
            found.setdefault((record["task"], record["method"], json.dumps(record["settings"])), []).append(record)
    return [
        _trial(found[key])
        for task, method in recipe.pairs()
        for point in recipe.points(method)
        if (key := (task, method, json.dumps(point))) in found
    ]


def choose(recipe: CompareRecipe, trials: Iterable[Trial]) -> dict[tuple[str, str], Trial]:
    """The best trial of each task and method.

    Best is the largest mean accuracy over temperatures and tuning seeds on the validation split; of equals, the one of larger
    reward, then the first of the grid. A setting that failed with one of the seeds is not chosen.
    """
    num_seeds = len(recipe.tuning.seeds) if recipe.tuning else 0
    best: dict[tuple[str, str], Trial] = {}
    for trial in trials:
        rival = best.get((trial.task, trial.method))
        if trial.num_seeds == num_seeds and (
            rival is None or (trial.score, trial.reward) > (rival.score, rival.reward)
        ):
            best[trial.task, trial.method] = trial
    return best


def is_at_edge(recipe: CompareRecipe, trial: Trial) -> bool:
    """Whether a number among the settings is the smallest or the largest of three or more: what lies beyond was not tried."""
    grid = {key: values for key, values in recipe.grid(trial.method).items() if len(values) > 2}
    return any(
        all(isinstance(value, int | float) for value in values) and trial.settings[key] in (min(values), max(values))
        for key, values in grid.items()
    )


class Results:
    """The runs that are compared, and the untrained models beside them.

    Args:
        recipe: which tasks, methods and seeds, and in which order.
        records: the lines of cells.jsonl.
    """

    def __init__(self, recipe: CompareRecipe, records: Iterable[Record]) -> None:
        self.recipe = recipe
        self.temperatures = [f"{t:g}" for t in sorted(recipe.evaluation.temperatures, reverse=True)]
        self.failed: list[Record] = []
        self._runs: dict[tuple[str, str], dict[int, Record]] = {}
        for record in records:
            if record["stage"] in ("base", "final") and record["seed"] in recipe.seeds:
                if "failed" in record:
                    self.failed.append(record)
                else:
                    self._runs.setdefault((record["task"], record["method"]), {})[record["seed"]] = record

    def methods(self, task: str) -> list[str]:
        """Those with results on a task, the untrained model first."""
        return [method for method in (BASE, *self.recipe.methods) if (task, method) in self._runs]

    def runs(self, task: str, method: str) -> dict[int, Record]:
        """By seed, in order."""
        return dict(sorted(self._runs.get((task, method), {}).items()))

    def mean(self, task: str, method: str, *path: str) -> Mean:
        """Of a number of the records, given by its keys: `mean("sudoku", "egspo", "accuracy", "0.9")`."""
        return Mean.of([_at(record, path) for record in self.runs(task, method).values()])

    def difference(self, task: str, method: str, baseline: str, *path: str) -> Mean | None:
        """Mean over the seeds that both have of method minus baseline; None if there are none.

        Both began with the same model and saw the same prompts and test rows, which the difference does not hold against
        either; so its interval is narrower than those of the two means would suggest.
        """
        ours, theirs = self.runs(task, method), self.runs(task, baseline)
        differences = [_at(ours[seed], path) - _at(theirs[seed], path) for seed in ours if seed in theirs]
        return Mean.of(differences) if differences else None

    def curve(self, task: str, method: str, temperature: str) -> list[tuple[float, Mean]]:
        """Mean token passes, and the accuracy, at each evaluation along the runs."""
        curves = [record.get("curve", []) for record in self.runs(task, method).values()]
        return [
            (
                fmean(point["token_passes"] for point in points),
                Mean.of([point["accuracy"][temperature] for point in points]),
            )
            for points in zip(*curves, strict=False)
        ]

    def decoding(self, task: str, method: str) -> list[tuple[int, Mean]]:
        """Greedy accuracy at each number of denoising steps."""
        runs = self.runs(task, method).values()
        steps = sorted({int(steps) for record in runs for steps in record["decoding_accuracy"]})
        return [(n, self.mean(task, method, "decoding_accuracy", str(n))) for n in steps]


def _trial(records: Sequence[Record]) -> Trial:
    first, good = records[0], [record for record in records if "failed" not in record]
    temperatures = good[0]["accuracy"] if good else ()
    return Trial(
        task=first["task"],
        method=first["method"],
        settings=first["settings"],
        accuracy={t: fmean(record["accuracy"][t] for record in good) for t in temperatures},
        reward=fmean(value for record in good for value in record["reward"].values()) if good else nan,
        num_seeds=len(good),
        failures=[f"seed {record['seed']}: {record['failed']}" for record in records if "failed" in record],
    )


def _at(record: Mapping[str, Any], path: Sequence[str]) -> float:
    value: Any = record
    for key in path:
        value = value[key]
    return float(value)

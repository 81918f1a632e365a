"""Numbers for the tables of a comparison: the chosen settings, means over seeds with intervals, and
paired differences."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import floor, inf, isnan, nan, sqrt
from statistics import fmean, stdev
from typing import Any

from torch import Tensor

from unmask.core.errors import RunError
from unmask.functional.intervals import cut, mean_interval
from unmask.trainer.comparison.jobs import Record
from unmask.trainer.comparison.outcomes import solved_shares
from unmask.trainer.comparison.recipe import BASE, CompareRecipe

FEW_SEEDS = 5
"""Number of seeds below which tables and figures warn that an interval over seeds is not
reliable."""
_SHARES = ("accuracy", "decoding_accuracy", "pass_at")
"""Entries of a record whose values are shares between 0 and 1."""
SPENT = ("steps", "token_passes", "reward_calls")
"""Entries of a record that are counts."""


@dataclass(frozen=True, slots=True)
class Mean:
    """Mean over seeds with its interval."""

    mean: float
    """Mean of the values."""
    half: float
    """Half the width of the 95 % Student-t interval; nan for a single seed."""
    se: float
    """Standard error; nan for a single seed."""
    number: int
    """Number of seeds."""
    low: float
    """Lower end of the interval, cut to the range of the quantity; nan for a single seed."""
    high: float
    """Upper end of the interval, cut to the range of the quantity; nan for a single seed."""

    @classmethod
    def of(cls, values: Sequence[float], lowest: float = -inf, highest: float = inf) -> Mean:
        """Return the mean of one or more values of a quantity in the range from `lowest` to
        `highest`."""
        mean, half = mean_interval(values)
        se = stdev(values) / sqrt(len(values)) if len(values) > 1 else nan
        return cls(mean, half, se, len(values), *cut((mean - half, mean + half), lowest, highest))

    @property
    def is_cut(self) -> bool:
        """True if mean ± half leaves the range of the quantity."""
        return not isnan(self.half) and (self.low, self.high) != (self.mean - self.half, self.mean + self.half)

    @property
    def is_above_zero(self) -> bool:
        """True if the whole interval is above zero; False for a single seed, which has no
        interval."""
        return self.low > 0


@dataclass(frozen=True, slots=True)
class Trial:
    """Result of one grid point (a combination of settings) of a method on a task, over the tuning
    seeds."""

    task: str
    """Name of the task."""
    method: str
    """Label of the method."""
    settings: dict[str, Any]
    """Values of the grid point, by dotted key."""
    accuracy: dict[str, float]
    """Accuracy by temperature, averaged over the seeds that did not fail; empty if all seeds
    failed."""
    reward: float
    """Reward, averaged over the temperatures and the seeds that did not fail."""
    num_seeds: int
    """Number of seeds without failure."""
    failures: list[str]
    """Seed and message of each failure."""

    @property
    def score(self) -> float:
        """Mean accuracy over the temperatures, which decides the choice; nan if all seeds
        failed."""
        return fmean(self.accuracy.values()) if self.accuracy else nan


def tried(recipe: CompareRecipe, records: Iterable[Record]) -> list[Trial]:
    """Return all trials, method by method, in the order of the grid."""
    seeds = recipe.tuning.seeds if recipe.tuning else ()
    by_point: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        if record["stage"] == "tuning" and record["seed"] in seeds:
            _check(record)
            by_point.setdefault((record["task"], record["method"], json.dumps(record["settings"])), []).append(record)
    return [
        _trial(by_point[key])
        for task, method in recipe.pairs()
        for point in recipe.points(method)
        if (key := (task, method, json.dumps(point))) in by_point
    ]


def choose(recipe: CompareRecipe, trials: Iterable[Trial]) -> dict[tuple[str, str], Trial]:
    """Return the best trial of each task and method.

    The best trial has the largest mean accuracy over temperatures and tuning seeds on the
    validation split. The larger reward, and then the order of the grid, decide between equal
    trials. A setting that failed with one of the seeds is not chosen.
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
    """Return whether a chosen number is the smallest or the largest of at least three values in the
    grid. If it is, a wider grid may be better."""
    grid = {key: values for key, values in recipe.grid(trial.method).items() if len(values) > 2}
    return any(
        all(isinstance(value, int | float) for value in values) and trial.settings[key] in (min(values), max(values))
        for key, values in grid.items()
    )


def whole(number: float) -> int:
    """Return a count as all tables show it: rounded to an integer, with halves rounded up."""
    return floor(number + 0.5)


class Results:
    """Results of the compared runs and of the untrained models.

    Args:
        recipe: settings of the comparison, with the tasks, methods and seeds in their order.
        records: lines of cells.jsonl.
        edited: function that returns the files that have changed since a record was made.

    Raises:
        RunError: if a record lacks a value that tables need.
    """

    def __init__(
        self,
        recipe: CompareRecipe,
        records: Iterable[Record],
        edited: Callable[[Record], Sequence[str]] = lambda _record: (),
    ) -> None:
        self.recipe = recipe
        self.temperatures = [f"{t:g}" for t in sorted(recipe.evaluation.temperatures, reverse=True)]
        self.failed: list[Record] = []
        self.edited_files: set[str] = set()
        """Files that have changed since one of the runs."""
        self._edited: set[tuple[str, str]] = set()
        self._runs: dict[tuple[str, str], dict[int, Record]] = {}
        for record in records:
            if record["stage"] in ("base", "final") and record["seed"] in recipe.seeds:
                if "failed" in record:
                    self.failed.append(record)
                    continue
                _check(record, self.temperatures)
                pair = record["task"], record["method"]
                self._runs.setdefault(pair, {})[record["seed"]] = record
                if files := edited(record):
                    self._edited.add(pair)
                    self.edited_files |= set(files)

    @property
    def shown(self) -> list[Record]:
        """Records of all runs in the tables."""
        return [
            record
            for task in self.recipe.tasks
            for method in self.methods(task)
            for record in self.runs(task, method).values()
        ]

    @property
    def fewest_seeds(self) -> int:
        """Smallest number of seeds of a method on a task."""
        return min((len(self.runs(task, m)) for task in self.recipe.tasks for m in self.methods(task)), default=0)

    def is_edited(self, task: str, method: str) -> bool:
        """Return whether the code of one of the runs has changed since that run."""
        return (task, method) in self._edited

    def spent(self, task: str, method: str) -> dict[str, int]:
        """Return the mean steps, token passes and reward calls of a run, rounded to integers."""
        return {name: whole(self.mean(task, method, name).mean) for name in SPENT}

    def shape(self, task: str, method: str) -> str:
        """Return the prompts and completions of a training step, as in `8 x 4`; empty if unknown or
        for the untrained model."""
        record = next(iter(self.runs(task, method).values()))
        return "" if method == BASE else _shape_of(self.recipe, record)

    def best(self, task: str, *path: str) -> str | None:
        """Return the method with the largest mean if it is certainly the best, else None.

        It is certainly the best if the 95 % intervals of its paired differences from all other
        lines of the task are above zero, and rest on at least `FEW_SEEDS` seeds. The method must
        win every one of these tests, so they need no correction for their number. Lines whose code
        has changed since their runs are not considered.
        """
        first, rivals = self.leader(task, *path)
        return first if first is not None and not rivals and self.fewest_seeds_of(task) >= FEW_SEEDS else None

    def leader(self, task: str, *path: str) -> tuple[str | None, list[str]]:
        """Return the method with the largest mean, and the lines that it is not certainly above.

        The method is None if there are fewer than two lines to compare. It is certainly above a line
        if the 95 % interval of the paired difference is above zero.
        """
        methods = self._current(task)
        if len(methods) < 2:
            return None, []
        first = max(methods, key=lambda method: self.mean(task, method, *path).mean)
        differences = {other: self.difference(task, first, other, *path) for other in methods if other != first}
        return first, [other for other, mean in differences.items() if mean is None or not mean.is_above_zero]

    def fewest_seeds_of(self, task: str) -> int:
        """Return the smallest number of seeds of a line of a task whose code has not changed."""
        return min((len(self.runs(task, method)) for method in self._current(task)), default=0)

    def _current(self, task: str) -> list[str]:
        return [method for method in self.methods(task) if not self.is_edited(task, method)]

    def methods(self, task: str) -> list[str]:
        """Return the methods with results on a task, the untrained model first."""
        return [method for method in (BASE, *self.recipe.methods) if (task, method) in self._runs]

    def runs(self, task: str, method: str) -> dict[int, Record]:
        """Return the records of a method on a task by seed, in the order of the seeds."""
        return dict(sorted(self._runs.get((task, method), {}).items()))

    def mean(self, task: str, method: str, *path: str) -> Mean:
        """Return the mean of an entry of the records, given by its keys: `mean("sudoku", "egspo",
        "accuracy", "0.9")`."""
        values = [_at(record, path) for record in self.runs(task, method).values()]
        return Mean.of(values, 0.0, 1.0) if path[0] in _SHARES else Mean.of(values)

    def cost(self, task: str, method: str, name: str, temperature: str) -> float | None:
        """Return the mean `forwards` or `tokens_per_forward` of a completion in the evaluations at a
        temperature; None if a run did not record it, as in earlier versions."""
        values = [record.get(name, {}).get(temperature) for record in self.runs(task, method).values()]
        return None if not values or None in values else fmean(values)

    def difference(self, task: str, method: str, baseline: str, *path: str) -> Mean | None:
        """Return the mean of method minus baseline over their common seeds; None if they have no
        seed in common.

        With one seed, both start from the same model and see the same prompts and test examples.
        Their effect cancels in the difference, so its interval is narrower than the intervals of
        the two means suggest.
        """
        differences = list(self.paired(task, method, baseline, *path).values())
        if not differences:
            return None
        return Mean.of(differences, -1.0, 1.0) if path[0] in _SHARES else Mean.of(differences)

    def paired(self, task: str, method: str, baseline: str, *path: str) -> dict[int, float]:
        """Return the differences of method minus baseline, by the seeds that both have."""
        runs, baselines = self.runs(task, method), self.runs(task, baseline)
        return {seed: _at(runs[seed], path) - _at(baselines[seed], path) for seed in runs if seed in baselines}

    def outcomes(self, task: str, method: str, baseline: str, *path: str) -> list[Tensor] | None:
        """Return the share of solving completions of each example, for each seed; with a baseline,
        minus the share of the baseline on the same example.

        Args:
            task: name of the task.
            method: label of the method.
            baseline: label of the baseline; empty for none.
            path: keys of the evaluation, such as "accuracy", "0.9".

        Returns:
            For each seed that all have, [rows] numbers. None if a run did not record its outcomes,
            as in earlier versions, or if the numbers of examples differ.
        """
        sides = [self.runs(task, label) for label in (method, *filter(None, [baseline]))]
        by_seed = []
        for seed in sides[0]:
            if any(seed not in side for side in sides):
                continue
            entries = [side[seed].get("outcomes", {}).get(path[0], {}).get(path[1]) for side in sides]
            if None in entries or len({entry["rows"] for entry in entries}) > 1:
                return None
            first, *others = map(solved_shares, entries)
            by_seed.append(first - others[0] if others else first)
        return by_seed

    def curve(
        self, task: str, method: str, temperature: str, against: str = "token_passes"
    ) -> list[tuple[float, Mean]]:
        """Return the mean `token_passes` or `reward_calls` and the accuracy at each evaluation during
        the runs; an empty list if a run did not record them."""
        curves = [record.get("curve", []) for record in self.runs(task, method).values()]
        return [
            (
                fmean(point[against] for point in points),
                Mean.of([point["accuracy"][temperature] for point in points], 0.0, 1.0),
            )
            for points in zip(*curves, strict=False)
            if all(against in point for point in points)
        ]

    def sample_counts(self, task: str, temperature: str) -> list[int]:
        """Return the numbers k for which every run on a task has a pass@k at a temperature."""
        runs = [run for method in self.methods(task) for run in self.runs(task, method).values()]
        known = [{int(k) for k in run.get("pass_at", {}).get(temperature, {})} for run in runs]
        return sorted(set.intersection(*known)) if known else []

    def decoding(self, task: str, method: str) -> list[tuple[int, Mean]]:
        """Return the greedy accuracy at each number of denoising steps."""
        runs = self.runs(task, method).values()
        steps = sorted({int(steps) for record in runs for steps in record["decoding_accuracy"]})
        return [(n, self.mean(task, method, "decoding_accuracy", str(n))) for n in steps]


def _shape_of(recipe: CompareRecipe, record: Record) -> str:
    if "num_prompts" in record:
        return f"{record['num_prompts']} x {record['num_generations']}"
    # Earlier versions did not record these numbers, but most comparisons set both.
    changes = recipe.methods[record["method"]]
    own = recipe.tasks[record["task"]].overrides | changes.settings | changes.by_task.get(record["task"], {})
    own |= record["settings"]
    is_set = "num_prompts" in own and "num_generations" in own
    return f"{own['num_prompts']} x {own['num_generations']}" if is_set else ""


def _check(record: Record, temperatures: Sequence[str] = ()) -> None:
    """Raise RunError if a record lacks a value that tables need."""
    kinds: dict[str, Any] = {"settings": dict}
    if "failed" not in record:
        kinds |= {"accuracy": dict, "reward": dict, "decoding_accuracy": dict}
        kinds |= dict.fromkeys((*SPENT, "seconds"), int | float)
    invalid = [name for name, kind in kinds.items() if not isinstance(record.get(name), kind)]
    line = f"the line of cells.jsonl for {record['method']} on {record['task']}, seed {record['seed']}"
    if invalid:
        raise RunError(f"{line}, has no usable {', '.join(invalid)}. Remove the line; the job then runs again.")
    for name in ("accuracy", "reward") if temperatures else ():
        values = record[name]
        if missing := [t for t in temperatures if not isinstance(values.get(t), int | float)]:
            raise RunError(
                f"{line}, has no {name} at temperature {', '.join(missing)}. Set evaluation.temperatures to those that it has: "
                f"{', '.join(values) or 'none'}."
            )


def _trial(records: Sequence[Record]) -> Trial:
    first, complete = records[0], [record for record in records if "failed" not in record]
    temperatures = complete[0]["accuracy"] if complete else ()
    return Trial(
        task=first["task"],
        method=first["method"],
        settings=first["settings"],
        accuracy={t: fmean(record["accuracy"][t] for record in complete) for t in temperatures},
        reward=fmean(value for record in complete for value in record["reward"].values()) if complete else nan,
        num_seeds=len(complete),
        failures=[f"seed {record['seed']}: {record['failed']}" for record in records if "failed" in record],
    )


def _at(record: Mapping[str, Any], path: Sequence[str]) -> float:
    value: Any = record
    for key in path:
        value = value[key]
    return float(value)

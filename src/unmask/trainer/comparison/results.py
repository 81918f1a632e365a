"""From records to numbers: which settings are chosen, means over seeds with intervals, differences paired by seed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import floor, inf, isnan, nan, sqrt
from statistics import fmean, stdev
from typing import Any

from unmask.core.errors import RunError, UnmaskError
from unmask.functional.intervals import cut, mean_interval
from unmask.trainer.comparison.jobs import Record, key_of
from unmask.trainer.comparison.plan import Plan
from unmask.trainer.comparison.recipe import BASE, CompareRecipe

FEW_SEEDS = 5
"""With fewer seeds than these an interval over seeds says little, and tables and figures say so."""
_SHARES = ("accuracy", "decoding_accuracy")
SPENT = ("steps", "token_passes", "reward_calls")
"""Numbers of a record that count something."""


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
    low: float
    """Ends of the interval, cut to the range of the quantity; nan for a single seed."""
    high: float

    @classmethod
    def of(cls, values: Sequence[float], lowest: float = -inf, highest: float = inf) -> Mean:
        """Of at least one value of a quantity with this range."""
        mean, half = mean_interval(values)
        se = stdev(values) / sqrt(len(values)) if len(values) > 1 else nan
        return cls(mean, half, se, len(values), *cut((mean - half, mean + half), lowest, highest))

    @property
    def is_cut(self) -> bool:
        """Whether mean ± half would leave the range."""
        return not isnan(self.half) and (self.low, self.high) != (self.mean - self.half, self.mean + self.half)

    @property
    def is_above_zero(self) -> bool:
        """Whether the whole interval is; False for a single seed, which has none."""
        return self.low > 0


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
            _check(record)
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


def whole(number: float) -> int:
    """A count as it is shown everywhere: rounded to a whole number, a half upwards."""
    return floor(number + 0.5)


class Results:
    """The runs that are compared, and the untrained models beside them.

    Args:
        recipe: which tasks, methods and seeds, and in which order.
        records: the lines of cells.jsonl.
        edited: gives the files that were edited since a record was made.

    Raises:
        RunError: a record lacks something that tables are made of.
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
        """Files that were edited since one of the runs."""
        self._edited: set[tuple[str, str]] = set()
        self._shapes: dict[tuple[str, str], str] = {}
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
        """The records of all runs that are shown."""
        return [
            record
            for task in self.recipe.tasks
            for method in self.methods(task)
            for record in self.runs(task, method).values()
        ]

    @property
    def fewest_seeds(self) -> int:
        """Of all methods on all tasks."""
        return min((len(self.runs(task, m)) for task in self.recipe.tasks for m in self.methods(task)), default=0)

    def is_edited(self, task: str, method: str) -> bool:
        """Whether one of the runs was made by code that was edited since."""
        return (task, method) in self._edited

    def spent(self, task: str, method: str) -> dict[str, int]:
        """Mean steps, token passes and reward calls of a run, as whole numbers."""
        return {name: whole(self.mean(task, method, name).mean) for name in SPENT}

    def shape(self, task: str, method: str) -> str:
        """Prompts and completions of a step, as in `8 x 4`; empty where they are not known, as of the untrained model."""
        if (task, method) not in self._shapes:
            record = next(iter(self.runs(task, method).values()))
            self._shapes[task, method] = "" if method == BASE else _shape_of(self.recipe, record)
        return self._shapes[task, method]

    def best(self, task: str, *path: str) -> str | None:
        """The method with the largest mean, if its interval says so: None unless it is certain.

        Certain means that the 95 % interval of its difference from every other line of the task, paired by seed, is above
        zero. Lines of code that was edited since take no part.
        """
        methods = [method for method in self.methods(task) if not self.is_edited(task, method)]
        if len(methods) < 2:
            return None
        first = max(methods, key=lambda method: self.mean(task, method, *path).mean)
        others = [self.difference(task, first, other, *path) for other in methods if other != first]
        return first if all(found is not None and found.is_above_zero for found in others) else None

    def methods(self, task: str) -> list[str]:
        """Those with results on a task, the untrained model first."""
        return [method for method in (BASE, *self.recipe.methods) if (task, method) in self._runs]

    def runs(self, task: str, method: str) -> dict[int, Record]:
        """By seed, in order."""
        return dict(sorted(self._runs.get((task, method), {}).items()))

    def mean(self, task: str, method: str, *path: str) -> Mean:
        """Of a number of the records, given by its keys: `mean("sudoku", "egspo", "accuracy", "0.9")`."""
        values = [_at(record, path) for record in self.runs(task, method).values()]
        return Mean.of(values, 0.0, 1.0) if path[0] in _SHARES else Mean.of(values)

    def difference(self, task: str, method: str, baseline: str, *path: str) -> Mean | None:
        """Mean over the seeds that both have of method minus baseline; None if there are none.

        Both began with the same model and saw the same prompts and test rows, which the difference does not hold against
        either; so its interval is narrower than those of the two means would suggest.
        """
        ours, theirs = self.runs(task, method), self.runs(task, baseline)
        differences = [_at(ours[seed], path) - _at(theirs[seed], path) for seed in ours if seed in theirs]
        if not differences:
            return None
        return Mean.of(differences, -1.0, 1.0) if path[0] in _SHARES else Mean.of(differences)

    def curve(self, task: str, method: str, temperature: str) -> list[tuple[float, Mean]]:
        """Mean token passes, and the accuracy, at each evaluation along the runs."""
        curves = [record.get("curve", []) for record in self.runs(task, method).values()]
        return [
            (
                fmean(point["token_passes"] for point in points),
                Mean.of([point["accuracy"][temperature] for point in points], 0.0, 1.0),
            )
            for points in zip(*curves, strict=False)
        ]

    def decoding(self, task: str, method: str) -> list[tuple[int, Mean]]:
        """Greedy accuracy at each number of denoising steps."""
        runs = self.runs(task, method).values()
        steps = sorted({int(steps) for record in runs for steps in record["decoding_accuracy"]})
        return [(n, self.mean(task, method, "decoding_accuracy", str(n))) for n in steps]


def _shape_of(recipe: CompareRecipe, record: Record) -> str:
    if "num_prompts" in record:
        return f"{record['num_prompts']} x {record['num_generations']}"
    # Earlier versions did not record it: it is known if the recipe still resolves to what was run.
    task, method, seed = (record[name] for name in ("task", "method", "seed"))
    try:
        plan = Plan(recipe.model_copy(update={"seeds": (seed,)}))
        found = [
            cell.recipe for cell in plan.finals({(task, method): record["settings"]}) if cell.key == key_of(record)
        ]
    except UnmaskError:
        return ""
    return f"{found[0].num_prompts} x {found[0].num_generations}" if found else ""


def _check(record: Record, temperatures: Sequence[str] = ()) -> None:
    """Raise RunError if a record lacks something that tables are made of."""
    kinds: dict[str, Any] = {"settings": dict}
    if "failed" not in record:
        kinds |= {"accuracy": dict, "reward": dict, "decoding_accuracy": dict}
        kinds |= dict.fromkeys((*SPENT, "seconds"), int | float)
    wrong = [name for name, kind in kinds.items() if not isinstance(record.get(name), kind)]
    which = f"the line of cells.jsonl of {record['method']} on {record['task']}, seed {record['seed']}"
    if wrong:
        raise RunError(f"{which}, has no usable {', '.join(wrong)}. Remove the line; the run is then done again.")
    for name in ("accuracy", "reward") if temperatures else ():
        values = record[name]
        if lacking := [t for t in temperatures if not isinstance(values.get(t), int | float)]:
            raise RunError(
                f"{which}, has no {name} at temperature {', '.join(lacking)}; it has {', '.join(values) or 'none'}. Set "
                "evaluation.temperatures to these."
            )


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

"""Check of a comparison: one of its runs, drawn at random, runs again from its recipe, and the result
is compared with the recorded one."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite, isnan, sqrt
from pathlib import Path

from unmask.core.errors import RunError
from unmask.functional.intervals import mean_interval
from unmask.trainer.comparison.jobs import Record
from unmask.trainer.comparison.ledger import Ledger
from unmask.trainer.comparison.outcomes import solved_shares
from unmask.trainer.comparison.recipe import CompareRecipe
from unmask.trainer.comparison.run import compare


@dataclass(frozen=True, slots=True)
class Verification:
    """Recorded result of a run, and that of the same run today."""

    recorded: Record
    """Record in the comparison."""
    now: Record
    """Record of the run that was made now."""
    expected: dict[str, tuple[float, float]]
    """For each temperature, the 95 % prediction interval for the accuracy of one more seed of the
    method; infinitely wide with fewer than two other seeds."""
    start: tuple[str, ...] = ()
    """Lines of text about the pretraining and the evaluation of the base model, then and now."""

    @property
    def is_equal(self) -> bool:
        """True if all accuracies, and the outcomes of all examples if both have them, are equal."""
        has_outcomes = "outcomes" in self.recorded and "outcomes" in self.now
        names = ("accuracy", "decoding_accuracy", *(["outcomes"] if has_outcomes else []))
        return all(self.recorded.get(name) == self.now.get(name) for name in names)

    @property
    def is_expected(self) -> bool:
        """True if every accuracy is where one more seed of the method is expected."""
        return all(low <= self.now["accuracy"][t] <= high for t, (low, high) in self.expected.items())

    def lines(self) -> list[str]:
        """Return lines of text for a person: the two results, and the verdict."""
        record = self.recorded
        texts = [f"{record['method']} on {record['task']}, seed {record['seed']}:", *self.start]
        texts.append(f"  training steps: recorded {record['steps']}, now {self.now['steps']}")
        for t in record["accuracy"]:
            before, after, (low, high) = record["accuracy"][t], self.now["accuracy"][t], self.expected[t]
            seeds = f", one more seed {low:.3f} to {high:.3f}" if isfinite(low) else ""
            texts.append(f"  temperature {t}: recorded {before:.4f}, now {after:.4f}{seeds}{self._moved(t)}")
        if record["variant"] != self.now["variant"]:
            texts.append(
                "  The settings of this run have changed since, for example by a default or a recipe that a task names."
            )
        if self.is_equal:
            return [*texts, "agrees: all numbers are equal."]
        if not all(isfinite(low) for low, _ in self.expected.values()):
            return [*texts, "differs: there are too few other seeds to tell whether more than seeds do."]
        if self.is_expected:
            return [
                *texts,
                "differs, but not more than seeds differ: another machine, version of torch or version of this code can change "
                "the random path of a run.",
            ]
        return [*texts, "DISAGREES: the result is not where one more seed of this method is expected."]

    def _moved(self, t: str) -> str:
        entries = [r.get("outcomes", {}).get("accuracy", {}).get(t) for r in (self.recorded, self.now)]
        if None in entries or entries[0]["rows"] != entries[1]["rows"]:
            return ""
        changed = int((solved_shares(entries[0]) != solved_shares(entries[1])).sum())
        return f"; {changed} of {entries[0]['rows']} examples differ"


def verify(recipe: CompareRecipe, seed: int, folder: Path, tell: Callable[[str], None] = print) -> Verification:
    """Run one recorded run of a comparison again, with its pretraining, and compare the results.

    Args:
        recipe: settings of the comparison; its folder has the recorded results.
        seed: seed of the draw among the runs of the recipe's tasks, methods and seeds.
        folder: folder for the runs; a repeated call continues, or returns at once if the code has not
            changed.
        tell: callback for a line of text about each job that ends.

    Raises:
        RunError: if there is no such run, or it fails now.
    """
    pairs = set(recipe.pairs())
    finals = [
        record
        for record in Ledger(recipe.folder).records
        if record["stage"] == "final" and "failed" not in record and record["seed"] in recipe.seeds
        if (record["task"], record["method"]) in pairs
    ]
    if not finals:
        raise RunError(f"{recipe.folder} has no finished run of this comparison that could be checked.")
    finals.sort(key=lambda record: (record["task"], record["method"], record["seed"]))
    recorded = random.Random(seed).choice(finals)
    home = folder / re.sub(r"\W+", "-", " ".join(map(str, (*_labels(recorded), recorded["seed"]))))
    compare(_alone(recipe, recorded, home), rerun_changed=True, retry_failed=True, tell=tell)
    (now,) = [record for record in Ledger(home).records if record["stage"] == "final"]
    if "failed" in now:
        raise RunError(
            f"{recorded['method']} on {recorded['task']}, seed {recorded['seed']}, fails now: {now['failed']}"
        )
    others = [record for record in finals if _labels(record) == _labels(recorded) and record is not recorded]
    expected = {t: _prediction([r["accuracy"][t] for r in others]) for t in recorded["accuracy"]}
    start = _start(Ledger(recipe.folder).records, Ledger(home).records, recorded["seed"])
    return Verification(recorded, now, expected, start)


def _start(before: list[Record], after: list[Record], seed: int) -> tuple[str, ...]:
    """Return lines about the jobs that a run starts from, which show where a difference begins."""
    lines = []
    for now in after:
        labels = ("stage", "task", "seed")
        same = [record for record in before if all(record[name] == now[name] for name in labels)]
        if now["stage"] not in ("pretraining", "base") or not same or "failed" in same[-1] or "failed" in now:
            continue
        if now["stage"] == "pretraining":
            lines.append(f"  loss of the pretraining: recorded {same[-1]['loss']:.4f}, now {now['loss']:.4f}")
        else:
            accuracies = [
                f"at {t} recorded {value:.4f}, now {now['accuracy'][t]:.4f}"
                for t, value in same[-1]["accuracy"].items()
            ]
            lines.append(f"  base: {'; '.join(accuracies)}")
    return tuple(lines)


def _alone(recipe: CompareRecipe, record: Record, folder: Path) -> CompareRecipe:
    """Return the comparison that consists of the run of a record, with the settings that its tuning
    chose."""
    task, method = _labels(record)
    changes = recipe.methods[method]
    own = {task: changes.by_task.get(task, {}) | record["settings"]}
    alone = changes.model_copy(update={"by_task": own, "tune": None, "tasks": ()})
    update = {
        "tasks": {task: recipe.tasks[task]},
        "methods": {method: alone},
        "seeds": (record["seed"],),
        "tuning": None,
        "baselines": (),
        "output_dir": str(folder),
    }
    return recipe.model_copy(update=update)


def _labels(record: Record) -> tuple[str, str]:
    return record["task"], record["method"]


def _prediction(values: list[float]) -> tuple[float, float]:
    mean, half = mean_interval(values) if values else (0.0, float("nan"))
    if isnan(half):
        return float("-inf"), float("inf")
    wide = half * sqrt(len(values) + 1)
    return mean - wide, mean + wide

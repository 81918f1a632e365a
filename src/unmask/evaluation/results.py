"""Files of an evaluation's results, and the comparison of two evaluations example by example.

NAME.json holds the results and the facts about the evaluation. NAME.jsonl in the same folder holds
one line for each completion. A line names its sampler setting, row and sample, so a later
evaluation can be compared with it even if its batches differ.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError, DataError, RunError
from unmask.core.files import parse_json, read_json_object, read_text
from unmask.core.records import Row
from unmask.evaluation.evaluate import Evaluation
from unmask.functional.noise import named_generator
from unmask.functional.paired import bootstrap_interval, mcnemar_exact
from unmask.models import Denoiser
from unmask.runs.atomic import refuse_to_overwrite, write_atomically, writing_explained
from unmask.runs.environment import environment, weights_hash
from unmask.tasks import Task

Setting = tuple[int, int, float, str]
"""Sampler setting: completion length, number of denoising steps, temperature, schedule."""
Solved = dict[int, list[bool]]
"""For the index of each example, True for each sample that solves it."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Comparison of one sampler setting of this evaluation with one of an earlier evaluation, on
    the same examples."""

    setting: Setting
    """Sampler setting of this evaluation."""
    against: Setting
    """Sampler setting of the earlier evaluation."""
    num_rows: int
    """Number of examples."""
    before: float
    """Accuracy of the earlier evaluation."""
    now: float
    """Accuracy of this evaluation."""
    difference: float
    """Accuracy of this evaluation minus the earlier accuracy."""
    low: float
    """Lower end of the 95 % paired-bootstrap interval of the difference."""
    high: float
    """Upper end of this interval."""
    gained: list[int]
    """Indices of the examples with more solved samples now; with one sample, the examples that are
    newly solved."""
    lost: list[int]
    """Indices of the examples with fewer solved samples now."""
    p_value: float | None
    """P-value of McNemar's exact test; None if examples have several samples."""

    def summary(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def facts_of(
    model: str,
    denoiser: Denoiser,
    task: Task,
    rows: Sequence[Row],
    samplers: Sequence[SamplerConfig],
    rewards: Sequence[str],
    *,
    split: str,
    seed: int,
    samples: int,
    batch_size: int | None,
) -> dict[str, Any]:
    """Return the facts about an evaluation for `save`. The `samplers` differ in length, steps,
    temperature and schedule only."""
    named = {"max_completion_length", "num_steps", "temperature", "order", "block_length", "schedule"}
    return {
        "model": model,
        "weights": weights_hash(denoiser),
        "task": task.model_dump(),
        "split": split,
        "data": data_facts(task, rows),
        "seed": seed,
        "order": samplers[0].order,
        "block_length": samplers[0].block_length,
        "sampler": samplers[0].model_dump(exclude=named),
        "samples": samples,
        "rewards": list(rewards),
        "settings": [list(setting_of(s)) for s in samplers],
        "batch_size": batch_size,
        "environment": environment(denoiser),
    }


def data_facts(task: Task, rows: Sequence[Row]) -> dict[str, Any]:
    """Return the number of examples, a hash of their content, and their source if the task names
    one."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    source = task.provenance()
    return {"num_rows": len(rows), "sha256": digest.hexdigest()} | ({"source": source} if source else {})


def default_place(facts: dict[str, Any], against: Path | None = None) -> Path:
    """Return a path that depends on the model, task and settings, so that an equal evaluation
    overwrites its results.

    The path always differs from `against`, the path of the earlier evaluation to compare with.
    """
    settings = {key: value for key, value in facts.items() if key not in ("environment", "batch_size")}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
    path = Path("runs/eval") / f"{facts['task']['type']}-{facts['split']}-{digest[:8]}.json"
    return path.with_stem(f"{path.stem}-again") if against is not None and _is_same(path, against) else path


def items_path(path: Path) -> Path:
    """Return the JSONL file of completions that belongs to a JSON file of results."""
    return path.with_suffix(".jsonl")


def save(path: Path, facts: dict[str, Any], results: Sequence[Evaluation], compared: Sequence[Comparison] = ()) -> None:
    """Write the JSON file `path` and its file of completions, each atomically.

    Raises:
        RunError: if a file cannot be written.
    """
    lines = (json.dumps(_named(result) | item) + "\n" for result in results for item in result.items)
    tree = facts | {"results": [result.summary() for result in results]}
    if compared:
        tree["compared"] = [comparison.summary() for comparison in compared]
    with writing_explained(path, "Name another file with --output."):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(items_path(path), "".join(lines))
        write_atomically(path, json.dumps(tree, indent=1, default=str))


def check_output(path: Path, against: Path | None = None) -> None:
    """Check before a long evaluation that its results can be written to a path.

    Args:
        path: the JSON file for the results.
        against: the earlier evaluation to compare with.

    Raises:
        ConfigError: if the path does not end in .json, is the path of `against`, or holds anything
            but results of an earlier evaluation.
        RunError: if the path cannot be written.
    """
    if path.suffix != ".json":
        raise ConfigError(
            f"--output {path} does not end in .json. Name a .json file; a .jsonl file next to it gets the completions."
        )
    if against is not None and _is_same(path, against):
        raise ConfigError(
            f"--output {path} would overwrite {against}, which --against compares with. Name another file."
        )
    with writing_explained(path, "Name another file with --output."):
        for file, is_ours in ((path, _holds_results), (items_path(path), _holds_completions)):
            refuse_to_overwrite(file, path, is_ours, "the result of an earlier evaluation")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass


def _is_same(path: Path, other: Path) -> bool:
    """Return whether two paths name the same evaluation, each by its .json or its .jsonl file."""
    return os.path.realpath(items_path(path)) == os.path.realpath(items_path(other))


def _holds_results(path: Path) -> bool:
    try:
        return {"model", "results"} <= read_json_object(path).keys()
    except RunError:
        return False


def _holds_completions(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8") as file:
            _parsed(file.readline(), str(path))
    except (DataError, UnicodeDecodeError):
        return False
    return True


@dataclass(frozen=True, slots=True)
class Earlier:
    """Completions of an earlier evaluation to compare with."""

    path: Path
    """File of the earlier evaluation, as the user named it."""
    items: dict[Setting, list[Row]]
    """Entries row, prompt, answer and solved of each completion, by sampler setting, in the order
    of the file."""

    @classmethod
    def read(cls, path: Path) -> Earlier:
        """Read the completions that `save` wrote. The path may be that of either of its two files.

        Raises:
            DataError: if the file does not exist or does not hold completions.
        """
        file = items_path(path)
        items: dict[Setting, list[Row]] = {}
        for number, line in enumerate(read_text(file, DataError).split("\n"), start=1):
            if line:
                setting, item = _parsed(line, f"line {number} of {file}")
                items.setdefault(setting, []).append(item)
        if not items:
            raise DataError(f"{file} holds no completions. Give the .jsonl file that unmask eval wrote.")
        return cls(path, items)

    def pairs(self, settings: Sequence[Setting]) -> list[tuple[Setting, Setting]]:
        """Return pairs of a setting of `settings` and the earlier setting to compare it with.

        Equal settings form pairs. If each evaluation has a single setting, these two form a pair
        even if they differ.

        Raises:
            DataError: if there is no pair.
        """
        pairs = [(setting, setting) for setting in settings if setting in self.items]
        if not pairs and len(settings) == len(self.items) == 1:
            pairs = [(settings[0], next(iter(self.items)))]
        if not pairs:
            available = "; ".join(
                f"length {n}, {k} steps, temperature {t:g}, schedule {schedule}" for n, k, t, schedule in self.items
            )
            raise DataError(
                f"{self.path} has no sampler setting in common with this evaluation. Use one of its settings: {available}."
            )
        return pairs

    def check(self, rows: Sequence[Row], settings: Sequence[Setting], samples: int) -> None:
        """Check before an evaluation that it can be compared with this one.

        Args:
            rows: examples of the evaluation, with their prompts and answers.
            settings: sampler settings of the evaluation.
            samples: number of completions for each example.

        Raises:
            DataError: if the examples or the number of samples differ, or no setting is the same.
        """
        for _, setting in self.pairs(settings):
            before: dict[int, list[Row]] = {}
            for item in self.items[setting]:
                before.setdefault(item["row"], []).append(item)
            if before.keys() != set(range(len(rows))):
                raise DataError(
                    f"{self.path} has {len(before)} examples, but this evaluation has {len(rows)}. Use the same --rows, task "
                    "options, split and seed for both."
                )
            for number, now in enumerate(rows):
                samples_before = before[number]
                then = samples_before[0]
                # An answer that was not recorded cannot be compared.
                for name in ("prompt", "answer") if then.get("answer") is not None else ("prompt",):
                    if now.get(name) != then.get(name):
                        raise DataError(
                            f"{self.path} has other examples: the {name} of row {number} is {str(then.get(name))[:60]!r} there, "
                            f"but {str(now.get(name))[:60]!r} in this evaluation. "
                            "Use the same task options, split, rows and seed for both."
                        )
                if len(samples_before) != samples:
                    raise DataError(
                        f"the number of completions for each example is {len(samples_before)} in {self.path}, but {samples} in "
                        "this evaluation. Use the same --samples for both."
                    )


def compare(results: Sequence[Evaluation], earlier: Earlier, seed: int = 0) -> list[Comparison]:
    """Compare results with the completions of an earlier evaluation, setting by setting and example
    by example.

    Args:
        results: results of this evaluation, on the same examples.
        earlier: the earlier evaluation.
        seed: seed of the bootstrap.

    Raises:
        DataError: if the two cannot be compared; see `Earlier.check`.
    """
    now = {_setting(result): result for result in results}
    first = results[0]
    earlier.check(first.items[:: first.samples], list(now), first.samples)
    return [
        _compared(setting, other, now[setting].items, earlier.items[other], seed)
        for setting, other in earlier.pairs(list(now))
    ]


def _compared(
    setting: Setting, against: Setting, items: Iterable[Row], earlier: Iterable[Row], seed: int
) -> Comparison:
    solved, solved_before = _by_row(items), _by_row(earlier)
    rows = sorted(solved)
    now = torch.tensor([solved[row] for row in rows]).double().mean(-1)
    before = torch.tensor([solved_before[row] for row in rows]).double().mean(-1)
    change = now - before
    low, high = bootstrap_interval(change, named_generator(seed, "against"))
    gained = [row for row, d in zip(rows, change.tolist(), strict=True) if d > 0]
    lost = [row for row, d in zip(rows, change.tolist(), strict=True) if d < 0]
    is_single = all(len(verdicts) == 1 for verdicts in solved.values())
    return Comparison(
        setting=setting,
        against=against,
        num_rows=len(rows),
        before=float(before.mean()),
        now=float(now.mean()),
        difference=float(change.mean()),
        low=low,
        high=high,
        gained=gained,
        lost=lost,
        p_value=mcnemar_exact(len(gained), len(lost)) if is_single else None,
    )


def _parsed(line: str, location: str) -> tuple[Setting, Row]:
    """Return the sampler setting of a line that `save` wrote, and its entries row, prompt, solved
    and answer."""
    try:
        item = parse_json(line)
        length, steps, temperature = int(item["length"]), int(item["steps"]), float(item["temperature"])
        # Earlier versions had no other schedule than the fixed one.
        setting = length, steps, temperature, str(item.get("schedule", "fixed"))
        entries = {"row": int(item["row"]), "prompt": item["prompt"], "solved": bool(item["solved"])}
        return setting, entries | {"answer": item.get("answer")}
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise DataError(
            f"{location} is not a completion of an evaluation ({type(error).__name__}: {error}). "
            "Give the .jsonl file that unmask eval wrote."
        ) from error


def _by_row(items: Iterable[Row]) -> Solved:
    solved: Solved = {}
    for item in items:
        solved.setdefault(item["row"], []).append(item["solved"])
    return solved


def setting_of(sampler: SamplerConfig) -> Setting:
    """Return the setting that identifies a sampler in a file of results."""
    return sampler.max_completion_length, sampler.steps, sampler.temperature, sampler.schedule


def _setting(result: Evaluation) -> Setting:
    return result.length, result.steps, result.temperature, result.schedule


def _named(result: Evaluation) -> dict[str, Any]:
    return dict(zip(("length", "steps", "temperature", "schedule"), _setting(result), strict=True))

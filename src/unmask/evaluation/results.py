"""Results of an evaluation on disk, and two of them compared row by row.

NAME.json holds what was measured and with what; NAME.jsonl beside it every completion, a line each. A line names its sampler
setting, row and sample, so a later evaluation can be set against it however either was batched.
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

Setting = tuple[int, int, float]
"""Length, steps, temperature."""
Solved = dict[int, list[bool]]
"""By row: whether each of its completions is right, sample by sample."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One sampler setting of this evaluation against one of an earlier evaluation, on the same rows."""

    setting: Setting
    against: Setting
    num_rows: int
    before: float
    """The earlier accuracy."""
    now: float
    difference: float
    low: float
    """Lower end of the 95 % paired-bootstrap interval of the difference."""
    high: float
    gained: list[int]
    """Rows that do better now; with one sample each, those solved now and not before."""
    lost: list[int]
    """Rows that do worse."""
    p_value: float | None
    """McNemar's exact test; None where several completions were sampled of a row."""

    def summary(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
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
    batch_size: int,
) -> dict[str, Any]:
    """What an evaluation was of and what it was made with, for `save`; one order and block length for all `samplers`."""
    return {
        "model": model,
        "weights": weights_hash(denoiser),
        "task": task.model_dump(),
        "split": split,
        "data": data_facts(task, rows),
        "seed": seed,
        "order": samplers[0].order,
        "block_length": samplers[0].block_length,
        "samples": samples,
        "rewards": list(rewards),
        "settings": [[s.max_completion_length, s.steps, s.temperature] for s in samplers],
        "batch_size": batch_size,
        "environment": environment(denoiser),
    }


def data_facts(task: Task, rows: Sequence[Row]) -> dict[str, Any]:
    """Which rows these are: how many, a hash of all that they hold, and where the task says that they come from."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    source = task.provenance()
    return {"num_rows": len(rows), "sha256": digest.hexdigest()} | ({"source": source} if source else {})


def default_place(facts: dict[str, Any], against: Path | None = None) -> Path:
    """A file of its own for each combination of model, task and settings; the same ones write to the same file again.

    The file that is compared `against` is never written to.
    """
    settings = {key: value for key, value in facts.items() if key not in ("environment", "batch_size")}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
    place = Path("runs/eval") / f"{facts['task']['type']}-{facts['split']}-{digest[:8]}.json"
    return place.with_stem(f"{place.stem}-again") if against is not None and _is_same(place, against) else place


def items_path(place: Path) -> Path:
    """The JSONL file beside a result."""
    return place.with_suffix(".jsonl")


def save(
    place: Path, facts: dict[str, Any], results: Sequence[Evaluation], compared: Sequence[Comparison] = ()
) -> None:
    """Write `place`, a JSON file, and `items_path` of it, whole or not at all.

    Raises:
        RunError: they cannot be written.
    """
    lines = (json.dumps(_named(result) | item) + "\n" for result in results for item in result.items)
    tree = facts | {"results": [result.summary() for result in results]}
    if compared:
        tree["compared"] = [comparison.summary() for comparison in compared]
    with writing_explained(place, "Name another file with --output."):
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(items_path(place), "".join(lines))
        write_atomically(place, json.dumps(tree, indent=1, default=str))


def check_place(place: Path, against: Path | None = None) -> None:
    """Refuse a place for results before hours of work are put into them.

    Args:
        place: where results are to go; the completions go into a .jsonl file beside it.
        against: the earlier evaluation that they are compared with.

    Raises:
        ConfigError: the place does not end in .json, is the file that is compared against, or holds something else than
            results of an earlier evaluation.
        RunError: it cannot be written.
    """
    if place.suffix != ".json":
        raise ConfigError(f"--output {place} must end in .json; the completions go into a .jsonl file beside it.")
    if against is not None and _is_same(place, against):
        raise ConfigError(
            f"--output {place} would overwrite {against}, which --against compares with. Name another file."
        )
    with writing_explained(place, "Name another file with --output."):
        for path, is_ours in ((place, _holds_results), (items_path(place), _holds_completions)):
            refuse_to_overwrite(path, place, is_ours, "the result of an earlier evaluation")
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place.parent):
            pass


def _is_same(place: Path, other: Path) -> bool:
    """Whether two places of results are the same files, either of which may be named by its .json or its .jsonl."""
    return os.path.realpath(items_path(place)) == os.path.realpath(items_path(other))


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
    """The completions of an earlier evaluation, to be set against."""

    place: Path
    items: dict[Setting, list[Row]]
    """By sampler setting, in the order of the file: row, prompt, answer, solved."""

    @classmethod
    def read(cls, place: Path) -> Earlier:
        """What `save` wrote, from either of its two files.

        Raises:
            DataError: it is not there, or no such file.
        """
        path = items_path(place)
        found: dict[Setting, list[Row]] = {}
        for number, line in enumerate(read_text(path, DataError).split("\n"), start=1):
            if line:
                setting, item = _parsed(line, f"line {number} of {path}")
                found.setdefault(setting, []).append(item)
        if not found:
            raise DataError(f"{path} holds no completions.")
        return cls(place, found)

    def pairs(self, settings: Sequence[Setting]) -> list[tuple[Setting, Setting]]:
        """Which setting is compared with which here: equal ones; where each side has only one, these two, whatever they are.

        Raises:
            DataError: none.
        """
        pairs = [(setting, setting) for setting in settings if setting in self.items]
        if not pairs and len(settings) == len(self.items) == 1:
            pairs = [(settings[0], next(iter(self.items)))]
        if not pairs:
            there = "; ".join(f"length {n}, {k} steps, temperature {t:g}" for n, k, t in self.items)
            raise DataError(f"{self.place} has no setting in common with this evaluation. It has: {there}.")
        return pairs

    def check(self, rows: Sequence[Row], settings: Sequence[Setting], samples: int) -> None:
        """Refuse what cannot be compared, which is better known before an evaluation than after it.

        Args:
            rows: their prompt, and their answer if they have one.
            settings: of the evaluation.
            samples: completions of each row.

        Raises:
            DataError: other rows, another number of samples, or no setting in common.
        """
        for _, setting in self.pairs(settings):
            before: dict[int, list[Row]] = {}
            for item in self.items[setting]:
                before.setdefault(item["row"], []).append(item)
            if before.keys() != set(range(len(rows))):
                raise DataError(
                    f"{self.place} is of {len(before)} rows, this evaluation of {len(rows)}. Use the same --rows for both, and "
                    "the same task options, split and seed."
                )
            for number, now in enumerate(rows):
                there = before[number]
                # An answer that was not kept cannot differ.
                for name in ("prompt", "answer") if there[0].get("answer") is not None else ("prompt",):
                    if now.get(name) != there[0].get(name):
                        raise DataError(
                            f"{self.place} is of other rows: row {number} has the {name} {str(there[0].get(name))[:60]!r} "
                            f"there and {str(now.get(name))[:60]!r} here. "
                            "Use the same task options, split, rows and seed for both."
                        )
                if len(there) != samples:
                    raise DataError(
                        f"{self.place} has {len(there)} completions of a row, this evaluation {samples}. "
                        "Use the same --samples for both."
                    )


def compare(results: Sequence[Evaluation], earlier: Earlier, seed: int = 0) -> list[Comparison]:
    """Set results against the completions of an earlier evaluation, setting by setting and row by row.

    Args:
        results: of this evaluation, on the same rows.
        earlier: the other one.
        seed: of the bootstrap.

    Raises:
        DataError: what `Earlier.check` refuses.
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


def _parsed(line: str, place: str) -> tuple[Setting, Row]:
    """The setting of a line that `save` wrote, and what a comparison reads of it."""
    try:
        item = parse_json(line)
        setting = (int(item["length"]), int(item["steps"]), float(item["temperature"]))
        read = {"row": int(item["row"]), "prompt": item["prompt"], "solved": bool(item["solved"])}
        return setting, read | {"answer": item.get("answer")}
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise DataError(
            f"{place} is not a completion of an evaluation ({type(error).__name__}: {error}). "
            "Give the .jsonl file that unmask eval wrote."
        ) from error


def _by_row(items: Iterable[Row]) -> Solved:
    solved: Solved = {}
    for item in items:
        solved.setdefault(item["row"], []).append(item["solved"])
    return solved


def setting_of(sampler: SamplerConfig) -> Setting:
    """What names a sampler's setting in a file of results."""
    return sampler.max_completion_length, sampler.steps, sampler.temperature


def _setting(result: Evaluation) -> Setting:
    return result.length, result.steps, result.temperature


def _named(result: Evaluation) -> dict[str, Any]:
    return dict(zip(("length", "steps", "temperature"), _setting(result), strict=True))

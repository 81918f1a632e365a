"""Results of an evaluation on disk, and two of them compared row by row.

NAME.json holds what was measured and with what; NAME.jsonl beside it every completion, a line each. A line names its sampler
setting, row and sample, so a later evaluation can be set against it however either was batched.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from unmask.config import SamplerConfig
from unmask.environment import environment
from unmask.errors import DataError, RunError
from unmask.evaluate import Evaluation
from unmask.functional.noise import named_generator
from unmask.functional.paired import bootstrap_interval, mcnemar_exact
from unmask.models import Denoiser
from unmask.records import Row
from unmask.run_folder import write_atomically
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


def default_place(facts: dict[str, Any]) -> Path:
    """A file of its own for each combination of model, task and settings; the same ones write to the same file again."""
    settings = {key: value for key, value in facts.items() if key not in ("environment", "batch_size")}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
    return Path("runs/eval") / f"{facts['task']['type']}-{facts['split']}-{digest[:8]}.json"


def save(
    place: Path, facts: dict[str, Any], results: Sequence[Evaluation], compared: Sequence[Comparison] = ()
) -> Path:
    """Write `place`, a JSON file, and the JSONL file beside it, which is returned.

    Raises:
        RunError: they cannot be written.
    """
    lines = (json.dumps(_named(result) | item) + "\n" for result in results for item in result.items)
    tree = facts | {"results": [result.summary() for result in results]}
    if compared:
        tree["compared"] = [comparison.summary() for comparison in compared]
    items = place.with_suffix(".jsonl")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(items, "".join(lines))
        write_atomically(place, json.dumps(tree, indent=1, default=str))
    except OSError as error:
        raise RunError(f"{place} cannot be written: {error.strerror}. Give --output another place.") from error
    return items


def compare(results: Sequence[Evaluation], place: Path, seed: int = 0) -> list[Comparison]:
    """Set results against the completions of an earlier evaluation.

    Settings of the same length, steps and temperature are compared; where each side has only one, these two, whatever they are.

    Args:
        results: of this evaluation.
        place: what `save` wrote, either of its two files.
        seed: of the bootstrap.

    Raises:
        DataError: not such a file, other rows or another number of samples, or no setting in common.
    """
    earlier = _read(place)
    now = {_setting(result): result for result in results}
    pairs = [(setting, setting) for setting in now if setting in earlier]
    if not pairs and len(now) == len(earlier) == 1:
        pairs = [(next(iter(now)), next(iter(earlier)))]
    if not pairs:
        there = "; ".join(f"length {n}, {k} steps, temperature {t:g}" for n, k, t in earlier)
        raise DataError(f"{place} has no setting in common with this evaluation. It has: {there}.")
    return [_compared(setting, other, now[setting].items, earlier[other], place, seed) for setting, other in pairs]


def _compared(
    setting: Setting, against: Setting, items: Iterable[Row], earlier: Iterable[Row], place: Path, seed: int
) -> Comparison:
    prompts, solved = _by_row(items)
    prompts_before, solved_before = _by_row(earlier)
    for row in sorted(prompts.keys() | prompts_before.keys()):
        if prompts.get(row) != prompts_before.get(row):
            raise DataError(
                f"{place} is of other rows: row {row} has the prompt {str(prompts_before.get(row))[:60]!r} there and "
                f"{str(prompts.get(row))[:60]!r} here. Use the same task options, split, rows and seed for both."
            )
        if len(solved[row]) != len(solved_before[row]):
            raise DataError(
                f"{place} has {len(solved_before[row])} completions of a row, this evaluation {len(solved[row])}. "
                "Use the same --samples for both."
            )
    rows = sorted(prompts)
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


def _read(place: Path) -> dict[Setting, list[Row]]:
    """The lines of an earlier evaluation by their setting."""
    path = place.with_suffix(".jsonl")
    found: dict[Setting, list[Row]] = {}
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                item = json.loads(line)
                setting = (int(item["length"]), int(item["steps"]), float(item["temperature"]))
                found.setdefault(setting, []).append(
                    {"row": int(item["row"]), "prompt": item["prompt"], "solved": bool(item["solved"])}
                )
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"line {number} of {path} is no completion of an evaluation ({type(error).__name__}: {error}). "
                    "Give the .jsonl file that unmask eval wrote."
                ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}. Give the .jsonl file that unmask eval wrote.") from error
    if not found:
        raise DataError(f"{path} holds no completions.")
    return found


def _by_row(items: Iterable[Row]) -> tuple[dict[int, Any], Solved]:
    prompts: dict[int, Any] = {}
    solved: Solved = {}
    for item in items:
        prompts[item["row"]] = item["prompt"]
        solved.setdefault(item["row"], []).append(item["solved"])
    return prompts, solved


def _setting(result: Evaluation) -> Setting:
    return result.length, result.steps, result.temperature


def _named(result: Evaluation) -> dict[str, Any]:
    return dict(zip(("length", "steps", "temperature"), _setting(result), strict=True))

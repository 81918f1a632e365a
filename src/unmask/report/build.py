"""`unmask report`: run folders and folders of comparisons in, one HTML file out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unmask import __version__
from unmask.core.errors import RunError, no_file
from unmask.core.text import visible
from unmask.report.comparison import comparison_of, is_comparison
from unmask.report.film import Vocabulary, entropy_scale, film_of
from unmask.report.html import pack, page
from unmask.report.runs import read_config, run_curves, run_facts
from unmask.runs.atomic import refuse_to_overwrite, write_atomically, writing_explained
from unmask.runs.saved_rollouts import SavedRollout, saved_path, saved_steps

TITLE = "unmask: "
"""Begins the title of every report; the names of the runs follow."""
MOST_HEAD = 4096
"""Bytes within which a report's title begins."""
MOST_ROLLOUTS = 200
"""Saved rollouts of a run that are shown, unless more are asked for."""


@dataclass
class Report:
    """What was written, and what could not be shown."""

    path: Path
    size: int
    """Bytes."""
    notes: list[str] = field(default_factory=list)


def write_report(folders: Sequence[Path], output: Path | None = None, rollouts: int = MOST_ROLLOUTS) -> Report:
    """Write the report of runs and comparisons.

    Args:
        folders: run folders and folders of comparisons, at least one.
        output: the file; default `report.html` in the first folder.
        rollouts: kept rollouts of each run to show, evenly spaced if it kept more; 0 for none.

    Raises:
        RunError: a folder is neither a run nor a comparison, what it logged is damaged, or the file cannot be written.
        ConfigError: `output` would overwrite a file that is not a report.
    """
    for folder in folders:
        _check(folder)
    if output is not None and output.is_dir():
        raise RunError(f"--output {output} is a folder. Name a file in it, such as {output / 'report.html'}.")
    if output is not None:
        refuse_to_overwrite(output, output, _is_report, "an earlier report")
    names = _names(folders)
    runs: list[dict[str, Any]] = []
    comparisons: list[dict[str, Any]] = []
    blocks: dict[str, str] = {}
    notes: list[str] = []
    for folder, name in zip(folders, names, strict=True):
        if is_comparison(folder):
            comparisons.append(comparison_of(folder, name))
            continue
        number = len(runs)
        run, parts, told = _run(folder, name, number, rollouts)
        runs.append(run)
        blocks |= parts
        notes += told
    target = output or folders[0] / "report.html"
    data = {"version": __version__, "runs": runs, "comparisons": comparisons}
    text = page(f"{TITLE}{', '.join(map(visible, names))}", data, blocks)
    with writing_explained(target, "Name another file with --output."):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, text)
    return Report(target, len(text.encode()), notes)


def _is_report(path: Path) -> bool:
    """Whether a file begins as a report does."""
    with path.open("rb") as file:
        return f"<title>{TITLE}".encode() in file.read(MOST_HEAD)


def _run(folder: Path, name: str, number: int, rollouts: int) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """A run's entry, its blocks by id, and what could not be shown."""
    run, config = run_facts(folder, name), read_config(folder)
    steps = saved_steps(folder)
    chosen = _spaced(steps, rollouts)
    saved, notes = [], []
    for step in chosen:
        try:
            saved.append((step, SavedRollout.load(saved_path(folder, step))))
        except RunError as error:
            notes.append(str(error))
    vocabulary = Vocabulary(one for _, one in saved)
    blocks = {f"run-{number}": pack(run_curves(folder)), f"pieces-{number}": pack(vocabulary.pieces)}
    for step, one in saved:
        blocks[f"film-{number}-{step}"] = pack(*film_of(one, step, config, vocabulary))
    if not steps:
        shown = f"This run has kept no rollouts, so there is no film of it. {_why_none(config)}"
    elif not chosen:
        shown = f"None of the {len(steps)} kept rollouts are in this report: it was asked for none (--rollouts 0)."
    elif len(chosen) < len(steps):
        shown = f"{len(chosen)} of the {len(steps)} kept rollouts are in this report, evenly spaced (--rollouts shows more)."
    else:
        shown = ""
    run |= {
        "films": [step for step, _ in saved],
        "scale": entropy_scale([one for _, one in saved]),
        "shown": shown,
        "notes": [visible(note) for note in notes],
    }
    return run, blocks, notes


def _why_none(config: Mapping[str, Any]) -> str:
    """Why a run has kept no rollouts, and what to do."""
    every = config.get("log_rollouts_steps")
    if not isinstance(every, int):
        return "Pretraining makes none."
    if every > 0:
        return (
            f"It keeps those of every {every}th step and did not come to one; log_rollouts_steps=1 keeps each step's."
        )
    return "Train with log_rollouts_steps above 0 to keep some."


def _spaced(steps: Sequence[int], count: int) -> list[int]:
    """Return `count` of the steps, evenly spaced, with the first and the last among them."""
    if len(steps) <= count:
        return list(steps)
    if count < 2:
        return list(steps[:count])
    return [steps[math.floor(i * (len(steps) - 1) / (count - 1))] for i in range(count)]


def _check(folder: Path) -> None:
    """Refuse what is no run and no comparison, in words that help."""
    if is_comparison(folder) or (folder / "metrics.jsonl").is_file():
        return
    if not folder.exists():
        raise RunError(no_file(folder, "folder"))
    if not folder.is_dir():
        raise RunError(f"{folder} is a file. Give the folder of a run, which holds config.yaml and metrics.jsonl.")
    inside = sorted(path.parent for path in folder.glob("*/metrics.jsonl"))
    hint = (
        f" There are runs inside it: unmask report {' '.join(map(str, inside))}"
        if inside
        else " A run folder holds config.yaml and metrics.jsonl; a comparison's recipe.yaml and cells.jsonl."
    )
    if (folder / "config.yaml").is_file():
        hint = " It has a config.yaml, but nothing was logged yet: the run has not come to the end of its first step."
    raise RunError(f"{folder} is not a run folder: it has no metrics.jsonl.{hint}")


def _names(folders: Sequence[Path]) -> list[str]:
    """A name for each folder, its own or, where that is not enough to tell them apart, with those above it."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise RunError(f"a folder is given twice: {', '.join(map(str, folders))}. Name each once.")

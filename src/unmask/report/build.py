"""The HTML report of runs and comparisons, for `unmask report`."""

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
"""Beginning of the title of every report, which the names of the runs follow."""
MOST_HEAD = 4096
"""Number of bytes at the start of a report within which its title occurs."""
MOST_ROLLOUTS = 200
"""Maximum number of saved rollouts that are shown for a run by default."""


@dataclass
class Report:
    """A written report."""

    path: Path
    """File of the report."""
    size: int
    """Size of the file in bytes."""
    notes: list[str] = field(default_factory=list)
    """Messages about saved rollouts that cannot be read."""


def write_report(folders: Sequence[Path], output: Path | None = None, rollouts: int = MOST_ROLLOUTS) -> Report:
    """Write the report of runs and comparisons.

    Args:
        folders: folders of runs and comparisons, at least one.
        output: file to write; default `report.html` in the first folder.
        rollouts: maximum number of saved rollouts to show of each run, evenly spaced; 0 shows none.

    Raises:
        RunError: if a folder is neither a run nor a comparison, its files are damaged, or the
            report cannot be written.
        ConfigError: if `output` would overwrite a file that is not a report.
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
        run, run_blocks, run_notes = _run(folder, name, number, rollouts)
        runs.append(run)
        blocks |= run_blocks
        notes += run_notes
    target = output or folders[0] / "report.html"
    data = {"version": __version__, "runs": runs, "comparisons": comparisons}
    text = page(f"{TITLE}{', '.join(map(visible, names))}", data, blocks)
    with writing_explained(target, "Name another file with --output."):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, text)
    return Report(target, len(text.encode()), notes)


def _is_report(path: Path) -> bool:
    """Return whether a file starts like a report."""
    with path.open("rb") as file:
        return f"<title>{TITLE}".encode() in file.read(MOST_HEAD)


def _run(folder: Path, name: str, number: int, rollouts: int) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Return three things for the page: the data of a run, its compressed blocks by id, and
    messages about rollouts that cannot be read."""
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
        shown = f"This run has saved no rollouts, so there is no film of it. {_why_none(config)}"
    elif not chosen:
        shown = f"The report has none of the {len(steps)} saved rollouts, because it was made with --rollouts 0."
    elif len(chosen) < len(steps):
        shown = f"The report has {len(chosen)} of the {len(steps)} saved rollouts, evenly spaced. --rollouts N shows up to N."
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
    """Return a text that says why a run has no saved rollouts, and what to do."""
    every = config.get("log_rollouts_steps")
    if not isinstance(every, int):
        return "Pretraining has no rollouts."
    if every > 0:
        return f"It saves one every {every} training steps and has not reached the first; log_rollouts_steps=1 saves each step's."
    return "Train with log_rollouts_steps above 0 to save some."


def _spaced(steps: Sequence[int], count: int) -> list[int]:
    """Return `count` evenly spaced steps, which include the first and the last step."""
    if len(steps) <= count:
        return list(steps)
    if count < 2:
        return list(steps[:count])
    return [steps[math.floor(i * (len(steps) - 1) / (count - 1))] for i in range(count)]


def _check(folder: Path) -> None:
    """Raise RunError with a hint if a folder is neither a run nor a comparison."""
    if is_comparison(folder) or (folder / "metrics.jsonl").is_file():
        return
    if not folder.exists():
        raise RunError(no_file(folder, "folder"))
    if not folder.is_dir():
        raise RunError(f"{folder} is a file. Name the folder of a run, which has config.yaml and metrics.jsonl.")
    inside = sorted(path.parent for path in folder.glob("*/metrics.jsonl"))
    hint = (
        f" It contains runs: unmask report {' '.join(map(str, inside))}"
        if inside
        else " The folder of a run has config.yaml and metrics.jsonl, that of a comparison recipe.yaml and cells.jsonl."
    )
    if (folder / "config.yaml").is_file():
        hint = " It has a config.yaml, but the run has not finished its first training step. Try again later."
    raise RunError(f"{folder} is not a run folder: it has no metrics.jsonl.{hint}")


def _names(folders: Sequence[Path]) -> list[str]:
    """Return a name for each folder, which includes as many parent folders as are needed to make
    the names distinct."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise RunError(f"a folder is named twice: {', '.join(map(str, folders))}. Name each folder once.")

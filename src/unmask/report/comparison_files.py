"""Files of a comparison's tables and figures, made from cells.jsonl without run folders or
models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unmask.core.errors import RunError
from unmask.report.difference_tables import explanation, undecided
from unmask.report.figure_style import check_target
from unmask.report.figures import plot_calls, plot_compute, plot_decoding
from unmask.report.table_files import tables_of, write_tables, write_trials
from unmask.report.tables import Table, introduction, warnings
from unmask.runs.atomic import disk_faults_explained
from unmask.trainer.comparison.ledger import Ledger
from unmask.trainer.comparison.load import load_compare
from unmask.trainer.comparison.recipe import BASE, CompareRecipe
from unmask.trainer.comparison.results import Results, choose, tried
from unmask.trainer.comparison.statistics import Statistics

FIGURES = ("compute", "reward_calls", "decoding")
"""Names of the figures' files."""


@dataclass(frozen=True)
class Shown:
    """Parts of a comparison's results that a terminal shows."""

    notes: list[str]
    """Explanation of the numbers, and warnings."""
    tables: list[Table]
    """Tables of all tasks."""
    figures: list[Path]
    """Files of the figures."""


def replot(folder: Path, target: Path | None = None) -> list[Path]:
    """Draw the figures of a comparison from its folder's recipe.yaml and cells.jsonl.

    Args:
        folder: folder of the comparison.
        target: .png, .svg or .pdf file for accuracy against compute; files of all three kinds are
            written, and a .csv file with the numbers. If accuracy against denoising steps was
            measured, that figure goes to a second file, such as out-decoding.png for out.png. By
            default all figures are drawn in the folder of the comparison.

    Returns:
        Files of the figures that have the format of `target`; the first one is `target`.

    Raises:
        RunError: if the folder has no results or no recipe.
        ConfigError: if the target has another ending, or would overwrite a file that is not a
            figure.
    """
    if target is not None:
        check_target(target)
        check_target(_decoding_beside(target))
    if not (folder / "recipe.yaml").is_file():
        raise RunError(f"{folder} is not the folder of a comparison: it has no recipe.yaml. Name another folder.")
    recipe = load_compare(str(folder / "recipe.yaml"), [f"output_dir={folder}"])
    results = _results(recipe, Ledger(folder))
    if target is None:
        return _draw_all(results, folder)
    if not plot_compute(results, target):
        # Without evaluations during the runs the other figure is the only one, and gets the name
        # `target`.
        return [target] if plot_decoding(results, target) else []
    second = _decoding_beside(target)
    return [target, *([second] if plot_decoding(results, second) else [])]


def _decoding_beside(target: Path) -> Path:
    """Return the file for accuracy against denoising steps if accuracy against compute goes to
    `target`."""
    return target.with_stem(f"{target.stem}-decoding")


def report(recipe: CompareRecipe) -> Path:
    """Write all tables and figures of the results so far into the comparison's folder, and return
    table.md.

    Raises:
        RunError: if there are no results yet, or a file is damaged or cannot be written.
    """
    folder, ledger = recipe.folder, Ledger(recipe.folder)
    results = _results(recipe, ledger)
    with disk_faults_explained(folder):
        table = write_tables(results, folder, _code_notes(results, ledger))
        if trials := tried(recipe, ledger.records):
            write_trials(recipe, trials, choose(recipe, trials), folder)
        _draw_all(results, folder)
    return table


def _draw_all(results: Results, folder: Path) -> list[Path]:
    """Draw all figures, and return their PNG files."""
    plots = (plot_compute, plot_calls, plot_decoding)
    paths = [folder / f"{name}.png" for name in FIGURES]
    return [path for plot, path in zip(plots, paths, strict=True) if plot(results, path)]


def shown(recipe: CompareRecipe) -> Shown:
    """Return the tables and notes for a terminal, and the figures that `report` has written."""
    folder, ledger = recipe.folder, Ledger(recipe.folder)
    results = _results(recipe, ledger)
    statistics, tasks = Statistics(results), [task for task in recipe.tasks if results.methods(task)]
    tables = [table for task in tasks for table in tables_of(results, statistics, task)]
    # The files have all columns, but a terminal is too narrow for these.
    narrow = [table.without("tuned", "prompts x completions", "steps") for table in tables]
    notes = [introduction(results), *filter(None, [explanation(statistics)]), *warnings(results)]
    notes += [sentence for task in tasks for sentence in undecided(results, task)] + _code_notes(results, ledger)
    return Shown(notes, narrow, [path for name in FIGURES if (path := folder / f"{name}.png").is_file()])


def _results(recipe: CompareRecipe, ledger: Ledger) -> Results:
    if not ledger.records:
        raise RunError(
            f"{ledger.folder} has no results yet, because its cells.jsonl is missing or empty. Run the comparison first."
        )
    results = Results(recipe, ledger.records, ledger.edited)
    known = [record for record in ledger.records if record["stage"] in ("base", "final")]
    if known and not results.shown and not results.failed:
        names = {name: sorted({str(record[name]) for record in known} - {BASE}) for name in ("task", "method", "seed")}
        listed = "; ".join(f"{name}s {', '.join(found) or 'none'}" for name, found in names.items())
        raise RunError(
            f"{ledger.folder} has no results for this selection: tasks {', '.join(recipe.tasks)}; methods "
            f"{', '.join(recipe.methods)}; seeds {', '.join(map(str, recipe.seeds))}. It has results for {listed}."
        )
    return results


def _code_notes(results: Results, ledger: Ledger) -> list[str]:
    """Return notes about results whose code is unknown."""
    notes = []
    if all("code" not in record for record in results.shown):
        notes.append("These results come from a version of unmask that did not record its code.")
    elif number := sum("code" not in record for record in results.shown):
        notes.append(f"{number} of these results come from a version of unmask that did not record its code.")
    unchecked = {name for record in results.shown for name in ledger.unchecked(record)}
    # The tables may be read in another place than that where they were made.
    if files := sorted(name.removeprefix(f"{ledger.folder.resolve()}/") for name in unchecked):
        notes.append(f"These files are missing, so it is unknown whether they have changed: {', '.join(files)}.")
    return notes

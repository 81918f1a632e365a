"""Tables and figures from cells.jsonl alone: no run, no model, no run folder is looked at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unmask.core.errors import RunError
from unmask.report.figure_style import check_target
from unmask.report.figures import plot_compute, plot_decoding
from unmask.report.tables import Table, introduction, tables_of, warnings, write_tables, write_trials
from unmask.runs.folder import disk_faults_explained
from unmask.trainer.comparison.ledger import Ledger
from unmask.trainer.comparison.recipe import CompareRecipe, load_compare
from unmask.trainer.comparison.results import Results, choose, tried


@dataclass(frozen=True)
class Shown:
    """What a terminal shows of a comparison."""

    notes: list[str]
    """What the numbers are, and what a reader must know before them."""
    tables: list[Table]
    figures: list[Path]


def replot(folder: Path, target: Path | None = None) -> list[Path]:
    """Draw the figures of a comparison anew from its folder's recipe.yaml and cells.jsonl.

    Args:
        folder: of the comparison.
        target: a .png, .svg or .pdf file for accuracy against compute, which is written as all three and as .csv. Accuracy
            against denoising steps, where that was measured, goes beside it into NAME-decoding. Default compute.png and
            decoding.png in the folder.

    Returns:
        The figures, in the form that `target` asks for: the first is `target` itself.

    Raises:
        RunError: there are no results, or no recipe, in the folder.
        ConfigError: the target ends in something else, or would overwrite a file that is not a figure.
    """
    if target is not None:
        check_target(target)
        check_target(_decoding_beside(target))
    if not (folder / "recipe.yaml").is_file():
        raise RunError(f"{folder} is not the folder of a comparison: it has no recipe.yaml.")
    recipe = load_compare(str(folder / "recipe.yaml"), [f"output_dir={folder}"])
    results = _results(recipe, Ledger(folder))
    if target is None:
        plots = [(plot_compute, folder / "compute.png"), (plot_decoding, folder / "decoding.png")]
        return [path for plot, path in plots if plot(results, path)]
    if not plot_compute(results, target):
        # Nothing was measured on the way, so the other figure is the only one, and has the name that was given.
        return [target] if plot_decoding(results, target) else []
    second = _decoding_beside(target)
    return [target, *([second] if plot_decoding(results, second) else [])]


def _decoding_beside(target: Path) -> Path:
    """Where the figure of denoising steps goes if the other goes to `target`."""
    return target.with_stem(f"{target.stem}-decoding")


def report(recipe: CompareRecipe) -> Path:
    """Write all tables and figures of what there is so far beside cells.jsonl, and return table.md.

    Raises:
        RunError: there is nothing yet, or a file is damaged or cannot be written.
    """
    folder, ledger = recipe.folder, Ledger(recipe.folder)
    results = _results(recipe, ledger)
    with disk_faults_explained(folder):
        table = write_tables(results, folder, _code_notes(results, ledger))
        if trials := tried(recipe, ledger.records):
            write_trials(recipe, trials, choose(recipe, trials), folder)
        plot_compute(results, folder / "compute.png")
        plot_decoding(results, folder / "decoding.png")
    return table


def shown(recipe: CompareRecipe) -> Shown:
    """What a terminal shows once `report` has written the files."""
    folder, ledger = recipe.folder, Ledger(recipe.folder)
    results = _results(recipe, ledger)
    tables = [table for task in recipe.tasks if results.methods(task) for table in tables_of(results, task)]
    # The files have these; a terminal has no room for them.
    narrow = [table.without("tuned", "prompts x completions", "steps") for table in tables]
    notes = [introduction(results), *warnings(results), *_code_notes(results, ledger)]
    return Shown(
        notes, narrow, [path for name in ("compute", "decoding") if (path := folder / f"{name}.png").is_file()]
    )


def _results(recipe: CompareRecipe, ledger: Ledger) -> Results:
    if not ledger.records:
        raise RunError(
            f"{ledger.folder} has no results yet: it has no cells.jsonl, or an empty one. Run the comparison first."
        )
    return Results(recipe, ledger.records, ledger.edited)


def _code_notes(results: Results, ledger: Ledger) -> list[str]:
    """What is not known of the code that made the results."""
    notes = []
    if all("code" not in record for record in results.shown):
        notes.append("These results were made by a version of unmask that kept no track of code.")
    elif number := sum("code" not in record for record in results.shown):
        notes.append(f"{number} of these results were made by a version of unmask that kept no track of code.")
    if files := sorted({name for record in results.shown for name in ledger.unchecked(record)}):
        notes.append(f"Not here, so that it is not known whether they were edited since: {', '.join(files)}.")
    return notes

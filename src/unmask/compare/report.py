"""Tables and figures from cells.jsonl alone: no run, no model, no run folder is looked at."""

from __future__ import annotations

from pathlib import Path

from unmask.compare.figures import plot_compute, plot_decoding
from unmask.compare.jobs import Record
from unmask.compare.ledger import Ledger
from unmask.compare.recipe import CompareRecipe, load_compare
from unmask.compare.results import Results, choose, tried
from unmask.compare.tables import write_tables, write_trials
from unmask.errors import ConfigError, RunError
from unmask.run_folder import disk_faults_explained


def replot(folder: Path, target: Path | None = None) -> list[Path]:
    """Draw the two figures of a comparison anew from its folder's recipe.yaml and cells.jsonl, and return the PNGs.

    Args:
        folder: of the comparison.
        target: a .png or .svg file `NAME`; NAME-compute and NAME-decoding are written, as .png, .svg and .csv each. Default
            compute and decoding in the folder.

    Raises:
        RunError: there are no results, or no recipe, in the folder.
        ConfigError: the target is neither.
    """
    if target is not None and target.suffix not in (".png", ".svg"):
        raise ConfigError(f"--output {target} must end in .png or .svg; both are written, and the numbers as .csv.")
    if not (folder / "recipe.yaml").is_file():
        raise RunError(f"{folder} is no comparison's folder: it has no recipe.yaml.")
    recipe = load_compare(str(folder / "recipe.yaml"), [f"output_dir={folder}"])
    results = Results(recipe, _records(folder))
    stem = folder if target is None else target.parent
    stem.mkdir(parents=True, exist_ok=True)
    prefix = "" if target is None else f"{target.stem}-"
    drawn = []
    for name, plot in (("compute", plot_compute), ("decoding", plot_decoding)):
        plot(results, stem / f"{prefix}{name}")
        # A comparison without decoding steps, or without points on the way, has one figure.
        drawn += [path for path in [stem / f"{prefix}{name}.png"] if path.exists()]
    return drawn


def report(recipe: CompareRecipe) -> Path:
    """Write all tables and figures of what there is so far beside cells.jsonl, and return table.md.

    Raises:
        RunError: there is nothing yet.
    """
    folder = recipe.folder
    records = _records(folder)
    results = Results(recipe, records)
    with disk_faults_explained(folder):
        table = write_tables(results, folder)
        if trials := tried(recipe, records):
            write_trials(recipe, trials, choose(recipe, trials), folder)
        plot_compute(results, folder / "compute")
        plot_decoding(results, folder / "decoding")
    return table


def _records(folder: Path) -> list[Record]:
    records = Ledger(folder).records
    if not records:
        raise RunError(
            f"{folder} has no results yet: it has no cells.jsonl, or an empty one. Run the comparison first."
        )
    return records

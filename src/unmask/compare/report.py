"""Tables and figures from cells.jsonl alone: no run, no model, no run folder is looked at."""

from __future__ import annotations

from pathlib import Path

from unmask.compare.figures import plot_compute, plot_decoding
from unmask.compare.ledger import Ledger
from unmask.compare.recipe import CompareRecipe
from unmask.compare.results import Results, choose, tried
from unmask.compare.tables import write_tables, write_trials
from unmask.errors import RunError
from unmask.run_folder import disk_faults_explained


def report(recipe: CompareRecipe) -> Path:
    """Write all tables and figures of what there is so far beside cells.jsonl, and return table.md.

    Raises:
        RunError: there is nothing yet.
    """
    folder = recipe.folder
    records = Ledger(folder).records
    if not records:
        raise RunError(
            f"{folder} has no results yet: it has no cells.jsonl, or an empty one. Run the comparison first."
        )
    results = Results(recipe, records)
    with disk_faults_explained(folder):
        table = write_tables(results, folder)
        if trials := tried(recipe, records):
            write_trials(recipe, trials, choose(recipe, trials), folder)
        plot_compute(results, folder)
        plot_decoding(results, folder)
    return table

"""Comparisons of methods in Python: the function `compare` of the public API, and its result."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask.core.errors import ConfigError
from unmask.recipes.load import Overrides
from unmask.report.comparison_files import report, shown
from unmask.report.tables import Table
from unmask.trainer.comparison.ledger import Ledger
from unmask.trainer.comparison.load import load_compare
from unmask.trainer.comparison.recipe import CompareRecipe
from unmask.trainer.comparison.run import compare as run


@dataclass(frozen=True)
class ComparisonResult:
    """Results of a comparison, which are also in the folder of the comparison. Printing this object
    gives the tables as Markdown."""

    folder: Path
    """Folder of the comparison, with cells.jsonl, table.md, table.csv and the figures."""
    records: list[dict[str, Any]]
    """One record for each pretraining, trial and run: stage, task, method, seed, accuracy by
    temperature, and more."""
    tables: list[Table]
    """Tables of the results, one or more for each task."""
    notes: list[str]
    """Explanations of the numbers, and warnings about them."""
    figures: list[Path]
    """Figures that were drawn."""
    markdown: str
    """The notes and tables as text, the content of table.md."""

    def __str__(self) -> str:
        return self.markdown


def compare(
    recipe: str | os.PathLike[str] | Mapping[str, Any] | CompareRecipe,
    overrides: Overrides = (),
    *,
    jobs: int | None = None,
    rerun_changed: bool = False,
    keep_changed: bool = False,
    retry_failed: bool = False,
    progress: bool = True,
) -> ComparisonResult:
    """Compare methods on tasks over seeds at equal compute, and return the results.

    A comparison that was stopped continues when it is called again with the same arguments. Runs
    that have a result are not repeated, so you can add seeds, methods and tasks later.

    Args:
        recipe: name of a shipped comparison such as "paper-tiny", a YAML file, or a dict of the
            same keys.
        overrides: changes to the recipe, as `key=value` texts or as a dict.
        jobs: number of runs at a time, each in a process of its own; 1, the default, runs them one
            after the other in this process. With the setting `scheduler`, the number of jobs that
            wait or run there, by default 100. A script that sets a larger number has to guard the call by
            `if __name__ == "__main__":`.
        rerun_changed: True to repeat the runs that changed settings or changed code affect.
        keep_changed: True to keep results whose code has changed since; the tables mark them.
        retry_failed: True to repeat the runs that failed.
        progress: True to print a line to standard error for each run that ends.

    Raises:
        CompareStoppedError: SIGINT or SIGTERM arrived; unfinished runs were saved.
        ConfigError: the recipe or `jobs` cannot be used.
        RunError: the folder belongs to another comparison, is in use, or has results of code that
            was edited since.
    """
    if jobs is not None and jobs < 1:
        raise ConfigError(f"jobs = {jobs} must be at least 1.")
    loaded = load_compare(recipe, overrides)
    run(
        loaded,
        jobs=jobs,
        rerun_changed=rerun_changed,
        keep_changed=keep_changed,
        retry_failed=retry_failed,
        tell=lambda line: print(line, file=sys.stderr) if progress else None,
    )
    markdown = report(loaded).read_text(encoding="utf-8")
    found = shown(loaded)
    records = [dict(record) for record in Ledger(loaded.folder).records]
    return ComparisonResult(loaded.folder, records, found.tables, found.notes, found.figures, markdown)

"""Data of a comparison for the report: accuracy against compute, accuracy against denoising steps,
and the tables."""

from __future__ import annotations

from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.core.text import visible

if TYPE_CHECKING:
    from unmask.trainer.comparison.results import Mean, Results
    from unmask.trainer.comparison.statistics import Statistics


def is_comparison(folder: Path) -> bool:
    """Return whether a folder is that of a comparison."""
    return (folder / "cells.jsonl").is_file() and (folder / "recipe.yaml").is_file()


def comparison_of(folder: Path, name: str) -> dict[str, Any]:
    """Return the data of all tasks of a comparison.

    Args:
        folder: folder of the comparison; only `cells.jsonl` and `recipe.yaml` are read.
        name: name of the comparison on the page.
    """
    from unmask.recipes.load import read_tree, validate
    from unmask.report.difference_tables import explanation, undecided
    from unmask.report.tables import introduction, warnings
    from unmask.trainer.comparison.ledger import Ledger
    from unmask.trainer.comparison.recipe import CompareRecipe
    from unmask.trainer.comparison.results import Results
    from unmask.trainer.comparison.statistics import Statistics

    recipe = validate(CompareRecipe, read_tree(folder / "recipe.yaml"))
    ledger = Ledger(folder)
    results = Results(recipe, ledger.records, ledger.edited)
    statistics, tasks = Statistics(results), [task for task in recipe.tasks if results.methods(task)]
    notes = [*warnings(results), *(sentence for task in tasks for sentence in undecided(results, task))]
    return {
        "name": visible(name),
        "folder": visible(str(folder)),
        "seeds": len(recipe.seeds),
        "rows": recipe.evaluation.num_rows,
        "temperatures": results.temperatures,
        "caption": visible(f"{introduction(results)} {explanation(statistics)}".strip()),
        "warnings": [visible(text.replace("**", "").replace("`", "")) for text in notes],
        "methods": [visible(method) for method in ("base", *recipe.methods)],
        "tasks": [_task(results, statistics, task) for task in tasks],
        "failed": [visible(f"{r['method']} on {r['task']}, seed {r['seed']}: {r['failed']}") for r in results.failed],
    }


def _task(results: Results, statistics: Statistics, task: str) -> dict[str, Any]:
    """Return the lines and differences of a task.

    A mean is a list of the mean, half the width of its interval, and the interval's ends, cut to
    the range of the quantity. `text` holds the counts of a line, written as in table.md. `best`
    holds, for each temperature, the method that is certainly the best, or None. `marked` holds the
    temperatures at which a difference stays significant after the correction for many tests.
    """
    from unmask.report.tables import counted, millions
    from unmask.trainer.comparison.statistics import pairs

    methods = results.methods(task)
    budget = results.recipe.tasks[task].budget
    best = {t: results.best(task, "accuracy", t) for t in results.temperatures}
    return {
        "name": visible(task),
        "budget": budget,
        "text": {"budget": millions(budget)},
        "best": {t: None if method is None else visible(method) for t, method in best.items()},
        "methods": [
            {
                "name": visible(method),
                "seeds": len(results.runs(task, method)),
                "shape": visible(results.shape(task, method)),
                "edited": results.is_edited(task, method),
                "passes": results.spent(task, method)["token_passes"],
                "calls": results.spent(task, method)["reward_calls"],
                "text": counted(results, task, method),
                "accuracy": {t: _mean(results.mean(task, method, "accuracy", t)) for t in results.temperatures},
                "curve": {
                    t: [[passes, *_mean(value)] for passes, value in results.curve(task, method, t)]
                    for t in results.temperatures
                },
                "decoding": [[steps, *_mean(value)] for steps, value in results.decoding(task, method)],
            }
            for method in methods
        ],
        "differences": [
            {
                "name": visible(f"{method} − {baseline}"),
                "by": {
                    t: _mean(difference)
                    for t in results.temperatures
                    if (difference := results.difference(task, method, baseline, "accuracy", t)) is not None
                },
                "marked": [
                    t
                    for t in results.temperatures
                    if (tested := statistics.difference(task, method, baseline, t)) is not None and tested.is_marked
                ],
            }
            for baseline, method in pairs(results, task)
        ],
    }


def _mean(value: Mean) -> list[float | None]:
    """Return the mean, half the width of its interval and the interval's ends. If there is no
    interval, the last three values are None."""
    return [round(value.mean, 6), *(None if isnan(n) else round(n, 6) for n in (value.half, value.low, value.high))]

"""A folder of `unmask compare` as the report shows it: accuracy against compute and against steps, and the table."""

from __future__ import annotations

from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.core.text import visible

if TYPE_CHECKING:
    from unmask.trainer.comparison.results import Mean, Results


def is_comparison(folder: Path) -> bool:
    """Whether a folder holds a comparison and not a run."""
    return (folder / "cells.jsonl").is_file() and (folder / "recipe.yaml").is_file()


def comparison_of(folder: Path, name: str) -> dict[str, Any]:
    """All tasks of a comparison.

    Args:
        folder: of the comparison; `cells.jsonl` and `recipe.yaml` are all that is read.
        name: what it is called on the page.
    """
    from unmask.recipes.load import read_tree, validate
    from unmask.report.tables import introduction, warnings
    from unmask.trainer.comparison.ledger import Ledger
    from unmask.trainer.comparison.recipe import CompareRecipe
    from unmask.trainer.comparison.results import Results

    recipe = validate(CompareRecipe, read_tree(folder / "recipe.yaml"))
    ledger = Ledger(folder)
    results = Results(recipe, ledger.records, ledger.edited)
    return {
        "name": visible(name),
        "folder": visible(str(folder)),
        "seeds": len(recipe.seeds),
        "rows": recipe.evaluation.num_rows,
        "temperatures": results.temperatures,
        "caption": visible(introduction(results).replace("**", "")),
        "warnings": [visible(text.replace("**", "").replace("`", "")) for text in warnings(results)],
        "methods": [visible(method) for method in ("base", *recipe.methods)],
        "tasks": [_task(results, task) for task in recipe.tasks if results.methods(task)],
        "failed": [visible(f"{r['method']} on {r['task']}, seed {r['seed']}: {r['failed']}") for r in results.failed],
    }


def _task(results: Results, task: str) -> dict[str, Any]:
    """A task's lines and differences.

    Means are lists of the mean, half the width of its interval, and the interval's ends, which are cut to the range of the
    quantity. `text` has a line's counts as table.md has them. `best` names, for each temperature, the one method that is
    certainly best, or nobody.
    """
    from unmask.report.tables import counted, millions, pairs

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
                    t: _mean(found)
                    for t in results.temperatures
                    if (found := results.difference(task, method, baseline, "accuracy", t)) is not None
                },
            }
            for baseline, method in pairs(results, task)
        ],
    }


def _mean(value: Mean) -> list[float | None]:
    """The mean, and where there is an interval half its width and its ends."""
    return [round(value.mean, 6), *(None if isnan(n) else round(n, 6) for n in (value.half, value.low, value.high))]

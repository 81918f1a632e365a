"""A folder of `unmask compare` as the report shows it: accuracy against compute and against steps, and the table."""

from __future__ import annotations

from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.text import visible

if TYPE_CHECKING:
    from unmask.compare.results import Mean, Results


def is_comparison(folder: Path) -> bool:
    """Whether a folder holds a comparison and not a run."""
    return (folder / "cells.jsonl").is_file() and (folder / "recipe.yaml").is_file()


def comparison_of(folder: Path, name: str) -> dict[str, Any]:
    """All tasks of a comparison.

    Args:
        folder: of the comparison; `cells.jsonl` and `recipe.yaml` are all that is read.
        name: what it is called on the page.
    """
    from unmask.compare.ledger import Ledger
    from unmask.compare.recipe import CompareRecipe
    from unmask.compare.results import Results
    from unmask.recipe import read_tree, validate

    recipe = validate(CompareRecipe, read_tree(folder / "recipe.yaml"))
    results = Results(recipe, Ledger(folder).records)
    return {
        "name": visible(name),
        "folder": visible(str(folder)),
        "seeds": len(recipe.seeds),
        "rows": recipe.evaluation.num_rows,
        "temperatures": results.temperatures,
        "methods": [visible(method) for method in ("base", *recipe.methods)],
        "tasks": [_task(results, task) for task in recipe.tasks if results.methods(task)],
        "failed": [visible(f"{r['method']} on {r['task']}, seed {r['seed']}: {r['failed']}") for r in results.failed],
    }


def _task(results: Results, task: str) -> dict[str, Any]:
    methods = results.methods(task)
    return {
        "name": visible(task),
        "budget": results.recipe.tasks[task].budget,
        "methods": [
            {
                "name": visible(method),
                "seeds": len(results.runs(task, method)),
                "passes": results.mean(task, method, "token_passes").mean,
                "calls": results.mean(task, method, "reward_calls").mean,
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
            for i, baseline in enumerate(results.recipe.baselines)
            for method in results.recipe.methods
            # Two baselines are held against each other once.
            if method not in results.recipe.baselines[: i + 1] and {method, baseline} <= set(methods)
        ],
    }


def _mean(value: Mean) -> list[float | None]:
    """The mean, and half the width of its interval where there is one."""
    return [round(value.mean, 6), None if isnan(value.half) else round(value.half, 6)]

"""Files of a comparison's tables: Markdown with rounded numbers, and CSV with all digits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any

from unmask.report.difference_tables import explanation, table_of_differences, table_of_tests, undecided
from unmask.report.figure_style import save_table
from unmask.report.tables import (
    Table,
    budget,
    diversity,
    introduction,
    markdown,
    settings_of,
    summary,
    table_of_calls,
    table_of_methods,
    warnings,
)
from unmask.runs.atomic import write_atomically
from unmask.runs.metrics import temperature_name
from unmask.trainer.comparison.recipe import CompareRecipe, named
from unmask.trainer.comparison.results import Mean, Results, Trial, is_at_edge
from unmask.trainer.comparison.statistics import Statistics, pairs


def write_tables(results: Results, folder: Path, notes: Sequence[str] = ()) -> Path:
    """Write table.md, table.csv and, if pass@k was measured, diversity.csv; return the path of table.md.

    Args:
        results: results of the comparison.
        folder: folder to write to.
        notes: further paragraphs after the introduction.
    """
    statistics = Statistics(results)
    sections = [introduction(results), *filter(None, [explanation(statistics)]), *warnings(results), *notes]
    if len(results.recipe.tasks) > 1:
        sections += ["## All tasks", markdown(summary(results))]
    for task in results.recipe.tasks:
        if results.methods(task):
            further = [table_of_tests(results, statistics, task), table_of_calls(results, task)]
            shown = [*tables_of(results, statistics, task), *(table for table in further if table is not None)]
            sections += [f"## {task}", budget(results, task), *undecided(results, task), *map(markdown, shown)]
    if results.failed:
        lines = [f"- {r['method']} on {r['task']}, seed {r['seed']}: {r['failed']}" for r in results.failed]
        sections.append("\n".join(["## Failed", "", *lines]))
    write_atomically(folder / "table.md", "\n\n".join(sections) + "\n")
    columns = ["task", "method", "minus", "settings", "shape", "temperature"]
    columns += ["seeds", "accuracy", "half_width", "se", "low", "high", "bootstrap_low", "bootstrap_high"]
    columns += ["effect_size", "p_value", "p_holm", "is_best", "code_edited", "reward"]
    columns += ["steps", "token_passes", "reward_calls", "seconds", "forwards", "tokens_per_forward"]
    save_table(folder / "table.csv", columns, _rows(results, statistics))
    if rows := _diversity_rows(results):
        columns = ["task", "method", "temperature", "k", "seeds", "pass_at_k", "half_width", "se", "low", "high"]
        save_table(folder / "diversity.csv", columns, rows)
    return folder / "table.md"


def write_trials(
    recipe: CompareRecipe, trials: Sequence[Trial], best: Mapping[tuple[str, str], Trial], folder: Path
) -> None:
    """Write all trials into tuning.md and tuning.csv."""
    temperatures = sorted({t for trial in trials for t in trial.accuracy}, key=float, reverse=True)

    def verdict(trial: Trial) -> str:
        if best.get((trial.task, trial.method)) != trial:
            return "; ".join(f"failed: {failure}" for failure in trial.failures)
        return "chosen, at the edge of the grid" if is_at_edge(recipe, trial) else "chosen"

    columns = ["task", "method", "settings", "seeds", *map(temperature_name, temperatures), "mean", ""]
    body = [
        [
            trial.task,
            trial.method,
            named(trial.settings),
            str(trial.num_seeds),
            *(f"{trial.accuracy[t]:.3f}" if t in trial.accuracy else "" for t in temperatures),
            "" if isnan(trial.score) else f"{trial.score:.3f}",
            verdict(trial),
        ]
        for trial in trials
    ]
    text = (
        "All trials, with their share of solved validation examples. The largest mean over temperatures and seeds is chosen; "
        "between equal means, the larger reward. The test split was not used."
    )
    write_atomically(folder / "tuning.md", f"{text}\n\n{markdown(Table('', columns, body))}\n")
    save_table(
        folder / "tuning.csv",
        ["task", "method", "settings", "seeds", *(f"accuracy@{t}" for t in temperatures), "mean", "reward", "verdict"],
        [
            [trial.task, trial.method, named(trial.settings), trial.num_seeds]
            + [trial.accuracy.get(t, "") for t in temperatures]
            + [trial.score, trial.reward, verdict(trial)]
            for trial in trials
        ],
    )


def tables_of(results: Results, statistics: Statistics, task: str) -> list[Table]:
    """Return the table of a task's methods, the table of differences from the baselines if there is
    one, and the tables of pass@k if it was measured."""
    others = [
        table_of_differences(results, statistics, task),
        *(diversity(results, task, t) for t in results.temperatures),
    ]
    return [table_of_methods(results, task), *(table for table in others if table is not None)]


def _rows(results: Results, statistics: Statistics) -> list[list[Any]]:
    rows: list[list[Any]] = []
    for task in results.recipe.tasks:
        rows += [
            _method_row(results, statistics, task, method, t)
            for method in results.methods(task)
            for t in results.temperatures
        ]
        for baseline, method in pairs(results, task):
            is_edited = results.is_edited(task, method) or results.is_edited(task, baseline)
            for t in results.temperatures:
                if (difference := statistics.difference(task, method, baseline, t)) is not None:
                    interval = statistics.interval(task, method, t, baseline) or ("", "")
                    rows.append(
                        [task, method, baseline, "", "", t, *_numbers(difference.mean), *interval]
                        + [difference.effect, difference.p_value, difference.corrected, "", is_edited, *[""] * 7]
                    )
    return rows


def _method_row(results: Results, statistics: Statistics, task: str, method: str, t: str) -> list[Any]:
    accuracy, reward = (results.mean(task, method, key, t) for key in ("accuracy", "reward"))
    spent = [results.mean(task, method, key).mean for key in ("steps", "token_passes", "reward_calls", "seconds")]
    costs = [results.cost(task, method, name, t) for name in ("forwards", "tokens_per_forward")]
    is_best = results.best(task, "accuracy", t) == method
    return (
        [task, method, "", settings_of(results, task, method), results.shape(task, method), t]
        + [*_numbers(accuracy), *(statistics.interval(task, method, t) or ("", "")), "", "", ""]
        + [is_best, results.is_edited(task, method), reward.mean, *spent]
        + ["" if cost is None else cost for cost in costs]
    )


def _diversity_rows(results: Results) -> list[list[Any]]:
    return [
        [task, method, t, k, *_numbers(results.mean(task, method, "pass_at", t, str(k)))]
        for task in results.recipe.tasks
        for t in results.temperatures
        for k in results.sample_counts(task, t)
        for method in results.methods(task)
    ]


def _numbers(value: Mean) -> list[float]:
    return [value.number, value.mean, value.half, value.se, value.low, value.high]

"""The tables of a comparison: Markdown for people, CSV with every number that the Markdown rounds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any

from unmask.compare.recipe import CompareRecipe, named
from unmask.compare.results import Mean, Results, Trial, is_at_edge
from unmask.files import write_atomically
from unmask.style import save_table, temperature_name


def write_tables(results: Results, folder: Path) -> Path:
    """Write table.md and table.csv, and return the first."""
    sections = [_introduction(results)]
    for task in results.recipe.tasks:
        if results.methods(task):
            sections.append("\n\n".join([_heading(results, task), *_tables_of(results, task)]))
    if results.failed:
        lines = [f"- {r['method']} on {r['task']}, seed {r['seed']}: {r['failed']}" for r in results.failed]
        sections.append("\n".join(["## Failed", "", *lines]))
    write_atomically(folder / "table.md", "\n\n".join(sections) + "\n")
    save_table(
        folder / "table.csv",
        ["task", "method", "minus", "settings", "temperature", "seeds", "accuracy", "half_width", "se"]
        + ["reward", "steps", "token_passes", "reward_calls", "seconds"],
        _rows(results),
    )
    return folder / "table.md"


def write_trials(
    recipe: CompareRecipe, trials: Sequence[Trial], best: Mapping[tuple[str, str], Trial], folder: Path
) -> None:
    """Write tuning.md and tuning.csv: all that was tried."""
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
        "All settings that were tried, with their share of solved validation rows. The largest mean over temperatures and "
        "seeds is chosen, of equals the one of larger reward; the test split had no part in it."
    )
    write_atomically(folder / "tuning.md", f"{text}\n\n{_markdown(columns, body)}\n")
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


def _introduction(results: Results) -> str:
    evaluation = results.recipe.evaluation
    return (
        f"Share of {evaluation.num_rows} test rows that are solved: mean ± half the width of the 95 % Student-t interval over "
        "seeds. All methods on a task may spend the same number of token passes (a token in a forward counts once, in a "
        "forward with backward three times), start from the same model of each seed, and see the same prompts."
    )


def _heading(results: Results, task: str) -> str:
    return f"## {task}\n\nBudget: {_millions(results.recipe.tasks[task].budget)} token passes."


def _tables_of(results: Results, task: str) -> list[str]:
    names = [temperature_name(t) for t in results.temperatures]
    lines = []
    for method in results.methods(task):
        runs = results.runs(task, method)
        spent = [results.mean(task, method, key).mean for key in ("steps", "token_passes", "reward_calls")]
        lines.append(
            [method, _settings(results, task, method), str(len(runs)), f"{spent[0]:.0f}", _millions(spent[1])]
            + [f"{spent[2]:,.0f}"]
            + [_said(results.mean(task, method, "accuracy", t)) for t in results.temperatures]
        )
    columns = ["method", "tuned", "seeds", "steps", "token passes", "reward calls", *names]
    tables = [_markdown(columns, lines)]
    differences = [
        [f"{method} - {baseline}", str(found[0].number), *(_said(difference, signed=True) for difference in found)]
        for baseline, method in _pairs(results, task)
        if (found := _differences(results, task, method, baseline))
    ]
    if differences:
        tables.append(_markdown(["difference, paired by seed", "seeds", *names], differences))
    return tables


def _rows(results: Results) -> list[list[Any]]:
    rows: list[list[Any]] = []
    for task in results.recipe.tasks:
        for method in results.methods(task):
            spent = [
                results.mean(task, method, key).mean for key in ("steps", "token_passes", "reward_calls", "seconds")
            ]
            for t in results.temperatures:
                accuracy, reward = (results.mean(task, method, key, t) for key in ("accuracy", "reward"))
                rows.append(
                    [task, method, "", _settings(results, task, method), t, accuracy.number]
                    + [accuracy.mean, accuracy.half, accuracy.se, reward.mean, *spent]
                )
        for baseline, method in _pairs(results, task):
            for t, found in zip(results.temperatures, _differences(results, task, method, baseline), strict=False):
                rows.append([task, method, baseline, "", t, found.number, found.mean, found.half, found.se])
    return rows


def _pairs(results: Results, task: str) -> list[tuple[str, str]]:
    """Baselines with the methods that are held against them; two baselines are held against each other once."""
    baselines = results.recipe.baselines
    return [
        (baseline, method)
        for i, baseline in enumerate(baselines)
        for method in results.recipe.methods
        if method not in baselines[: i + 1]
    ]


def _differences(results: Results, task: str, method: str, baseline: str) -> list[Mean]:
    """At each temperature; none if the two have no seed in common."""
    found = [results.difference(task, method, baseline, "accuracy", t) for t in results.temperatures]
    return [difference for difference in found if difference is not None]


def _settings(results: Results, task: str, method: str) -> str:
    """What was chosen for a method; it is the same for all seeds."""
    return named(next(iter(results.runs(task, method).values()))["settings"])


def _said(value: Mean, *, signed: bool = False) -> str:
    mean = f"{value.mean:{'+' if signed else ''}.3f}"
    return mean if isnan(value.half) else f"{mean} ± {value.half:.3f}"


def _millions(number: float) -> str:
    return f"{number / 1e6:.3g}M" if number >= 1e5 else f"{number:,.0f}"


def _markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

"""Tables of a comparison. The Markdown and terminal tables have rounded numbers, and the CSV files
have all digits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

from unmask.report.figure_style import save_table
from unmask.runs.atomic import write_atomically
from unmask.runs.metrics import temperature_name
from unmask.trainer.comparison.recipe import BASE, CompareRecipe, named
from unmask.trainer.comparison.results import FEW_SEEDS, Mean, Results, Trial, is_at_edge

EDITED = "†"
"""Mark of lines whose code has changed since their results were made."""


@dataclass(frozen=True)
class Table:
    """A table of texts; a cell `**like this**` is bold."""

    title: str
    """Title of the table; may be empty."""
    columns: list[str]
    """Names of the columns."""
    rows: list[list[str]]
    """Cells of each row."""

    def without(self, *columns: str) -> Table:
        """Return the table without some of its columns."""
        kept = [i for i, column in enumerate(self.columns) if column not in columns]
        rows = [[row[i] for i in kept] for row in self.rows]
        return Table(self.title, [self.columns[i] for i in kept], rows)


def write_tables(results: Results, folder: Path, notes: Sequence[str] = ()) -> Path:
    """Write table.md, table.csv and, if pass@k was measured, diversity.csv; return the path of table.md.

    Args:
        results: results of the comparison.
        folder: folder to write to.
        notes: further paragraphs after the introduction.
    """
    sections = [introduction(results), *warnings(results), *notes]
    if len(results.recipe.tasks) > 1:
        sections += ["## All tasks", _markdown(summary(results))]
    for task in results.recipe.tasks:
        if results.methods(task):
            sections += [f"## {task}", _budget(results, task), *map(_markdown, tables_of(results, task))]
    if results.failed:
        lines = [f"- {r['method']} on {r['task']}, seed {r['seed']}: {r['failed']}" for r in results.failed]
        sections.append("\n".join(["## Failed", "", *lines]))
    write_atomically(folder / "table.md", "\n\n".join(sections) + "\n")
    save_table(
        folder / "table.csv",
        [
            "task",
            "method",
            "minus",
            "settings",
            "shape",
            "temperature",
            "seeds",
            "accuracy",
            "half_width",
            "se",
            "low",
            "high",
        ]
        + ["is_best", "code_edited", "reward", "steps", "token_passes", "reward_calls", "seconds"]
        + ["forwards", "tokens_per_forward"],
        _rows(results),
    )
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
    write_atomically(folder / "tuning.md", f"{text}\n\n{_markdown(Table('', columns, body))}\n")
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


def introduction(results: Results) -> str:
    """Return an explanation of the numbers and of bold type."""
    return (
        f"Share of {results.recipe.evaluation.num_rows} test examples that are solved: mean ± half the width of the 95 % "
        "Student-t interval over seeds. If the interval would leave the range from 0 to 1 (for a difference, from -1 to 1), "
        "brackets give the part within the range. Bold: the largest mean of a column, if the 95 % intervals of its paired "
        "differences from all other lines of the task are above 0. All methods on a task have the same budget of token passes "
        "(a token counts once in a forward, three times in a forward with backward). For each seed they start from the same "
        "model, which is the line base, and see the same prompts."
    )


def warnings(results: Results) -> list[str]:
    """Return warnings about too few seeds and about code that has changed since."""
    texts = []
    if 0 < (number := results.fewest_seeds) < FEW_SEEDS:
        count = "one seed" if number == 1 else f"{number} seeds"
        texts.append(
            f"**Few seeds: {count}.** With fewer than five seeds these numbers are not reliable, whatever their intervals: other "
            "seeds may rank the methods differently."
        )
    if results.edited_files:
        texts.append(
            f"**Not current.** Lines with {EDITED} have results of code that has changed since: "
            f"{', '.join(sorted(results.edited_files))}. `unmask compare` with `--rerun-changed` runs them again."
        )
    return texts


def summary(results: Results) -> Table:
    """Return a table with a line for each task: its budget, the base and all methods, at the
    highest temperature."""
    t = results.temperatures[0]
    methods = [m for m in (BASE, *results.recipe.methods) if any(m in results.methods(k) for k in results.recipe.tasks)]
    tasks = [task for task in results.recipe.tasks if results.methods(task)]

    def shapes(method: str) -> str:
        distinct = dict.fromkeys(results.shape(task, method) for task in tasks if method in results.methods(task))
        return f"{method}, {' or '.join(filter(None, distinct))}" if any(distinct) else method

    rows = [
        [
            task,
            millions(results.recipe.tasks[task].budget),
            *(_accuracy(results, task, method, t) if method in results.methods(task) else "" for method in methods),
        ]
        for task in tasks
    ]
    columns = [temperature_name(t), "token passes", *map(shapes, methods)]
    return Table("All tasks", columns, rows)


def tables_of(results: Results, task: str) -> list[Table]:
    """Return the table of a task's methods, the table of differences from the baselines if there is
    one, and the tables of pass@k if it was measured."""
    names = [temperature_name(t) for t in results.temperatures]
    rows = []
    # Earlier versions did not record the forward passes.
    has_forwards = any(_forwards(results, task, method) for method in results.methods(task))
    for method in results.methods(task):
        rows.append(
            [_marked(results, task, method), _settings(results, task, method), results.shape(task, method)]
            + [str(len(results.runs(task, method))), *counted(results, task, method).values()]
            + [_accuracy(results, task, method, t) for t in results.temperatures]
            + ([_forwards(results, task, method)] if has_forwards else [])
        )
    columns = ["method", "tuned", "prompts x completions", "seeds", "steps", "token passes", "reward calls", *names]
    columns += ["forwards (tokens each)"] if has_forwards else []
    tables = [Table(f"{task}: {_budget(results, task)}", columns, rows)]
    differences = [
        [f"{_marked(results, task, method)} - {_marked(results, task, baseline)}", str(means[0].number)]
        + [with_interval(difference, signed=True) for difference in means]
        for baseline, method in pairs(results, task)
        if (means := _differences(results, task, method, baseline))
    ]
    if differences:
        tables.append(Table("", ["difference, paired by seed", "seeds", *names], differences))
    return tables + [table for t in results.temperatures if (table := diversity(results, task, t))]


def diversity(results: Results, task: str, temperature: str) -> Table | None:
    """Return a table of pass@k, the probability that one of k completions is right, with the
    paired difference from the untrained model at the largest k; None if it was not measured."""
    counts = results.sample_counts(task, temperature)
    if not counts:
        return None
    rows = []
    for method in results.methods(task):
        path = "pass_at", temperature
        values = [with_interval(results.mean(task, method, *path, str(k))) for k in counts]
        change = None if method == BASE else results.difference(task, method, BASE, *path, str(counts[-1]))
        rows.append([_marked(results, task, method), *values, with_interval(change, signed=True) if change else ""])
    columns = [f"pass@k, {temperature_name(temperature)}", *(f"k = {k}" for k in counts)]
    return Table("", [*columns, f"k = {counts[-1]} minus base"], rows)


def counted(results: Results, task: str, method: str) -> dict[str, str]:
    """Return the mean steps, token passes and reward calls of a run, as texts for tables."""
    spent = results.spent(task, method)
    return {
        "steps": str(spent["steps"]),
        "passes": millions(spent["token_passes"]),
        "calls": f"{spent['reward_calls']:,}",
    }


def pairs(results: Results, task: str) -> list[tuple[str, str]]:
    """Return all pairs of a baseline and a method to compare with it. Two baselines form only one
    pair."""
    baselines = results.recipe.baselines
    return [
        (baseline, method)
        for i, baseline in enumerate(baselines)
        for method in results.recipe.methods
        if method not in baselines[: i + 1] and {method, baseline} <= set(results.methods(task))
    ]


def with_interval(value: Mean, *, signed: bool = False) -> str:
    """Return a mean with its interval as text."""
    sign = "+" if signed else ""
    mean = f"{value.mean:{sign}.3f}"
    if isnan(value.half):
        return mean
    if value.is_cut:
        return f"{mean} ({value.low:{sign}.3f} to {value.high:{sign}.3f})"
    return f"{mean} ± {value.half:.3f}"


def _accuracy(results: Results, task: str, method: str, temperature: str) -> str:
    text = with_interval(results.mean(task, method, "accuracy", temperature))
    return f"**{text}**" if results.best(task, "accuracy", temperature) == method else text


def _forwards(results: Results, task: str, method: str) -> str:
    """Return the forward passes of a completion and the tokens that each committed, for every
    temperature; empty if they are not known."""
    texts = []
    for t in results.temperatures:
        forwards, tokens = (results.cost(task, method, name, t) for name in ("forwards", "tokens_per_forward"))
        texts += [f"{forwards:.1f} ({tokens:.2f})"] if forwards is not None and tokens is not None else []
    return "; ".join(dict.fromkeys(texts))


def _rows(results: Results) -> list[list[Any]]:
    rows: list[list[Any]] = []
    for task in results.recipe.tasks:
        for method in results.methods(task):
            spent = [
                results.mean(task, method, key).mean for key in ("steps", "token_passes", "reward_calls", "seconds")
            ]
            for t in results.temperatures:
                accuracy, reward = (results.mean(task, method, key, t) for key in ("accuracy", "reward"))
                costs = [results.cost(task, method, name, t) for name in ("forwards", "tokens_per_forward")]
                is_best = results.best(task, "accuracy", t) == method
                rows.append(
                    [task, method, "", _settings(results, task, method), results.shape(task, method), t]
                    + [*_numbers(accuracy), is_best, results.is_edited(task, method), reward.mean, *spent]
                    + ["" if cost is None else cost for cost in costs]
                )
        for baseline, method in pairs(results, task):
            is_edited = results.is_edited(task, method) or results.is_edited(task, baseline)
            for t, difference in zip(results.temperatures, _differences(results, task, method, baseline), strict=False):
                rows.append([task, method, baseline, "", "", t, *_numbers(difference), "", is_edited, *[""] * 7])
    return rows


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


def _differences(results: Results, task: str, method: str, baseline: str) -> list[Mean]:
    """Return the difference at each temperature; an empty list if the two have no seed in
    common."""
    differences = [results.difference(task, method, baseline, "accuracy", t) for t in results.temperatures]
    return [difference for difference in differences if difference is not None]


def _settings(results: Results, task: str, method: str) -> str:
    """Return the chosen settings of a method, which are the same for all seeds."""
    return named(next(iter(results.runs(task, method).values()))["settings"])


def _marked(results: Results, task: str, method: str) -> str:
    return f"{method} {EDITED}" if results.is_edited(task, method) else method


def _budget(results: Results, task: str) -> str:
    return f"Budget: {millions(results.recipe.tasks[task].budget)} token passes."


def millions(number: float) -> str:
    """Return a number of token passes as text, in millions if it is large."""
    return f"{number / 1e6:.3g}M" if number >= 1e5 else f"{number:,.0f}"


def _markdown(table: Table) -> str:
    lines: Iterable[Sequence[str]] = [table.columns, ["---"] * len(table.columns), *table.rows]
    # A bar in a name would start another cell.
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)

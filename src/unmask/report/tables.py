"""Tables of a comparison with rounded numbers, for Markdown and the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isnan

from unmask.runs.metrics import temperature_name
from unmask.trainer.comparison.equal_calls import at_calls, fewest_calls
from unmask.trainer.comparison.recipe import BASE, named
from unmask.trainer.comparison.results import FEW_SEEDS, Mean, Results

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


def introduction(results: Results) -> str:
    """Return an explanation of the numbers and of bold type."""
    return (
        f"Share of {results.recipe.evaluation.num_rows} test examples that are solved: mean ± half the width of the 95 % "
        "Student-t interval over seeds. If the interval would leave the range from 0 to 1 (for a difference, from -1 to 1), "
        "brackets give the part within the range. Bold: the largest mean of a column, if the 95 % intervals of its paired "
        f"differences from all other lines of the task are above 0 and rest on at least {FEW_SEEDS} seeds. All methods on a task "
        "have the same budget of token passes (a token counts once in a forward, three times in a forward with backward). For "
        f"each seed they start from the same model, which is the line base, and see the same prompts.{_tuning(results)}"
    )


def _tuning(results: Results) -> str:
    """Return a sentence on the tuning, with a space before it; empty without tuning."""
    recipe = results.recipe
    number = max(len(recipe.points(method)) for method in recipe.methods)
    if recipe.tuning is None or number < 2:
        return ""
    count = len(recipe.tuning.seeds)
    return (
        f" Each method has the best of {number} settings on {recipe.tuning.num_rows} validation examples, chosen with {count} "
        f"tuning seed{'s' if count > 1 else ''} (tuning.md)."
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


def table_of_methods(results: Results, task: str) -> Table:
    """Return the table of a task's methods."""
    names = [temperature_name(t) for t in results.temperatures]
    rows = []
    # Earlier versions did not record the forward passes.
    has_forwards = any(_forwards(results, task, method) for method in results.methods(task))
    for method in results.methods(task):
        rows.append(
            [marked(results, task, method), settings_of(results, task, method), results.shape(task, method)]
            + [str(len(results.runs(task, method))), *counted(results, task, method).values()]
            + [_accuracy(results, task, method, t) for t in results.temperatures]
            + ([_forwards(results, task, method)] if has_forwards else [])
        )
    columns = ["method", "tuned", "prompts x completions", "seeds", "steps", "token passes", "reward calls", *names]
    columns += ["forwards (tokens each)"] if has_forwards else []
    return Table(f"{task}: {budget(results, task)}", columns, rows)


def table_of_calls(results: Results, task: str) -> Table | None:
    """Return a table of the accuracies of the methods after an equal number of reward calls; None if
    they are not known."""
    if (calls := fewest_calls(results, task)) is None:
        return None
    rows = [
        [marked(results, task, method)]
        + [with_interval(at_calls(results, task, method, t, calls)) for t in results.temperatures]
        for method in results.methods(task)
        if method != BASE
    ]
    names = [temperature_name(t) for t in results.temperatures]
    return Table("", [f"after {calls:,} reward calls, {results.recipe.evaluation.curve_rows} examples", *names], rows)


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
        rows.append([marked(results, task, method), *values, with_interval(change, signed=True) if change else ""])
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


def settings_of(results: Results, task: str, method: str) -> str:
    """Return the chosen settings of a method, which are the same for all seeds."""
    return named(next(iter(results.runs(task, method).values()))["settings"])


def marked(results: Results, task: str, method: str) -> str:
    """Return the label of a method, with a mark if the code of one of its results has changed."""
    return f"{method} {EDITED}" if results.is_edited(task, method) else method


def budget(results: Results, task: str) -> str:
    """Return a sentence with the budget of a task."""
    return f"Budget: {millions(results.recipe.tasks[task].budget)} token passes."


def millions(number: float) -> str:
    """Return a number of token passes as text, in millions if it is large."""
    return f"{number / 1e6:.3g}M" if number >= 1e5 else f"{number:,.0f}"


def markdown(table: Table) -> str:
    """Return a table in Markdown."""
    lines: Iterable[Sequence[str]] = [table.columns, ["---"] * len(table.columns), *table.rows]
    # A bar in a name would start another cell.
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)

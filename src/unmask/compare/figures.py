"""The figures of a comparison: accuracy against training compute, and against denoising steps. Numbers beside them as CSV."""

from __future__ import annotations

from collections.abc import Callable
from math import isnan
from pathlib import Path
from typing import Any

from unmask.compare.recipe import BASE
from unmask.compare.results import Mean, Results
from unmask.functional.intervals import wilson_interval
from unmask.style import (
    UNTRAINED,
    draw_line,
    legend_below,
    line_style,
    panels,
    save_both,
    save_table,
    temperature_name,
    tidy,
)

Series = list[tuple[float, Mean]]

_COLUMNS = ["seeds", "accuracy", "half_width", "se", "low", "high"]


def plot_compute(results: Results, target: Path) -> None:
    """Write `target` as .png, .svg and .csv: accuracy on the way against token passes, sampled as in training; a panel a task."""
    shown, num_rows = results.temperatures[0], results.recipe.evaluation.curve_rows
    save_table(
        target.with_suffix(".csv"),
        ["task", "method", "temperature", "token_passes", *_COLUMNS],
        [
            [task, method, t, passes, *_numbers(value, num_rows)]
            for task in results.recipe.tasks
            for method in results.methods(task)
            for t in results.temperatures
            for passes, value in results.curve(task, method, t)
        ],
    )
    _plot(
        results,
        lambda task, method: [(passes / 1e6, value) for passes, value in results.curve(task, method, shown)],
        target,
        num_rows,
        xlabel="training compute, million token passes",
        ylabel=f"solved share of test rows, {temperature_name(shown)}",
    )


def plot_decoding(results: Results, target: Path) -> None:
    """Write `target` as .png, .svg and .csv: greedy accuracy of finished models against denoising steps; a panel a task."""
    num_rows = results.recipe.evaluation.num_rows
    save_table(
        target.with_suffix(".csv"),
        ["task", "method", "decoding_steps", *_COLUMNS],
        [
            [task, method, steps, *_numbers(value, num_rows)]
            for task in results.recipe.tasks
            for method in results.methods(task)
            for steps, value in results.decoding(task, method)
        ],
    )
    _plot(
        results,
        lambda task, method: [(float(steps), value) for steps, value in results.decoding(task, method)],
        target,
        num_rows,
        xlabel="denoising steps",
        ylabel="solved share of test rows, greedy",
    )


def _plot(
    results: Results, series: Callable[[str, str], Series], target: Path, num_rows: int, *, xlabel: str, ylabel: str
) -> None:
    """One panel a task, one line a method, a band of the 95 % interval: over seeds, or of a single seed's rows."""
    tasks = [task for task in results.recipe.tasks if any(series(task, m) for m in results.methods(task))]
    if not tasks:
        return
    with panels(len(tasks)) as (figure, axes):
        lines: dict[str, Any] = {}
        for axis, task in zip(axes, tasks, strict=True):
            for method in results.methods(task):
                if points := series(task, method):
                    low, high = zip(*(_interval(value, num_rows) for _, value in points), strict=True)
                    x, mean = [position for position, _ in points], [value.mean for _, value in points]
                    lines.setdefault(method, draw_line(axis, x, mean, low, high, **_style(results, method)))
            # From nothing, and as high as the panel needs: tasks differ in how much of them can be solved.
            axis.set(title=task, xlabel=xlabel, ylim=(0, min(1.02, axis.get_ylim()[1])))
            tidy(axis)
        axes[0].set_ylabel(ylabel)
        legend_below(figure, lines)
        save_both(figure, target)


def _numbers(value: Mean, num_rows: int) -> list[Any]:
    return [value.number, value.mean, value.half, value.se, *_interval(value, num_rows)]


def _interval(value: Mean, num_rows: int) -> tuple[float, float]:
    """The Student-t interval over seeds; of a single seed Wilson's over its rows, which knows nothing of other seeds."""
    if isnan(value.half):
        return wilson_interval(round(value.mean * num_rows), num_rows)
    return value.mean - value.half, value.mean + value.half


def _style(results: Results, method: str) -> dict[str, Any]:
    """The same in every panel and figure."""
    return UNTRAINED if method == BASE else line_style(list(results.recipe.methods).index(method))

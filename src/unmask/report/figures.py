"""Figures of a comparison: accuracy against training compute, reward calls and denoising steps. The
numbers of each figure are written as CSV.

The legend explains the bands and gives the number of seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import isnan
from pathlib import Path
from typing import Any

from unmask.functional.intervals import wilson_interval
from unmask.report.figure_style import (
    MOST_BANDS,
    UNTRAINED,
    draw_line,
    legend_below,
    line_style,
    panels,
    save_all,
    save_table,
    ticks_at,
    tidy,
    with_bands,
    without_band,
)
from unmask.report.tables import EDITED
from unmask.runs.metrics import temperature_name
from unmask.trainer.comparison.recipe import BASE
from unmask.trainer.comparison.results import FEW_SEEDS, Mean, Results

Series = list[tuple[float, Mean]]

MOST_TICKS = 12
"""Maximum number of measured positions that become the ticks of an axis."""
_COLUMNS = ["seeds", "accuracy", "half_width", "se", "low", "high"]


def plot_compute(results: Results, target: Path) -> bool:
    """Draw accuracy during the runs against token passes, at the highest temperature, with a panel
    for each task.

    Returns:
        True if `target` was written as .png, .svg and .pdf, and its numbers as .csv; False if there
        is nothing to draw.
    """

    def planned(task: str) -> Iterable[float]:
        # A run is evaluated when it reaches these shares of its budget.
        number = results.recipe.evaluation.curve_points
        return [results.recipe.tasks[task].budget / 1e6 * i / number for i in range(number + 1)]

    return _plot_curves(results, target, "token_passes", 1e6, "training compute, million token passes", planned)


def plot_calls(results: Results, target: Path) -> bool:
    """Draw accuracy during the runs against reward calls, at the highest temperature, with a panel
    for each task.

    Returns:
        True if `target` was written, as by `plot_compute`; False if there is nothing to draw, as for
        results of versions that did not record the calls at each evaluation.
    """
    return _plot_curves(results, target, "reward_calls", 1e3, "thousand reward calls")


def _plot_curves(
    results: Results,
    target: Path,
    against: str,
    unit: float,
    xlabel: str,
    ticks: Callable[[str], Iterable[float]] | None = None,
) -> bool:
    shown, num_rows = results.temperatures[0], results.recipe.evaluation.curve_rows
    rows = [
        [task, method, t, spent, *_numbers(value, num_rows)]
        for task in results.recipe.tasks
        for method in results.methods(task)
        for t in results.temperatures
        for spent, value in results.curve(task, method, t, against)
    ]
    if not rows:
        return False
    save_table(target.with_suffix(".csv"), ["task", "method", "temperature", against, *_COLUMNS], rows)
    _plot(
        results,
        lambda task, method: [(spent / unit, value) for spent, value in results.curve(task, method, shown, against)],
        target,
        num_rows,
        xlabel=xlabel,
        ylabel=f"solved share of test examples,\n{temperature_name(shown)}",
        ticks=ticks,
    )
    return True


def plot_decoding(results: Results, target: Path) -> bool:
    """Draw greedy accuracy of finished models against denoising steps, with a panel for each task.

    Returns:
        True if `target` was written, as by `plot_compute`; False if there is nothing to draw.
    """
    num_rows = results.recipe.evaluation.num_rows
    rows = [
        [task, method, steps, *_numbers(value, num_rows)]
        for task in results.recipe.tasks
        for method in results.methods(task)
        for steps, value in results.decoding(task, method)
    ]
    if not rows:
        return False
    save_table(target.with_suffix(".csv"), ["task", "method", "decoding_steps", *_COLUMNS], rows)
    _plot(
        results,
        lambda task, method: [(float(steps), value) for steps, value in results.decoding(task, method)],
        target,
        num_rows,
        xlabel="denoising steps",
        ylabel="solved share of test examples,\ngreedy",
        ticks=lambda task: [steps for method in results.methods(task) for steps, _ in results.decoding(task, method)],
    )
    return True


def _plot(
    results: Results,
    series: Callable[[str, str], Series],
    target: Path,
    num_rows: int,
    *,
    xlabel: str,
    ylabel: str,
    ticks: Callable[[str], Iterable[float]] | None = None,
) -> None:
    """Draw a panel for each task and a line for each method, with a band for the 95 % interval over
    seeds or examples.

    Args:
        results: results of the comparison.
        series: function of task and method that returns the points of a line.
        target: file of the figure.
        num_rows: number of examples of each evaluation.
        xlabel: label of the x axes.
        ylabel: label of the y axis.
        ticks: function of the task that returns the measured positions; default ticks at round
            numbers.
    """
    drawn = {
        task: {method: points for method in results.methods(task) if (points := series(task, method))}
        for task in results.recipe.tasks
    }
    drawn = {task: lines for task, lines in drawn.items() if lines}
    with panels(len(drawn)) as (figure, axes):
        lines: dict[str, Any] = {}
        for axis, (task, by_method) in zip(axes, drawn.items(), strict=True):
            banded = with_bands([points[-1][1].mean for points in by_method.values()])
            for i, (method, points) in enumerate(by_method.items()):
                low, high = zip(*(_interval(value, num_rows) for _, value in points), strict=True)
                x, mean = [position for position, _ in points], [value.mean for _, value in points]
                if i not in banded:
                    low = high = tuple(without_band(mean))
                line = draw_line(axis, x, mean, low, high, **_style(results, method))
                lines.setdefault(_label(results, method), line)
            # Panels start at 0 but have different heights, because tasks differ in their accuracy.
            axis.set(title=task, xlabel=xlabel, ylim=(0, min(1.02, axis.get_ylim()[1])))
            if ticks is not None and len(positions := {*ticks(task)}) <= MOST_TICKS:
                ticks_at(axis, positions)
            tidy(axis)
        axes[0].set_ylabel(ylabel)
        legend_below(figure, lines, _note(list(drawn.values())))
        save_all(figure, target)


def _note(drawn: list[dict[str, Series]]) -> str:
    """Return a note on the kind of the bands, the number of seeds, and the lines with bands."""
    numbers = sorted({value.number for by_method in drawn for points in by_method.values() for _, value in points})
    count = f"{numbers[0]} to {numbers[-1]} seeds" if len(numbers) > 1 else f"{numbers[0]} seeds"
    if numbers == [1]:
        note = "One seed. Bands: 95 % Wilson interval over examples"
    elif numbers[0] == 1:
        note = f"{count}. Bands: 95 % Student-t interval over seeds; for a single seed, Wilson interval over examples"
    else:
        note = f"{count}. Bands: 95 % Student-t interval over seeds, cut to [0, 1]"
    if max(map(len, drawn)) > MOST_BANDS:
        note += f"; only for the {MOST_BANDS} lines of a panel that end highest"
    few = " With few seeds, differences may be due to chance." if numbers[0] < FEW_SEEDS else ""
    return f"{note}.{few}"


def _label(results: Results, method: str) -> str:
    """Return a method's name, with a mark if the code has changed since one of its results was
    made."""
    is_edited = any(results.is_edited(task, method) for task in results.recipe.tasks)
    return f"{method} {EDITED}" if is_edited else method


def _numbers(value: Mean, num_rows: int) -> list[Any]:
    return [value.number, value.mean, value.half, value.se, *_interval(value, num_rows)]


def _interval(value: Mean, num_rows: int) -> tuple[float, float]:
    """Return the Student-t interval over seeds; for a single seed, Wilson's interval over
    examples."""
    if isnan(value.half):
        return wilson_interval(round(value.mean * num_rows), num_rows)
    return value.low, value.high


def _style(results: Results, method: str) -> dict[str, Any]:
    """Return the style of a method's line, which is the same in all panels and figures."""
    return UNTRAINED if method == BASE else line_style(list(results.recipe.methods).index(method))

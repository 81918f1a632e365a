"""The figures of a comparison: accuracy against training compute, and against denoising steps. Numbers beside them as CSV."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from math import isnan
from pathlib import Path
from typing import Any

from unmask.compare.recipe import BASE
from unmask.compare.results import Mean, Results, temperature_name

# Okabe and Ito's colours, which people of any colour vision can tell apart; dashes tell the second round from the first.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#222222")
DASHES = ("-", "--", ":")

Series = list[tuple[float, Mean]]


def plot_compute(results: Results, folder: Path) -> None:
    """Write compute.png, .svg and .csv: accuracy on the way against token passes, sampled as in training, one panel a task."""
    shown = results.temperatures[0]
    with (folder / "compute.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["task", "method", "temperature", "token_passes", "seeds", "accuracy", "half_width", "se"])
        for task in results.recipe.tasks:
            for method in results.methods(task):
                for t in results.temperatures:
                    for passes, value in results.curve(task, method, t):
                        row = [value.number, value.mean, value.half, value.se]
                        writer.writerow([task, method, t, passes, *row])
    _plot(
        results,
        lambda task, method: [(passes / 1e6, value) for passes, value in results.curve(task, method, shown)],
        folder / "compute",
        xlabel="training compute, million token passes",
        ylabel=f"solved share of test rows, {temperature_name(shown)}",
    )


def plot_decoding(results: Results, folder: Path) -> None:
    """Write decoding.png, .svg and .csv: greedy accuracy of finished models against denoising steps, one panel a task."""
    with (folder / "decoding.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["task", "method", "decoding_steps", "seeds", "accuracy", "half_width", "se"])
        for task in results.recipe.tasks:
            for method in results.methods(task):
                for steps, value in results.decoding(task, method):
                    writer.writerow([task, method, steps, value.number, value.mean, value.half, value.se])
    _plot(
        results,
        lambda task, method: [(float(steps), value) for steps, value in results.decoding(task, method)],
        folder / "decoding",
        xlabel="denoising steps",
        ylabel="solved share of test rows, greedy",
    )


def _plot(results: Results, series: Callable[[str, str], Series], target: Path, *, xlabel: str, ylabel: str) -> None:
    """One panel a task, one line a method, a band of the 95 % interval over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    tasks = [task for task in results.recipe.tasks if any(series(task, m) for m in results.methods(task))]
    if not tasks:
        return
    figure, axes = plt.subplots(
        1, len(tasks), figsize=(1.2 + 3.6 * len(tasks), 4.0), layout="constrained", squeeze=False
    )
    lines: dict[str, Any] = {}
    for axis, task in zip(axes[0], tasks, strict=True):
        for method in results.methods(task):
            if points := series(task, method):
                lines.setdefault(method, _draw(axis, points, _style(results, method)))
        # From nothing, and as high as the panel needs: tasks differ in how much of them can be solved.
        axis.set(title=task, xlabel=xlabel, ylim=(0, min(1.02, axis.get_ylim()[1])))
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.2)
    axes[0][0].set_ylabel(ylabel)
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=min(4, len(lines)), frameon=False)
    figure.savefig(target.with_suffix(".png"), dpi=150)
    # Text stays text in an SVG: it can be selected and searched. Without dates and random ids, equal numbers give equal files.
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "unmask"}):
        figure.savefig(target.with_suffix(".svg"), metadata={"Date": None})
    plt.close(figure)


def _draw(axis: Any, points: Series, style: dict[str, Any]) -> Any:
    x = [position for position, _ in points]
    (line,) = axis.plot(x, [value.mean for _, value in points], marker="o", markersize=3, linewidth=1.5, **style)
    if not any(isnan(value.half) for _, value in points):
        low, high = ([value.mean + sign * value.half for _, value in points] for sign in (-1, 1))
        axis.fill_between(x, low, high, color=style["color"], alpha=0.12, linewidth=0)
    return line


def _style(results: Results, method: str) -> dict[str, Any]:
    """The same in every panel and figure."""
    if method == BASE:
        return {"color": "#888888", "linestyle": "-"}
    place: Sequence[str] = list(results.recipe.methods)
    round_, index = divmod(place.index(method), len(COLOURS))
    return {"color": COLOURS[index], "linestyle": DASHES[round_ % len(DASHES)]}

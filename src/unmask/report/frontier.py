"""Figure of accuracy against forward passes, for fixed and adaptive schedules."""

from __future__ import annotations

from collections.abc import Iterable
from math import nan
from pathlib import Path
from typing import NamedTuple

from unmask.report.figure_style import SUFFIXES, draw_line, legend_below, line_style, panels, save_all, tidy


class FrontierPoint(NamedTuple):
    """Accuracy of one schedule, with its cost."""

    panel: str
    """Title of the panel that shows the point."""
    line: str
    """Type of the schedule; points of a type form a line."""
    forwards: float
    """Mean number of forward passes of a completion."""
    accuracy: float
    """Share of completions that solve their example."""
    low: float = nan
    """Lower end of the interval of the accuracy; NaN for none."""
    high: float = nan
    """Upper end of this interval."""


def draw_frontier(points: Iterable[FrontierPoint], path: Path, note: str) -> list[Path]:
    """Draw accuracy against forward passes: a panel for each `panel`, a line for each `line`.

    Args:
        points: points in any order.
        path: path of the figure, whose ending is replaced.
        note: explanation of the bands.

    Returns:
        The paths of the files.
    """
    by_panel: dict[str, dict[str, list[FrontierPoint]]] = {}
    for point in points:
        by_panel.setdefault(point.panel, {}).setdefault(point.line, []).append(point)
    names = sorted({line for lines in by_panel.values() for line in lines}, key=lambda name: (name != "fixed", name))
    with panels(len(by_panel)) as (figure, axes):
        drawn = {}
        for axis, (title, lines) in zip(axes, by_panel.items(), strict=True):
            for name, of_line in lines.items():
                ordered = sorted(of_line, key=lambda point: point.forwards)
                _, _, x, mean, low, high = zip(*ordered, strict=True)
                drawn[name] = draw_line(axis, x, mean, low, high, **line_style(names.index(name)))
            axis.set(title=title, xlabel="forward passes of a completion", ylim=(0, min(1.02, axis.get_ylim()[1])))
            tidy(axis)
        axes[0].set_ylabel("solved share of test examples")
        legend_below(figure, {name: drawn[name] for name in names}, note)
        save_all(figure, path)
    return [path.with_suffix(suffix) for suffix in SUFFIXES]

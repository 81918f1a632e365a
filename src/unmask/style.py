"""How every figure looks: colours, dashes, bands, names, and files that hold the same bytes whenever the numbers are the same."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.files import replaced_whole, writing_explained

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's, which people of any colour vision can tell apart; dashes tell the second round from the first.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#222222")
DASHES = ("-", "--", ":")
UNTRAINED = {"color": "#888888", "linestyle": "-"}
"""Of a model before training."""

PANEL_WIDTH, PANEL_HEIGHT = 3.6, 4.0
"""Inches."""


def temperature_name(temperature: str | float) -> str:
    """`greedy` for temperature 0, otherwise `sampled at` it."""
    try:
        value = float(temperature)
    except ValueError:
        # A metric's name may hold anything.
        return f"sampled at {temperature}"
    return "greedy" if value == 0 else f"sampled at {value:g}"


def line_style(index: int) -> dict[str, Any]:
    """Colour and dash of the line `index`, counted from 0."""
    round_, place = divmod(index, len(COLOURS))
    return {"color": COLOURS[place], "linestyle": DASHES[round_ % len(DASHES)]}


@contextmanager
def panels(
    number: int, width: float | None = None, height: float = PANEL_HEIGHT
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of `number` panels side by side, drawn without a screen and forgotten afterwards. Sizes in inches."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    size = (width or 1.2 + PANEL_WIDTH * number, height)
    # A name with a dollar sign is a name, not a formula.
    with matplotlib.rc_context({"text.parse_math": False}):
        figure, axes = plt.subplots(1, number, figsize=size, layout="constrained", squeeze=False)
        try:
            yield figure, list(axes[0])
        finally:
            plt.close(figure)


def draw_line(
    axis: Axes, x: Sequence[float], mean: Sequence[float], low: Sequence[float], high: Sequence[float], **style: Any
) -> Any:
    """A line with a dot for each measurement, and the band of its interval; a bound that is nan has no band. Returns the line."""
    # Dots say where something was measured; where they would touch, the line says it.
    marker: dict[str, Any] = {"marker": "o", "markersize": 3} if len(x) <= 40 else {}
    (line,) = axis.plot(x, mean, linewidth=1.5, **(marker | style))
    known = [not (isnan(a) or isnan(b)) for a, b in zip(low, high, strict=True)]
    axis.fill_between(x, low, high, where=known, color=style.get("color"), alpha=0.15, linewidth=0)
    return line


def tidy(axis: Axes) -> None:
    """No frame above and on the right, and a faint grid."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.2)


def legend_below(figure: Figure, lines: dict[str, Any]) -> None:
    """One legend for all panels, by label, under them."""
    if lines:
        longest = max(map(len, lines))
        columns = 4 if longest < 24 else 2 if longest < 48 else 1
        figure.legend(
            lines.values(), lines.keys(), loc="outside lower center", ncols=min(columns, len(lines)), frameon=False
        )


def save_figure(figure: Figure, target: Path) -> None:
    """Write PNG or SVG, as the ending says, whole or not at all; equal numbers give equal files.

    Raises:
        RunError: the file cannot be written.
    """
    import matplotlib

    # Text stays text in an SVG: it can be selected and searched. No date, no random ids.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "unmask"}):
        metadata = {"Date": None} if target.suffix == ".svg" else None
        with writing_explained(target, "Name another place with --output."), replaced_whole(target) as aside:
            figure.savefig(aside, dpi=150, metadata=metadata)


def save_both(figure: Figure, target: Path) -> None:
    """Write `target` as .png and as .svg."""
    for suffix in (".png", ".svg"):
        save_figure(figure, target.with_suffix(suffix))


def save_table(target: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write CSV, whole or not at all.

    Spreadsheets run a cell that begins with =, +, - or @ as a formula; names of metrics and folders are written as text.

    Raises:
        RunError: the file cannot be written.
    """
    with writing_explained(target, "Name another place with --output."), replaced_whole(target) as aside:
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(columns)
        writer.writerows([_as_text(cell) for cell in row] for row in rows)
        aside.write_text(text.getvalue(), encoding="utf-8", newline="")


def _as_text(cell: Any) -> Any:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.lstrip().startswith(("=", "+", "-", "@")) else cell

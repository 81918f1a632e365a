"""How every figure looks: colours, dashes, marks, bands, names, and files that hold the same bytes for the same numbers."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import ceil, isnan, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.core.errors import ConfigError
from unmask.runs.atomic import refuse_to_overwrite, replaced_whole, writing_explained

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's, which people of any colour vision can tell apart. Colours, dashes and marks go round at different lengths, so
# that neighbours differ in all three, and no two of the first 28 lines are alike in colour and dash.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#222222")
DASHES = ("-", "--", ":", "-.")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
UNTRAINED = {"color": "#888888", "linestyle": "-", "marker": "."}
"""Of a model before training."""

MOST_BANDS = 6
"""Bands that a panel shows; more of them cover one another."""
SUFFIXES = (".png", ".svg", ".pdf")
"""A figure is written as each of these."""

_MARGIN = 4096
"""Bytes at either end of a file by which a figure is recognised."""

PANEL_WIDTH, PANEL_HEIGHT, LEGEND_ROW = 3.6, 4.0, 0.24
"""Inches."""


def line_style(index: int) -> dict[str, Any]:
    """Colour, dash and mark of the line `index`, counted from 0."""
    return {
        name: cycle[index % len(cycle)]
        for name, cycle in (("color", COLOURS), ("linestyle", DASHES), ("marker", MARKS))
    }


def with_bands(last_means: Sequence[float]) -> set[int]:
    """Which of some lines get a band: all if they are few, otherwise the `MOST_BANDS` that end highest."""
    return set(sorted(range(len(last_means)), key=lambda i: -last_means[i])[:MOST_BANDS])


@contextmanager
def panels(
    number: int, width: float | None = None, height: float = PANEL_HEIGHT
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of `number` panels side by side, drawn without a screen and forgotten afterwards. Sizes in inches."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    size = (width or 1.2 + PANEL_WIDTH * number, height)
    # Names are shown as they are: a $ in one begins no formula.
    with matplotlib.rc_context({"text.parse_math": False}):
        figure, axes = plt.subplots(1, number, figsize=size, layout="constrained", squeeze=False)
        try:
            yield figure, list(axes[0])
        finally:
            plt.close(figure)


def draw_line(
    axis: Axes, x: Sequence[float], mean: Sequence[float], low: Sequence[float], high: Sequence[float], **style: Any
) -> Any:
    """Draw and return a line with a mark for each measurement, and the band of its interval where the bounds are not nan."""
    # Marks say where something was measured; where they would touch, some of them tell the line from others.
    marks = {"markersize": 4, "markevery": max(1, len(x) // 20) if len(x) > 40 else 1}
    (line,) = axis.plot(x, mean, linewidth=1.5, **(marks | style))
    known = [not (isnan(a) or isnan(b)) for a, b in zip(low, high, strict=True)]
    axis.fill_between(x, low, high, where=known, color=style.get("color"), alpha=0.13, linewidth=0)
    return line


def without_band(values: Sequence[float]) -> list[float]:
    """Bounds of a line that gets no band."""
    return [nan] * len(values)


def ticks_at(axis: Axes, places: Iterable[float]) -> None:
    """Put the ticks of the x axis where something was measured; evenly, if each place is about double the one before."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    found = sorted(set(places))
    if found and found[0] > 0 and found[-1] >= 4 * found[0]:
        axis.set_xscale("log", base=2)
    axis.xaxis.set_major_locator(FixedLocator(found))
    axis.xaxis.set_major_formatter(FixedFormatter([f"{place:g}" for place in found]))
    axis.xaxis.set_minor_locator(NullLocator())


def tidy(axis: Axes) -> None:
    """No frame above and on the right, and a faint grid."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.2)


def wrapped(text: str, inches: float) -> str:
    """Small text in lines that fit into this width."""
    return textwrap.fill(text, max(20, int(inches * 16)))


def legend_below(figure: Figure, lines: dict[str, Any], note: str = "") -> None:
    """One legend for all panels, by label, under them; the note stands above it."""
    if not lines:
        return
    longest = max(map(len, lines))
    columns = min(4 if longest < 24 else 2 if longest < 48 else 1, len(lines))
    width, height = figure.get_size_inches()
    # A long legend takes its room from the page and not from the panels.
    figure.set_size_inches(width, height + LEGEND_ROW * max(0, ceil(len(lines) / columns) - 2))
    legend = figure.legend(
        lines.values(),
        # The legend leaves out names that begin with an underscore, so these are set afterwards.
        [f" {name}" for name in lines],
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        handlelength=3,
        title=wrapped(note, width) or None,
        title_fontsize=8,
    )
    for text, name in zip(legend.get_texts(), lines, strict=True):
        text.set_text(name)


def save_figure(figure: Figure, target: Path) -> None:
    """Write PNG, SVG or PDF, as the ending says; equal numbers give equal files.

    Raises:
        RunError: the file cannot be written; what was there is still there.
    """
    import matplotlib

    dates = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    # Text stays text: it can be selected and searched, and a PDF holds its font. No date, no random ids.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "unmask", "pdf.fonttype": 42}):
        drawn = io.BytesIO()
        form = target.suffix.removeprefix(".").lower()
        figure.savefig(drawn, format=form, dpi=150, metadata=dates.get(target.suffix.lower()))
    _write(target, drawn.getvalue())


def check_target(target: Path, suffixes: Sequence[str] = SUFFIXES) -> None:
    """Refuse a place for a figure before it is drawn, where the file or one of those beside it holds something else.

    Args:
        target: the figure.
        suffixes: the figure is written with each of these, and its numbers as .csv.

    Raises:
        ConfigError: another ending, or a file that is there does not look like a figure or its numbers.
    """
    if target.suffix.lower() not in SUFFIXES:
        raise ConfigError(
            f"--output {target} must end in {', '.join(SUFFIXES)}; all of them are written, and the numbers as .csv."
        )
    for suffix in suffixes:
        refuse_to_overwrite(target.with_suffix(suffix), target, _is_drawn, "a figure drawn by Matplotlib")
    refuse_to_overwrite(target.with_suffix(".csv"), target, _is_table, "a figure's table of numbers")


def _is_drawn(path: Path) -> bool:
    """Whether a file says that Matplotlib made it, as PNG and SVG do at their beginning and PDF at its end."""
    with path.open("rb") as file:
        beginning = file.read(_MARGIN)
        file.seek(max(0, path.stat().st_size - _MARGIN))
        return b"Matplotlib" in beginning + file.read(_MARGIN)


def _is_table(path: Path) -> bool:
    """Whether the columns of a file end as those of every figure's table do."""
    with path.open("rb") as file:
        return file.readline(_MARGIN).rstrip().endswith(b",low,high")


def save_all(figure: Figure, target: Path) -> None:
    """Write `target` with each of the endings in `SUFFIXES`."""
    for suffix in SUFFIXES:
        save_figure(figure, target.with_suffix(suffix))


def save_table(target: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write CSV.

    Raises:
        RunError: the file cannot be written; what was there is still there.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows([_cell(value) for value in row] for row in rows)
    _write(target, text.getvalue().encode(errors="backslashreplace"))


def _cell(value: Any) -> Any:
    """A value as a spreadsheet may read it: text that it would take for a formula begins with an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.lstrip().startswith(("=", "+", "-", "@")) else value


def _write(target: Path, content: bytes) -> None:
    with writing_explained(target, "Name another place with --output."):
        target.parent.mkdir(parents=True, exist_ok=True)
        with replaced_whole(target) as aside:
            aside.write_bytes(content)

"""Style of all figures: colours, dashes, marks, bands and legends. Equal numbers give files with
equal bytes."""

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

# Okabe and Ito's colours, which people with any colour vision can distinguish. Colours, dashes and
# marks repeat after different numbers of lines, so that neighbours differ in all three, and the
# first 28 lines differ in colour or dash.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#222222")
DASHES = ("-", "--", ":", "-.")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
UNTRAINED = {"color": "#888888", "linestyle": "-", "marker": "."}
"""Style of the line of a model before training."""

MOST_BANDS = 6
"""Maximum number of bands in a panel; more would hide one another."""
SUFFIXES = (".png", ".svg", ".pdf")
"""Endings of the files that are written of each figure."""

_MARGIN = 4096
"""Number of bytes at the start and at the end of a file that are searched for the mark of a
figure."""

PANEL_WIDTH, PANEL_HEIGHT, LEGEND_ROW = 3.6, 4.0, 0.24
"""Size of a panel, and height of a row of the legend, in inches."""

LEGEND_HANDLE, LEGEND_LETTER = 0.85, 0.075
"""Width of the line and the gaps of a legend entry, and of a letter of its name, in inches."""


def line_style(index: int) -> dict[str, Any]:
    """Return the colour, dash and mark of a line, given its index from 0."""
    return {
        name: cycle[index % len(cycle)]
        for name, cycle in (("color", COLOURS), ("linestyle", DASHES), ("marker", MARKS))
    }


def with_bands(last_means: Sequence[float]) -> set[int]:
    """Return the indices of the lines that get a band. If there are more than `MOST_BANDS` lines,
    these are the lines with the highest last values."""
    return set(sorted(range(len(last_means)), key=lambda i: -last_means[i])[:MOST_BANDS])


@contextmanager
def panels(
    number: int, width: float | None = None, height: float = PANEL_HEIGHT
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Yield a figure of `number` panels in a row, drawn without a screen and closed afterwards.
    Sizes are in inches."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    size = (width or 1.2 + PANEL_WIDTH * number, height)
    # A $ in a name must not start a formula.
    with matplotlib.rc_context({"text.parse_math": False}):
        figure, axes = plt.subplots(1, number, figsize=size, layout="constrained", squeeze=False)
        try:
            yield figure, list(axes[0])
        finally:
            plt.close(figure)


def draw_line(
    axis: Axes, x: Sequence[float], mean: Sequence[float], low: Sequence[float], high: Sequence[float], **style: Any
) -> Any:
    """Draw and return a line with a mark for each measurement, and the band of its interval if the
    bounds are not nan."""
    # Each mark is a measurement; on long lines there are fewer marks, so that they do not touch.
    marks = {"markersize": 4, "markevery": max(1, len(x) // 20) if len(x) > 40 else 1}
    (line,) = axis.plot(x, mean, linewidth=1.5, **(marks | style))
    known = [not (isnan(a) or isnan(b)) for a, b in zip(low, high, strict=True)]
    axis.fill_between(x, low, high, where=known, color=style.get("color"), alpha=0.13, linewidth=0)
    return line


def without_band(values: Sequence[float]) -> list[float]:
    """Return lower and upper bounds that are all nan, so that the line has no band."""
    return [nan] * len(values)


def ticks_at(axis: Axes, positions: Iterable[float]) -> None:
    """Put the ticks of the x axis at the measured positions, on a logarithmic axis if they are above
    0 and span a factor of 4 or more."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    ticks = sorted(set(positions))
    if ticks and ticks[0] > 0 and ticks[-1] >= 4 * ticks[0]:
        axis.set_xscale("log", base=2)
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_major_formatter(FixedFormatter([f"{tick:.3g}" for tick in ticks]))
    axis.xaxis.set_minor_locator(NullLocator())


def tidy(axis: Axes) -> None:
    """Remove the frame above and on the right, and add a faint grid."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.2)


def wrapped(text: str, inches: float) -> str:
    """Return small text, broken into lines that fit into a width in inches."""
    return textwrap.fill(text, max(20, int(inches * 16)))


def legend_below(figure: Figure, lines: dict[str, Any], note: str = "") -> None:
    """Draw one legend for the lines of all panels below them, with the note as its title."""
    if not lines:
        return
    width, height = figure.get_size_inches()
    of_one = LEGEND_HANDLE + LEGEND_LETTER * max(map(len, lines))
    columns = max(1, min(4, int(width / of_one), len(lines)))
    # A long legend makes the figure higher instead of the panels smaller.
    figure.set_size_inches(width, height + LEGEND_ROW * max(0, ceil(len(lines) / columns) - 2))
    legend = figure.legend(
        lines.values(),
        # The legend leaves out names that start with an underscore, so the names are set
        # afterwards.
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
    """Write a PNG, SVG or PDF file, depending on the ending of `target`. Equal numbers give equal
    files.

    Raises:
        RunError: if the file cannot be written; an old file of this name stays.
    """
    import matplotlib

    dates = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    # Text can be selected and searched, and a PDF contains its font. There are no dates and no
    # random ids.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "unmask", "pdf.fonttype": 42}):
        drawn = io.BytesIO()
        form = target.suffix.removeprefix(".").lower()
        figure.savefig(drawn, format=form, dpi=150, metadata=dates.get(target.suffix.lower()))
    _write(target, drawn.getvalue())


def check_target(target: Path, suffixes: Sequence[str] = SUFFIXES) -> None:
    """Check, before a figure is drawn, that its files overwrite nothing except figures and their
    tables.

    Args:
        target: file of the figure.
        suffixes: endings of the figure's files; its numbers are written as .csv.

    Raises:
        ConfigError: if the ending is not supported, or an existing file is not a figure or a
            figure's table.
    """
    if target.suffix.lower() not in SUFFIXES:
        raise ConfigError(
            f"--output {target} does not end in {', '.join(SUFFIXES)}. Use one of these endings; all three are written, and the "
            "numbers as .csv."
        )
    for suffix in suffixes:
        refuse_to_overwrite(target.with_suffix(suffix), target, _is_drawn, "a figure drawn by Matplotlib")
    refuse_to_overwrite(target.with_suffix(".csv"), target, _is_table, "a figure's table of numbers")


def _is_drawn(path: Path) -> bool:
    """Return whether a file names Matplotlib as its author, at the start (PNG and SVG) or at the
    end (PDF)."""
    with path.open("rb") as file:
        start = file.read(_MARGIN)
        file.seek(max(0, path.stat().st_size - _MARGIN))
        return b"Matplotlib" in start + file.read(_MARGIN)


def _is_table(path: Path) -> bool:
    """Return whether the last columns of a file are those of every figure's table."""
    with path.open("rb") as file:
        return file.readline(_MARGIN).rstrip().endswith(b",low,high")


def save_all(figure: Figure, target: Path) -> None:
    """Write the figure with each of the endings in `SUFFIXES`."""
    for suffix in SUFFIXES:
        save_figure(figure, target.with_suffix(suffix))


def save_table(target: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file.

    Raises:
        RunError: if the file cannot be written; an old file of this name stays.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows([_cell(value) for value in row] for row in rows)
    _write(target, text.getvalue().encode(errors="backslashreplace"))


def _cell(value: Any) -> Any:
    """Return a value that is safe in a spreadsheet: text that looks like a formula gets an
    apostrophe in front."""
    return f"'{value}" if isinstance(value, str) and value.lstrip().startswith(("=", "+", "-", "@")) else value


def _write(target: Path, content: bytes) -> None:
    with writing_explained(target, "Name another file with --output."):
        target.parent.mkdir(parents=True, exist_ok=True)
        with replaced_whole(target) as aside:
            aside.write_bytes(content)

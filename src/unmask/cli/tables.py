"""Tables on the terminal. If the terminal is too narrow for a table, each row is printed as a list
of its cells."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.text import Text

from unmask.core.text import visible

PIPE_WIDTH = 160
"""Width of a table in columns if it is not shown on a terminal."""


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> None:
    """Print a table to standard output.

    Args:
        columns: titles of the columns.
        rows: cells of each row. A cell between ** is bold.
        title: title above the table.
    """
    from rich.table import Table

    console, drawn = Console(), Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        # A pipe has no width, and rich would assume 80 columns.
        console = Console(width=PIPE_WIDTH)
    cells = [[visible(str(cell)) for cell in row] for row in rows]
    for name, *column in zip(columns, *cells, strict=True):
        # rich narrows the columns that may wrap without regard to their longest words.
        drawn.add_column(name, no_wrap=not any(" " in cell for cell in column))
    for row in cells:
        drawn.add_row(*map(_bold, row))
    if title:
        console.print(visible(title), style="italic", markup=False, highlight=False, soft_wrap=True)
    if _narrowest(columns, cells) <= console.width:
        console.print(drawn)
    else:
        _print_entries(console, columns, cells)


def _narrowest(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Return the smallest width, in columns of the terminal, at which a table cuts no word."""
    widths = [
        max(len(word) for cell in column for word in (cell.split() or [""]))
        for column in zip(columns, *rows, strict=True)
    ]
    return sum(widths) + 3 * (len(widths) - 1)


def _print_entries(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print each row as a heading with its cells below it."""
    for first, *rest in rows:
        console.print(Text(first, style="bold"), soft_wrap=True)
        for column, cell in zip(columns[1:], rest, strict=True):
            if cell:
                console.print(Padding(Text(f"{column}: {cell}"), (0, 0, 0, 2)))


def _bold(text: str) -> str:
    """Return a cell in rich's markup, in which only **text between stars** is bold."""
    inner = text.removeprefix("**").removesuffix("**")
    return f"[bold]{escape(inner)}[/]" if text == f"**{inner}**" else escape(text)

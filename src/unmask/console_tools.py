"""How the commands of `cli_tools` show what they found."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from unmask.console import PIPE_WIDTH, table
from unmask.errors import ConfigError
from unmask.recipe import COLLECTIONS, read_tree, shipped_recipes

if TYPE_CHECKING:
    from unmask.doctor import Check


def recipes_table(search: str = "") -> None:
    """Print the shipped recipes whose name holds `search`, one a line."""
    rows = [row for row in _recipes() if search in row[0]]
    if not rows:
        print(f'No shipped recipe has "{search}" in its name; unmask recipes lists all of them.')
        return
    table(["recipe", "command", "model", "task", "method"], rows)
    print("unmask train NAME [key=value ...] runs one; its file says where every value is from.")


def _recipes() -> Iterator[tuple[str, str, str, str, str]]:
    """Name, command, model, task and method of each."""
    for folder in ("", *COLLECTIONS, "compare"):
        for stem, path in shipped_recipes(folder).items():
            tree = read_tree(path)
            command = folder if folder == "compare" else "train" if "method" in tree else "pretrain"
            # The folder of a comparison belongs to its command, not to its name.
            name = f"{folder}/{stem}" if folder in COLLECTIONS else stem
            yield name, command, str(tree.get("model", "")), _named(tree, "task"), _named(tree, "method")


def _named(tree: dict[str, Any], key: str) -> str:
    """The task or method of a recipe, or how many a comparison has."""
    if key in tree:
        return str(tree[key]["type"])
    several = tree.get(f"{key}s", {})
    return ", ".join(several) if len(several) <= 3 else f"{len(several)} of them"


def bytes_of(text: str) -> float:
    """Bytes of a size such as 80GB, 80 or 79.2GiB; a bare number is GB.

    Raises:
        ConfigError: it is none.
    """
    match = re.fullmatch(r"\s*([\d.]+)\s*(GB|GiB|MB|MiB)?\s*", text, re.IGNORECASE)
    units = {"gb": 1e9, "gib": 2.0**30, "mb": 1e6, "mib": 2.0**20}
    try:
        if match:
            return float(match[1]) * units[(match[2] or "GB").lower()]
    except ValueError:
        pass
    raise ConfigError(f'--gpu-memory "{text}" is no size. Give one such as 80GB or 24GiB.')


def doctor_report(found: Iterable[Check]) -> bool:
    """Print checks as they come, coloured on a terminal; whether none failed."""
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
    colours = {"ok": "green", "note": "yellow", "failed": "bold red"}
    failed = []
    for check in found:
        console.print(
            Text(f"{check.status:<7}", style=colours[check.status]),
            Text(f"{check.name:<19}{check.detail}"),
            soft_wrap=True,
        )
        failed += [check.name] * (check.status == "failed")
    verdict = (
        f"{', '.join(failed)} failed: paste all of this into a bug report."
        if failed
        else "Everything that must work does."
    )
    console.print(verdict, highlight=False, soft_wrap=True)
    return not failed

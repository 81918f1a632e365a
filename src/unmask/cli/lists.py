"""What the commands print that list recipes and tasks, and that check a machine."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from unmask.cli.console import PIPE_WIDTH, default_of, table
from unmask.core.errors import ConfigError, DataError, nearest
from unmask.core.text import visible
from unmask.recipes.keys import find_class
from unmask.recipes.load import COLLECTIONS, find_shipped, make_task, read_tree, shipped_recipes, task_settings
from unmask.tasks import Task
from unmask.tasks.sourced import SourcedTask

if TYPE_CHECKING:
    from unmask.cli.doctor import Check
    from unmask.tasks.base import Split


EXAMPLE_SHOWN = 600
"""Characters of a column of an example row."""


def recipe_page(name: str) -> bool:
    """Print the YAML of the shipped recipe of this name; whether there is one."""
    for kind in ("", "compare"):
        with suppress(ConfigError):
            # A file of the user's with this name is not a shipped recipe.
            print(find_shipped(name, kind).read_text(encoding="utf-8"), end="")
            return True
    return False


def recipes_table(search: str = "") -> None:
    """Print the shipped recipes whose name holds `search`, one a line.

    Raises:
        ConfigError: there is none.
    """
    everything = list(_recipes())
    rows = [row for row in everything if search in row[0]]
    if not rows:
        near = nearest(search, [row[0] for row in everything])
        raise ConfigError(
            f'no shipped recipe has "{search}" in its name.{f" Did you mean {near[0]}?" if near else ""} '
            "unmask recipes lists all of them."
        )
    table(["recipe", "command", "model", "task", "method"], rows)
    print(
        "unmask recipes NAME prints one; unmask train NAME [key=value ...] runs it. Its file says where every value is from."
    )


def task_page(name: str, options: Sequence[str] = ()) -> None:
    """Print a task with its options and an example row.

    Raises:
        ConfigError: there is no such task, or it has no such option.
    """
    kind = str(task_settings(name)["type"])
    cls = find_class(Task, kind)  # type: ignore[type-abstract]
    missing = [key for key, field in cls.model_fields.items() if field.is_required()]
    if "name" in missing and kind != name:
        missing.remove("name")
    missing = [key for key in missing if not any(option.partition("=")[0] == key for option in options)]
    # An option that does not exist is told before a page of those that do.
    example = None if missing else make_task(name, options)
    print(f"{name}: {' '.join((cls.__doc__ or '').split())}\n")
    table(
        ["option", "default", "what it is"],
        [
            [
                key,
                default_of(field),
                " ".join((field.description or "").split()),
            ]
            for key, field in cls.model_fields.items()
            if key != "type"
        ],
    )
    print()
    if example is None:
        print(f"For an example row, set {' and '.join(missing)}: unmask tasks {kind} {missing[0]}=VALUE")
    elif issubclass(cls, SourcedTask) and not options:
        print(f"Its rows are read when it is used. For an example row, name a file: {_with_file(kind, cls)}")
    else:
        _print_example(example)


def _with_file(kind: str, cls: type[Task]) -> str:
    key = next((key for key in ("source", "path") if key in cls.model_fields), "source")
    return f"unmask tasks {kind} {key}=FILE"


def _print_example(task: Task) -> None:
    """A row of the task, column by column."""
    split: Split = "train"
    try:
        row = task.rows(split, 1)[0]
    except DataError:
        split = "test"
        row = task.rows(split, 1)[0]
    print(f"An example row ({split} split, seed 0):\n")
    for column, value in row.items():
        text = visible(str(value))
        print(f"{visible(column)}: {text[:EXAMPLE_SHOWN]}{' ...' if len(text) > EXAMPLE_SHOWN else ''}")


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
            Text(visible(f"{check.name:<19}{check.detail}")),
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

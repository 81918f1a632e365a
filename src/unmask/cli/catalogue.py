"""Commands that list what the package contains: methods, tasks, recipes and presets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pydantic import BaseModel

    from unmask.tasks import Task
    from unmask.tasks.base import Split

EXAMPLE_SHOWN = 600
"""Number of characters that are shown of each column of an example row."""

app = typer.Typer()


@app.command()
def methods(
    name: Annotated[
        str | None,
        typer.Argument(help="Name of a method, or path of a class as in my_method.py:Mine, to show with its options."),
    ] = None,
) -> None:
    """List the methods, or show one with its options and sources."""
    if name is None:
        print_methods()
    else:
        _print_method(name)


@app.command()
def tasks(
    name: Annotated[
        str | None,
        typer.Argument(help="Name of a task, or path of a class as in my_task.py:Mine, to show with its options."),
    ] = None,
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Options of the task, such as max_blanks=6.")
    ] = None,
) -> None:
    """List the tasks, or show one with its options and an example."""
    from unmask.cli.tables import table
    from unmask.tasks import TASKS
    from unmask.tasks.reasoning_gym import available

    if name is not None:
        print_task(name, options or ())
        return
    table(
        ["task", "description", "options"],
        [
            [
                name,
                (task.__doc__ or "").strip().splitlines()[0],
                ", ".join(key for key in task.model_fields if key != "type"),
            ]
            for name, task in TASKS.items()
        ],
    )
    count = len(available())
    typer.echo(
        f"reasoning_gym:NAME stands for {count} more tasks, such as reasoning_gym:chain_sum."
        if count
        else 'reasoning_gym:NAME stands for any task of that package. Install it: pip install "unmask[reasoning-gym]"'
    )


@app.command()
def recipes(
    name: Annotated[
        str, typer.Argument(help="Name of a recipe to print, or part of a name, such as llada, to list the matches.")
    ] = "",
) -> None:
    """List the shipped recipes, or print one.

    There are small recipes that run anywhere, the papers' settings (published/), and recipes for
    one GPU (single-gpu/). To make a copy that you can change: unmask recipes sudoku-tiny >
    mine.yaml
    """
    if not (name and _print_recipe(name)):
        _print_recipes(name)


@app.command()
def preset(
    name: Annotated[str, typer.Argument(help="How the model is sharded: ddp, zero2, zero3 or fsdp2.")],
) -> None:
    """Print the path of a shipped accelerate config file.

    Example: accelerate launch --config_file "$(unmask preset zero3)" --num_processes 8 -m unmask
    train RECIPE
    """
    from unmask.core.errors import ConfigError, unknown_name
    from unmask.recipes.load import shipped_recipes

    presets = shipped_recipes("accelerate")
    if name not in presets:
        raise ConfigError(unknown_name("preset", name, presets))
    typer.echo(presets[name])


def print_methods() -> None:
    """Print one method per line, grouped by what the methods score."""
    import shutil

    from unmask.cli.tables import table
    from unmask.methods import SCORED, methods_by_kind

    is_wide = shutil.get_terminal_size().columns >= 120
    for kind, methods in methods_by_kind().items():
        rows = [
            {
                "method": key,
                "arXiv": m.paper.removeprefix("arXiv:"),
                "what it does": m.summary,
                "unbiased": m.unbiased,
                "cost of a completion": m.cost,
                "needs": m.needed(),
            }
            for key, m in methods.items()
        ]
        columns = [column for column in rows[0] if is_wide or column != "what it does"]
        table(columns, [[row[column] for column in columns] for row in rows], f"{kind.capitalize()}: {SCORED[kind]}")
        print()
    print(
        "f: a forward pass; f+b: a forward and a backward pass. The T forward passes of the rollout are not included.\n"
        "Two passes: each f+b takes one more f if the views of a completion do not fit into one forward (views_per_forward). For "
        "dmpo, dtrpo, stable_drl and vrpo, whose losses compare completions, that holds for all views of an update.\n"
        "`unmask methods NAME` shows the options of a method, and docs/methods/NAME.md its equations. "
        "docs/methods/family-tree.md says which methods are settings of others."
    )


def _print_method(name: str) -> None:
    """Print a method and all its options.

    Args:
        name: name of the method, or path of its class.

    Raises:
        ConfigError: there is no such method.
    """
    from unmask.methods import Method
    from unmask.recipes.keys import find_class

    method = find_class(Method, name)  # type: ignore[type-abstract]
    print(f"{name} ({method.paper or 'no paper stated'}): {method.summary}\n")
    for title, text in (
        ("scores", method.scores),
        ("estimates", method.estimates),
        ("unbiased", method.unbiased),
        ("cost", method.cost),
        ("needs", method.needed()),
    ):
        print(f"{title + ':':11}{text}")
    print()
    _print_options(method)


def _print_options(cls: type[BaseModel]) -> None:
    """Print a table of the options of a method or a task."""
    from unmask.cli.tables import table

    rows = []
    for key, field in cls.model_fields.items():
        default = "(required)" if field.is_required() else field.get_default(call_default_factory=True)
        rows.append([key, default, " ".join((field.description or "").split())])
    table(["option", "default", "what it is"], [row for row in rows if row[0] != "type"])


def print_task(name: str, options: Sequence[str] = ()) -> None:
    """Print a task with its options and an example row.

    Args:
        name: name of the task, or path of its class.
        options: options of the task as key=value.

    Raises:
        ConfigError: there is no such task, or it has no such option.
    """
    from unmask.recipes.keys import find_class
    from unmask.recipes.load import make_task, task_settings
    from unmask.tasks import Task
    from unmask.tasks.sourced import SourcedTask

    kind = str(task_settings(name)["type"])
    cls = find_class(Task, kind)  # type: ignore[type-abstract]
    missing = [key for key, field in cls.model_fields.items() if field.is_required()]
    if "name" in missing and kind != name:
        missing.remove("name")
    missing = [key for key in missing if not any(option.partition("=")[0] == key for option in options)]
    # An unknown option is an error before anything is printed.
    example = None if missing else make_task(name, options)
    print(f"{name}: {' '.join((cls.__doc__ or '').split())}\n")
    _print_options(cls)
    print()
    if example is None:
        print(f"For an example row, set {' and '.join(missing)}: unmask tasks {kind} {missing[0]}=VALUE")
    elif issubclass(cls, SourcedTask) and not options:
        key = next((key for key in ("source", "path") if key in cls.model_fields), "source")
        print(
            f"The task reads its rows when it is used. For an example row, name a file: unmask tasks {kind} {key}=FILE"
        )
    else:
        _print_example(example)


def _print_example(task: Task) -> None:
    """Print one row of a task, column by column."""
    from unmask.core.errors import DataError
    from unmask.core.text import visible

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


def _print_recipe(name: str) -> bool:
    """Print the YAML file of a shipped recipe.

    Returns:
        True if there is a recipe of this name.
    """
    from unmask.core.errors import ConfigError
    from unmask.recipes.load import find_shipped

    for kind in ("", "compare"):
        with suppress(ConfigError):
            # Files of the user with the same name are not shipped recipes.
            print(find_shipped(name, kind).read_text(encoding="utf-8"), end="")
            return True
    return False


def _print_recipes(search: str = "") -> None:
    """Print one shipped recipe per line.

    Args:
        search: part of the name of the recipes to print.

    Raises:
        ConfigError: no name contains `search`.
    """
    from unmask.cli.tables import table
    from unmask.core.errors import ConfigError, nearest

    all_rows = list(_recipes())
    rows = [row for row in all_rows if search in row[0]]
    if not rows:
        near = nearest(search, [row[0] for row in all_rows])
        raise ConfigError(
            f'no shipped recipe has "{search}" in its name.{f" Did you mean {near[0]}?" if near else ""} '
            "`unmask recipes` lists all recipes."
        )
    table(["recipe", "command", "model", "task", "method"], rows)
    print(
        "`unmask recipes NAME` prints a recipe with the source of every value, and `unmask train NAME [key=value ...]` runs it."
    )


def _recipes() -> Iterator[tuple[str, str, str, str, str]]:
    """Yield name, command, model, task and method of each shipped recipe."""
    from unmask.recipes.load import COLLECTIONS, read_tree, shipped_recipes

    for folder in ("", *COLLECTIONS, "compare"):
        for stem, path in shipped_recipes(folder).items():
            tree = read_tree(path)
            command = folder if folder == "compare" else "train" if "method" in tree else "pretrain"
            # The folder of comparisons is not part of their names.
            name = f"{folder}/{stem}" if folder in COLLECTIONS else stem
            yield name, command, str(tree.get("model", "")), _named(tree, "task"), _named(tree, "method")


def _named(tree: dict[str, Any], key: str) -> str:
    """Return a text that names the task or the method of a recipe, or the tasks or the methods of a
    comparison."""
    if key in tree:
        return str(tree[key]["type"])
    several = tree.get(f"{key}s", {})
    return ", ".join(several) if len(several) <= 3 else str(len(several))

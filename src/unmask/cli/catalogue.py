"""Commands that list what the package contains: methods, tasks, recipes and presets."""

from __future__ import annotations

from typing import Annotated

import typer

catalogue = typer.Typer()


@catalogue.command()
def methods(
    name: Annotated[
        str | None,
        typer.Argument(help="Name of a method, or path of a class as in my_method.py:Mine, to show with its options."),
    ] = None,
) -> None:
    """List the methods, or show one with its options and sources."""
    from unmask.cli.console import method_page, methods_table

    if name is None:
        methods_table()
    else:
        method_page(name)


@catalogue.command()
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
    from unmask.cli.console import table
    from unmask.cli.lists import task_page
    from unmask.tasks import TASKS
    from unmask.tasks.reasoning_gym import available

    if name is not None:
        task_page(name, options or ())
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


@catalogue.command()
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
    from unmask.cli.lists import recipe_page, recipes_table

    if not (name and recipe_page(name)):
        recipes_table(name)


@catalogue.command()
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

"""The commands that list what is shipped: methods, tasks, recipes and presets."""

from __future__ import annotations

from typing import Annotated

import typer

catalogue = typer.Typer()


@catalogue.command()
def methods(
    name: Annotated[
        str | None,
        typer.Argument(help="Show this method with all its options: a name, or a path as in my_method.py:Mine."),
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
        typer.Argument(
            help="Show this task with all its options and an example row: a name, or a path as in my_task.py:Mine."
        ),
    ] = None,
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Options of the task, such as max_blanks=6.")
    ] = None,
) -> None:
    """List the tasks, or show one with its options and an example row."""
    from unmask.cli.console import table
    from unmask.cli.lists import task_page
    from unmask.tasks import TASKS
    from unmask.tasks.reasoning_gym import available

    if name is not None:
        task_page(name, options or ())
        return
    table(
        ["task", "what it is", "options"],
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
        f"reasoning_gym:NAME is any of {count} more, such as reasoning_gym:chain_sum."
        if count
        else 'reasoning_gym:NAME is any task of that package: pip install "unmask[reasoning-gym]"'
    )


@catalogue.command()
def recipes(
    name: Annotated[
        str, typer.Argument(help="Print the recipe of this name, or list those whose name holds this, such as llada.")
    ] = "",
) -> None:
    """List the shipped recipes, or print one.

    Small ones to run anywhere, the papers' settings (published/), and those for one GPU (single-gpu/). To change a copy:
    unmask recipes sudoku-tiny > mine.yaml
    """
    from unmask.cli.lists import recipe_page, recipes_table

    if not (name and recipe_page(name)):
        recipes_table(name)


@catalogue.command()
def preset(
    name: Annotated[str, typer.Argument(help="ddp, zero2, zero3 or fsdp2.")],
) -> None:
    """Print the path of a shipped accelerate config file.

    Such as: accelerate launch --config_file "$(unmask preset zero3)" --num_processes 8 -m unmask train RECIPE
    """
    from unmask.core.errors import ConfigError, unknown_name
    from unmask.recipes.schema import shipped_recipes

    presets = shipped_recipes("accelerate")
    if name not in presets:
        raise ConfigError(unknown_name("preset", name, presets))
    typer.echo(presets[name])

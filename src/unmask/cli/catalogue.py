"""Commands that list what there is: methods, tasks, recipes."""

from __future__ import annotations

from typing import Annotated

import typer

catalogue = typer.Typer()


@catalogue.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="Show this method with all its options.")] = None,
) -> None:
    """List the methods, or show one with its options and sources."""
    from unmask.console import method_page, methods_table
    from unmask.errors import ConfigError, unknown_name
    from unmask.methods import METHODS

    if name is None:
        methods_table()
    elif name in METHODS:
        method_page(name)
    else:
        raise ConfigError(unknown_name("method", name, METHODS))


@catalogue.command()
def tasks() -> None:
    """List the tasks."""
    from unmask.console import table
    from unmask.tasks import TASKS
    from unmask.tasks.reasoning_gym import available

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
    search: Annotated[str, typer.Argument(help="Only those whose name holds this, such as llada or espo.")] = "",
) -> None:
    """List the shipped recipes.

    Small ones to run anywhere, the papers' settings (published/), and those for one GPU (single-gpu/).
    """
    from unmask.console_tools import recipes_table

    recipes_table(search)

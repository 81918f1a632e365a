"""Commands that look at what there is, and change nothing: recipes, estimate, doctor."""

from __future__ import annotations

from typing import Annotated

import typer

tools = typer.Typer(rich_markup_mode=None)


@tools.command()
def recipes(
    search: Annotated[str, typer.Argument(help="Only those whose name holds this, such as llada or espo.")] = "",
) -> None:
    """List the shipped recipes: small ones to run anywhere, the papers' settings (published/), and those for one GPU."""
    from unmask.console_tools import recipes_table

    recipes_table(search)

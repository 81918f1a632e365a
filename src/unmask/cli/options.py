"""What several commands share: arguments and options, errors about them, and how text is printed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from unmask.core.text import visible

if TYPE_CHECKING:
    from pydantic import BaseModel

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change, such as optim.learning_rate=3e-4."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint of the run folder.")]
Model = Annotated[str, typer.Argument(help="Folder or hub id of a masked diffusion model.")]
Order = Annotated[
    str, typer.Option(help="Order in which positions are committed: a name, or a path as in my_order.py:mine.")
]
TaskOptions = Annotated[
    list[str] | None, typer.Option("--option", help="An option of the task, as key=value; may be repeated.")
]


def say(text: str, err: bool = False) -> None:
    """Print text that may quote files, models and rows: what would control the terminal is spelt out."""
    typer.echo(visible(text), err=err)


class SettingsCommand(TyperCommand):
    """A command that takes key=value settings: an option that it lacks is answered with the setting that was meant."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        from unmask.core.errors import nearest

        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            # typer brings its own copy of click in some versions and imports it in others, so the class has no fixed home.
            name = getattr(error, "option_name", None)
            if type(error).__name__ == "NoSuchOption" and name:
                options = [option for parameter in self.params for option in parameter.opts]
                own = [option for option in options if option.rstrip("s") == name.replace("_", "-").rstrip("s")]
                hint = f"Did you mean {own[0]}?" if own else _hint(self.name or "", name, given)
                error.message += f". {hint}" if hint else ""  # type: ignore[attr-defined]
                # typer names whatever option shares a few letters.
                error.possibilities = [] if hint else nearest(name, options)  # type: ignore[attr-defined]
            raise


def _hint(command: str, option: str, given: list[str]) -> str | None:
    from unmask.recipes.keys import counterpart

    name, _, value = option.partition("=")
    for place, word in enumerate(given):
        if word == name and given[place + 1 : place + 2] and not given[place + 1].startswith("--"):
            value = given[place + 1]
        elif word.startswith(f"{name}="):
            value = word.partition("=")[2]
    return counterpart(_kind_of(command), name, value or "VALUE")


def _kind_of(command: str) -> type[BaseModel]:
    """The kind of recipe whose settings a command takes."""
    from unmask.recipes.evaluation import EvalRecipe
    from unmask.recipes.schema import PretrainRecipe, TrainRecipe
    from unmask.trainer.comparison.recipe import CompareRecipe

    kinds: dict[str, type[BaseModel]] = {"pretrain": PretrainRecipe, "compare": CompareRecipe, "eval": EvalRecipe}
    return kinds.get(command, TrainRecipe)


def numbers(text: str, kind: type[Any], option: str) -> list[Any]:
    """The numbers of a comma-separated option, each once."""
    from unmask.core.errors import ConfigError

    try:
        return list(dict.fromkeys(kind(part.strip()) for part in text.split(",") if part.strip()))
    except ValueError:
        raise ConfigError(f'{option} "{text}" is not a comma-separated list of numbers.') from None

"""Arguments and options that several commands share, errors about them, and printing of text."""

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
Resume = Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint in the run folder.")]
Model = Annotated[str, typer.Argument(help="Folder or hub id of a masked diffusion model.")]
Order = Annotated[
    str,
    typer.Option(
        help="Remasking strategy, which decides the positions that a step commits: a name, or a path as in my_order.py:mine."
    ),
]
BlockLength = Annotated[
    int | None, typer.Option(help="Block length in tokens; default the completion length (a single block).")
]
Cache = Annotated[
    str,
    typer.Option(
        help="Approximate cache of keys and values in a block: off, prefix (of what precedes the block) or dual (of all else)."
    ),
]
Schedule = Annotated[
    str,
    typer.Option(
        help="Schedule, which decides how many positions a step commits: fixed, threshold=0.9, factor=1 or entropy_bound=0.3. "
        "Adaptive ones take --steps as an upper limit."
    ),
]
TaskOptions = Annotated[
    list[str] | None, typer.Option("--option", help="Option of the task, as key=value; can be repeated.")
]


def say(text: str, err: bool = False) -> None:
    """Print text that may quote files, models and examples, with control characters made
    visible."""
    typer.echo(visible(text), err=err)


class SettingsCommand(TyperCommand):
    """Command that takes key=value settings. The error for an unknown option names the setting that
    has the same meaning."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        from unmask.core.errors import nearest

        words = list(args)
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            # Some versions of typer contain a copy of click and others import it, so the class is
            # compared by name.
            name = getattr(error, "option_name", None)
            if type(error).__name__ == "NoSuchOption" and name:
                options = [option for parameter in self.params for option in parameter.opts]
                own = [option for option in options if option.rstrip("s") == name.replace("_", "-").rstrip("s")]
                hint = f"Did you mean {own[0]}?" if own else _hint(self.name or "", name, words)
                error.message += f". {hint}" if hint else ""  # type: ignore[attr-defined]
                # typer suggests any option that shares a few letters.
                error.possibilities = [] if hint else nearest(name, options)  # type: ignore[attr-defined]
            raise


def _hint(command: str, option: str, words: list[str]) -> str | None:
    """Return a sentence with the setting to use instead of an unknown option, with its value on the
    command line."""
    from unmask.recipes.keys import counterpart

    name, _, value = option.partition("=")
    for i, word in enumerate(words):
        if word == name and words[i + 1 : i + 2] and not words[i + 1].startswith("--"):
            value = words[i + 1]
        elif word.startswith(f"{name}="):
            value = word.partition("=")[2]
    return counterpart(_kind_of(command), name, value or "VALUE")


def _kind_of(command: str) -> type[BaseModel]:
    """Return the kind of recipe whose settings a command takes."""
    from unmask.recipes.evaluation import EvalRecipe
    from unmask.recipes.schema import PretrainRecipe, TrainRecipe
    from unmask.trainer.comparison.recipe import CompareRecipe

    kinds: dict[str, type[BaseModel]] = {"pretrain": PretrainRecipe, "compare": CompareRecipe, "eval": EvalRecipe}
    return kinds.get(command, TrainRecipe)


def numbers(text: str, kind: type[Any], option: str) -> list[Any]:
    """Return the values of a comma-separated option without duplicates."""
    from unmask.core.errors import ConfigError

    try:
        values = list(dict.fromkeys(kind(part.strip()) for part in text.split(",") if part.strip()))
    except ValueError:
        raise ConfigError(f'{option} "{text}" is not a list of numbers. Separate numbers by commas.') from None
    if text and not values:
        raise ConfigError(f'{option} "{text}" names nothing. Give one or more values, separated by commas.')
    return values

"""Arguments and options that several commands take."""

from __future__ import annotations

from typing import Annotated, Any

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change, such as optim.learning_rate=3e-4."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint of the run folder.")]
Model = Annotated[str, typer.Argument(help="Folder or hub id of a masked diffusion model.")]
TaskOptions = Annotated[
    list[str] | None, typer.Option("--option", help="An option of the task, as key=value; may be repeated.")
]


def numbers(text: str, kind: type[Any], option: str) -> list[Any]:
    """The numbers of a comma-separated option, each once."""
    from unmask.errors import ConfigError

    try:
        return list(dict.fromkeys(kind(part.strip()) for part in text.split(",") if part.strip()))
    except ValueError:
        raise ConfigError(f'{option} "{text}" is not a comma-separated list of numbers.') from None

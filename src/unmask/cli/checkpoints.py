"""Commands for checkpoints: models, convert, merge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unmask.cli.options import say

checkpoints = typer.Typer()


@checkpoints.command()
def models(
    name: Annotated[
        str | None, typer.Argument(help="Show this family with its checkpoints and what to know of it.")
    ] = None,
) -> None:
    """List the model families, or show one with its checkpoints."""
    from unmask.cli.console import families_table, family_page
    from unmask.core.errors import ConfigError, unknown_name
    from unmask.models.families import FAMILIES

    if name is None:
        families_table()
    elif name in FAMILIES:
        family_page(name)
    else:
        raise ConfigError(unknown_name("family", name, FAMILIES))


@checkpoints.command()
def convert(
    source: Annotated[str, typer.Argument(help="Folder or hub id of a checkpoint of any family (`unmask models`).")],
    destination: Annotated[Path, typer.Argument(help="Where to: a folder that does not exist yet.")],
    to: Annotated[
        str, typer.Option(help="native; original: back to the layout that its family publishes; or a family's name.")
    ] = "native",
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; default as the tensors are.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Take the tokenizer from this folder or hub id, where the source has none.")
    ] = None,
    block_length: Annotated[
        int | None, typer.Option(min=2, help="Of block diffusion, where the source's config does not say it.")
    ] = None,
) -> None:
    """Convert a checkpoint to a native transformers class, or back.

    Reads data files only: nothing that the checkpoint brings is run. The destination is written whole or not at all.
    """
    from unmask.models import convert as run

    family = run(
        source,
        destination.expanduser(),
        to=to,
        dtype=dtype,
        tokenizer=tokenizer,
        block_length=block_length,
        tell=lambda line: say(line, err=True),
    )
    if to == "native":
        say(f"{family.title} as {family.native_class}: {destination}")
    else:
        say(
            f"{family.title} in its own layout: {destination}\n"
            "Its code is not carried: to run it there, copy the .py files of the release beside it. The tokenizer stays native."
        )


@checkpoints.command()
def merge(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder of a LoRA adapter, of a run, or of a checkpoint of a run (RUN/checkpoints/step-N)."
        ),
    ],
    destination: Annotated[Path, typer.Argument(help="Where to: a folder that does not exist yet.")],
    base: Annotated[
        str | None, typer.Option(help="Folder or hub id of the model under it; default the one that the adapter names.")
    ] = None,
) -> None:
    """Make a plain model folder of a LoRA adapter, or of a checkpoint of a run.

    A run's final/ is merged already. This is for a run that has not ended, for an adapter that travelled alone, or for another
    base: say, the same weights in another precision.
    """
    from unmask.models.adapters import merge as run
    from unmask.models.convert import written_aside

    source, destination = source.expanduser(), destination.expanduser()
    with written_aside(destination) as aside:
        done = run(source, aside, base)
    say(f"{done}: {destination}")

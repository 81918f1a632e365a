"""Commands for model checkpoints: models, convert and merge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unmask.cli.options import say

app = typer.Typer()


@app.command()
def models(
    name: Annotated[str | None, typer.Argument(help="Name of a family to show with its checkpoints and notes.")] = None,
) -> None:
    """List the model families, or show one with its checkpoints."""
    from unmask.core.errors import ConfigError, unknown_name
    from unmask.models.families import FAMILIES

    if name is None:
        print_families()
    elif name in FAMILIES:
        _print_family(name)
    else:
        raise ConfigError(unknown_name("family", name, FAMILIES))


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="Folder or hub id of a checkpoint of any family (`unmask models`).")],
    destination: Annotated[Path, typer.Argument(help="Folder to write; it must not exist yet.")],
    to: Annotated[
        str,
        typer.Option(
            help="Target layout: native, original (the layout in which the family was released), or a family's name."
        ),
    ] = "native",
    dtype: Annotated[
        str | None, typer.Option(help="Data type to write: float32, bfloat16 or float16; default the source's.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or hub id of a tokenizer, for a source without one.")
    ] = None,
    block_length: Annotated[
        int | None,
        typer.Option(min=2, help="Block length of a block diffusion model; default the one in its config or its name."),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Commit, branch or tag of a source on the hub; default its newest commit.")
    ] = None,
) -> None:
    """Convert a checkpoint to a native transformers class, or back.

    Only data files are read; code in the checkpoint is never run. If the conversion fails, no
    destination is left behind.
    """
    from unmask.models import convert as run

    family = run(
        source,
        destination.expanduser(),
        to=to,
        dtype=dtype,
        tokenizer=tokenizer,
        block_length=block_length,
        revision=revision,
        tell=lambda line: say(line, err=True),
    )
    if to == "native":
        say(f"{family.title} as {family.native_class}: {destination}")
    else:
        say(
            f"{family.title} in its own layout: {destination}\n"
            "The model's code is not included. To run the model with that code, copy the .py files of the release into this "
            "folder. The tokenizer keeps its native form."
        )


@app.command()
def merge(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder of a LoRA adapter, of a run, or of a checkpoint of a run (RUN/checkpoints/step-N)."
        ),
    ],
    destination: Annotated[Path, typer.Argument(help="Folder to write; it must not exist yet.")],
    base: Annotated[
        str | None,
        typer.Option(help="Folder or hub id of the adapter's base model; default the one that the adapter names."),
    ] = None,
) -> None:
    """Merge a LoRA adapter or a run's checkpoint into a model.

    The final/ folder of a run is merged already. Use this command for a run that has not finished,
    for a separate adapter, or for another base model, such as the same weights in another
    precision.
    """
    from unmask.models.adapter_folders import merge as run
    from unmask.models.convert import written_aside

    source, destination = source.expanduser(), destination.expanduser()
    with written_aside(destination) as aside:
        done = run(source, aside, base)
    say(f"{done}: {destination}")


def print_families() -> None:
    """Print the model families and their checkpoints."""
    from unmask.cli.tables import table
    from unmask.models.families import FAMILIES

    table(
        ["family", "what it is", "native class", "head", "blocks", "checked here by"],
        [
            [
                name,
                f"{family.title}, {family.paper}",
                family.native_class,
                "shifted" if family.logit_shift else "",
                "causal" if family.block_causal else "",
                family.checked,
            ]
            for name, family in FAMILIES.items()
        ],
    )
    print()
    table(
        ["checkpoint", "family", "parameters", "licence"],
        [[c.hub_id, name, c.parameters, c.licence] for name, family in FAMILIES.items() for c in family.checkpoints],
    )
    print(
        "\n`unmask models NAME` shows a family, and `unmask convert CHECKPOINT FOLDER` converts a checkpoint. "
        "Code in a checkpoint is never run."
    )


def _print_family(name: str) -> None:
    """Print a model family with its checkpoints, tokens and pitfalls."""
    from unmask.cli.tables import table
    from unmask.models.families import FAMILIES

    family = FAMILIES[name]
    ids = ", ".join(f"{role} {i}" for role, i in family.token_ids.items())
    blocks = "block-causal" if family.block_causal else "none: every position sees every other"
    print(f"{name}: {family.title} ({family.paper})\n")
    for title, text in (
        ("native class", family.native_class),
        ("original", f"{family.architecture}, model_type {family.model_type}" if family.architecture else "native too"),
        ("tensors", "renamed" if family.keys else "under the same names"),
        ("tokens", ", ".join(family.tokens.values()) + (f" ({ids})" if ids else "") or "its own"),
        ("chat template", family.chat_template),
        ("head", "shifted: a position has the logits of the next one" if family.logit_shift else "not shifted"),
        ("blocks", blocks),
        ("LoRA targets", ", ".join(family.lora_targets)),
        ("checked by", family.checked),
    ):
        print(f"{title + ':':15}{text}")
    print()
    if family.checkpoints:
        table(
            ["checkpoint", "parameters", "blocks of", "licence"],
            [[c.hub_id, c.parameters, c.block_length or "", c.licence] for c in family.checkpoints],
        )
        print()
    for note in family.notes:
        print(f"- {note}")

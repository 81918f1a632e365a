"""Commands that say what a run will take and whether this machine is sound: estimate, doctor."""

from __future__ import annotations

from typing import Annotated

import typer

from unmask.cli.options import Overrides, SettingsCommand, say

advice = typer.Typer()


@advice.command(cls=SettingsCommand)
def estimate(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name, or a YAML file.")],
    overrides: Overrides = None,
    gpu_memory: Annotated[str, typer.Option(help="Of one GPU, such as 80GB: says whether it fits.")] = "",
    flops: Annotated[float | None, typer.Option(min=1.0, help="FLOP/s that a process sustains, such as 4e14.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes that share a step, a GPU each.")] = 1,
    preset: Annotated[str, typer.Option(help="How they share the model: none, ddp, zero2, zero3, fsdp2.")] = "none",
    prompt_length: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a prompt; default the task's, or 200.")
    ] = None,
    shape: Annotated[
        str, typer.Option(help="Of a model that is not here: layers=32,width=4096,heads=32,ffn=12288,vocab=126464.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a recipe takes in memory and time, before you rent.

    Parameters, memory by part and the time of a step, with the arithmetic.

    Needs no weights: shapes of the released models are known, others are read from their config.json or given by --shape.
    """
    import json

    from unmask.cli.estimate import estimate as run
    from unmask.cli.estimate.text import described
    from unmask.cli.lists import bytes_of
    from unmask.recipes.schema import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    room = bytes_of(gpu_memory) if gpu_memory else None
    found = run(
        loaded,
        shape=shape,
        prompt_length=prompt_length,
        processes=processes,
        preset=preset,
        flops=flops,
        on_gpu=room is not None,
    )
    say(json.dumps(found.summary(), indent=1) if as_json else described(found, room))


@advice.command()
def doctor(
    hub: Annotated[bool, typer.Option("--hub", help="Also ask whether the model hub can be reached.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check this machine and this installation, for a bug report.

    Versions, devices, disk, sandboxes, and small tests of what training rests on.

    Ends with code 1 if anything that must work does not.
    """
    import json

    from unmask.cli.doctor import checks
    from unmask.cli.lists import doctor_report

    if as_json:
        found = list(checks(hub=hub))
        typer.echo(json.dumps([check.summary() for check in found], indent=1))
        good = all(check.status != "failed" for check in found)
    else:
        good = doctor_report(checks(hub=hub))
    if not good:
        raise typer.Exit(1)

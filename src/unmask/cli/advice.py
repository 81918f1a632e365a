"""Commands to use before a run: estimate its memory and time, and check this machine."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from unmask.cli.options import Overrides, SettingsCommand, say

app = typer.Typer()


@app.command(cls=SettingsCommand)
def estimate(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name, or a YAML file.")],
    overrides: Overrides = None,
    gpu_memory: Annotated[
        str, typer.Option(help="Memory of one GPU, such as 80GB, to check whether the run fits.")
    ] = "",
    flops: Annotated[
        float | None,
        typer.Option(min=1.0, help="FLOP/s that one process sustains, such as 4e14; used to estimate the time."),
    ] = None,
    rollout_flops: Annotated[
        float | None, typer.Option(min=1.0, help="The same in rollouts and evaluations, if it differs.")
    ] = None,
    bandwidth: Annotated[
        float | None,
        typer.Option(min=1.0, help="Bytes per second to and from memory, such as 2.85e12; default FLOP/s / 140."),
    ] = None,
    gpu_price: Annotated[
        float | None, typer.Option(min=0.0, help="Price of one GPU for an hour, in any currency.")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Number of processes, one GPU each.")] = 1,
    preset: Annotated[
        str, typer.Option(help="How the model is sharded over processes: none, ddp, zero2, zero3 or fsdp2.")
    ] = "none",
    prompt_length: Annotated[
        int | None, typer.Option(min=1, help="Length of a prompt in tokens; default the task's, or 200.")
    ] = None,
    shape: Annotated[
        str,
        typer.Option(
            help="Shape of a model without a config.json: layers=32,width=4096,heads=32,ffn=12288,vocab=126464."
        ),
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Estimate the memory, the time and the price of a run.

    The command shows the number of parameters, the memory by part, the time of a training step, and
    the GPU-hours of the whole run with its evaluations, each with its calculation.

    No weights are needed. The shapes of released models are built in; other shapes come from a
    config.json or from --shape.
    """
    import json

    from unmask.cli.estimate import estimate as run
    from unmask.cli.estimate.text import described
    from unmask.recipes.load import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    available = _bytes(gpu_memory) if gpu_memory else None

    result = run(
        loaded,
        shape=shape,
        prompt_length=prompt_length,
        processes=processes,
        preset=preset,
        flops=flops,
        rollout_flops=rollout_flops,
        bandwidth=bandwidth,
        price=gpu_price,
        on_gpu=available is not None,
    )
    say(json.dumps(result.summary(), indent=1) if as_json else described(result, available))


@app.command()
def doctor(
    hub: Annotated[bool, typer.Option("--hub", help="Also check whether the Hugging Face hub can be reached.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check this machine and this installation.

    Shows versions, devices, disk space and sandboxes, and runs small tests of the parts that
    training needs. Add the output to a bug report.

    The exit code is 1 if a required check fails.
    """
    import json

    from unmask.cli.doctor import checks, print_checks

    if as_json:
        results = list(checks(hub=hub))
        typer.echo(json.dumps([check.summary() for check in results], indent=1))
        passed = all(check.status != "failed" for check in results)
    else:
        passed = print_checks(checks(hub=hub))
    if not passed:
        raise typer.Exit(1)


def _bytes(text: str) -> float:
    """Return the bytes of a size such as 80GB, 80 or 79.2GiB; a bare number is in GB.

    Raises:
        ConfigError: the text is not a size.
    """
    from unmask.core.errors import ConfigError

    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(GB|GiB|MB|MiB)?\s*", text, re.IGNORECASE)
    if not match:
        raise ConfigError(f'--gpu-memory "{text}" is not a size. Give one such as 80GB or 24GiB.')
    units = {"gb": 1e9, "gib": 2.0**30, "mb": 1e6, "mib": 2.0**20}
    return float(match[1]) * units[(match[2] or "GB").lower()]

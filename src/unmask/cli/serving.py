"""Commands for rollouts that are sampled elsewhere: serve and import-rollouts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unmask.cli.options import Model, Order, TaskOptions, say

if TYPE_CHECKING:
    from unmask.trainer.imported import ImportedRollout

app = typer.Typer()


@app.command()
def serve(
    model: Model,
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on. Everyone who can reach it can use the model: 0.0.0.0 is every machine."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for any free one.")] = 30000,
    weights_dir: Annotated[
        Path | None,
        typer.Option(help="Folder from which new weights may be loaded; default none, and updates are refused."),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Precision of the weights: float32, bfloat16, or auto for that of the model's files.")
    ] = "auto",
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum number of completions denoised together; default as many as fit, up to 256."),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of tokens denoised together; replaces --batch-size.")
    ] = None,
    max_rows: Annotated[int, typer.Option(min=1, help="Maximum number of completions of a request.")] = 4096,
    max_waiting: Annotated[int, typer.Option(min=1, help="Maximum number of requests that wait for the model.")] = 16,
    max_megabytes: Annotated[int, typer.Option(min=1, help="Maximum size of a request in megabytes.")] = 64,
    timeout: Annotated[float, typer.Option(min=0.1, help="Time limit of a request in seconds.")] = 3600.0,
) -> None:
    """Answer rollout requests over HTTP, in SGLang's format.

    Training uses the server by rollout_engine.type=http and rollout_engine.urls=[http://HOST:PORT].
    It needs: pip install "unmask[serve]"
    """
    from unmask.core.errors import ConfigError
    from unmask.models import load_model
    from unmask.models.device import default_device
    from unmask.sampling.engine import BatchLimits
    from unmask.sampling.remote.app import ServerLimits, check_installed, is_loopback, listening_socket
    from unmask.sampling.remote.app import serve as run
    from unmask.sampling.remote.served import ServedModel

    check_installed()
    if dtype not in ("auto", "float32", "bfloat16"):
        raise ConfigError(f"--dtype {dtype} is not known. Use float32, bfloat16 or auto.")
    if weights_dir is not None and not weights_dir.expanduser().is_dir():
        raise ConfigError(
            f"--weights-dir {weights_dir} is not a folder. Create it first; training writes the weights there."
        )
    bound = listening_socket(host, port)
    policy = load_model(model, dtype, device=default_device())
    folder, forward = weights_dir and weights_dir.expanduser(), BatchLimits(batch_size, max_tokens)
    served = ServedModel(policy, model, folder, max_rows=max_rows, limits=forward)
    if not is_loopback(bound):
        say(f"warning: {host} can be reached from other machines, and there is no password.", err=True)
    shown = f"[{host}]" if ":" in host else host
    say(f"listening on http://{shown}:{bound.getsockname()[1]}")
    run(served, bound, ServerLimits(max_megabytes * 10**6, max_waiting, timeout))


@app.command(name="import-rollouts")
def import_rollouts_(
    model: Model,
    file: Annotated[
        Path, typer.Argument(help="Recorded requests and responses in SGLang's format, one JSON object a line.")
    ],
    output: Annotated[Path, typer.Argument(help="File to write (.safetensors), such as a saved rollout of a run.")],
    task: Annotated[
        str | None,
        typer.Option(help="Task whose reward functions score the completions; default the rewards in the file."),
    ] = None,
    option: TaskOptions = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Number of denoising steps; default as many as the answers need.")
    ] = None,
    order: Order = "low_confidence",
    schedule: Annotated[
        str,
        typer.Option(
            help="Rule for the number of positions that a step of the engine commits, such as threshold=0.95."
        ),
    ] = "fixed",
    block_length: Annotated[
        int | None,
        typer.Option(min=1, help="Block length of the engine; default the model's, or the whole completion."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of later random choices, such as that of selected steps.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Number of states in a forward pass.")] = 64,
) -> None:
    """Turn rollouts that another engine recorded into a saved rollout.

    The model computes the log-probabilities and entropies again, from the tokens and the step maps;
    those of the engine are only compared. The import is refused if the answers cannot be a rollout
    of this model.
    """
    from unmask.core.errors import ConfigError
    from unmask.models import load_model
    from unmask.models.device import default_device
    from unmask.recipes.load import make_task
    from unmask.rewards.scorer import Scorer
    from unmask.trainer.imported import import_rollouts

    file, output = file.expanduser(), output.expanduser()
    if output.suffix != ".safetensors":
        raise ConfigError(f"{output} does not end in .safetensors. Name another file to write.")
    if output.exists():
        raise ConfigError(f"{output} exists already. Remove it, or name another file to write.")
    scorer = Scorer(make_task(task, option or ()).rewards()) if task else None
    policy = load_model(model, device=default_device())
    settings = {"num_steps": steps, "order": order, "schedule": schedule, "block_length": block_length, "seed": seed}
    done = import_rollouts(file, policy, scorer, batch_size=batch_size, **settings)
    done.saved.save(output)
    _print_import(done)
    say(f"rollout: {output}")


def _print_import(done: ImportedRollout) -> None:
    """Print what an import read and found."""
    path, found = done.saved.rollout.trajectory, done.found
    say(f"rows read: {len(path)}, in groups of {found.group_size}")
    say(f"denoising steps: {float(path.steps_taken.float().mean()):.2f} of {path.num_steps} on average")
    if found.num_tested:
        say(
            f"tokens that are not the most likely one: {found.other_share:.1%} of {found.num_tested} that can be tested"
        )
    if (mismatch := found.mismatch) is None:
        say("log-probabilities of the engine: none")
    else:
        say(
            f"log-probabilities of the engine: they differ from those of the model by {mismatch.mean:.2e} nats on average, and "
            f"by at most {mismatch.largest:.2e}, over {mismatch.num_tokens} tokens"
        )

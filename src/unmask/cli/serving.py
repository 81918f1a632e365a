"""Commands for rollouts that are sampled elsewhere: import-rollouts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unmask.cli.options import Model, Order, TaskOptions, say

app = typer.Typer()


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
    from unmask.trainer.imported import import_rollouts, steps_taken

    file, output = file.expanduser(), output.expanduser()
    if output.suffix != ".safetensors":
        raise ConfigError(f"{output} does not end in .safetensors. Name another file to write.")
    if output.exists():
        raise ConfigError(f"{output} exists already. Remove it, or name another file to write.")
    scorer = Scorer(make_task(task, option or ()).rewards()) if task else None
    policy = load_model(model, device=default_device())
    done = import_rollouts(
        file,
        policy,
        scorer,
        num_steps=steps,
        order=order,
        block_length=block_length,
        seed=seed,
        batch_size=batch_size,
    )
    done.saved.save(output)
    path, found = done.saved.rollout.trajectory, done.found
    say(f"rows read: {len(path)}, in groups of {found.group_size}")
    say(f"denoising steps: {steps_taken(path):.2f} of {path.num_steps} on average")
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
    say(f"rollout: {output}")

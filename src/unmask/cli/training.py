"""Commands that make a model better: train, pretrain, compare, launch, demo."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from unmask.cli.options import Overrides, Resume, SettingsCommand, numbers, say

training = typer.Typer()


@training.command(cls=SettingsCommand)
def train(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name, or a YAML file.")],
    overrides: Overrides = None,
    resume: Resume = False,
) -> None:
    """Train a model with reinforcement learning, as a recipe says.

    unmask recipes lists those that are shipped, the papers' settings for LLaDA-8B and Dream-7B among them.
    """
    from unmask.recipe import load_recipe
    from unmask.training import Trainer

    trainer = Trainer(load_recipe(recipe, overrides or ()), resume=resume)
    folder = trainer.train()
    if trainer.is_main:
        say(f"model: {folder / 'final'}\nmetrics: {folder / 'metrics.jsonl'}")
        say("\n".join(f"{name}: {place}" for name, place in trainer.pictures.items()))


@training.command(cls=SettingsCommand)
def pretrain(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name, or a YAML file.")],
    overrides: Overrides = None,
    resume: Resume = False,
) -> None:
    """Train a model on demonstrations with the masked-diffusion ELBO.

    A tiny one from scratch, or a checkpoint.
    """
    from unmask.console import progress
    from unmask.pretrain import pretrain as run
    from unmask.recipe import PretrainRecipe, load

    loaded = load(PretrainRecipe, recipe, overrides or ())
    with progress("pretrain", loaded.max_steps) as view:
        folder = run(loaded, resume=resume, observe=view)
    if _is_main():
        say(f"model: {folder / 'final'}")


@training.command(cls=SettingsCommand)
def compare(
    recipe: Annotated[str, typer.Argument(help="A shipped comparison's name, such as paper-tiny, or a YAML file.")],
    overrides: Overrides = None,
    jobs: Annotated[
        int, typer.Option(min=1, help="Runs at a time, each a process with one thread. 1: in this process.")
    ] = 1,
    report: Annotated[
        bool, typer.Option("--report", help="Only make tables and figures of the results so far.")
    ] = False,
    rerun_changed: Annotated[
        bool, typer.Option("--rerun-changed", help="Run again what changed settings or edited code touch.")
    ] = False,
    keep_changed: Annotated[
        bool, typer.Option("--keep-changed", help="Go on beside results of code edited since; tables mark them.")
    ] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run again what failed before.")] = False,
    tasks: Annotated[str, typer.Option(help="Only these tasks of the recipe, comma-separated.")] = "",
    methods: Annotated[str, typer.Option(help="Only these methods of the recipe, comma-separated.")] = "",
    seeds: Annotated[str, typer.Option(help="These seeds instead of the recipe's, comma-separated.")] = "",
) -> None:
    """Compare methods on tasks over seeds, at equal compute.

    Each run starts from the same model and has the same prompts.

    Pretrains what the runs start from, tunes each method as much as any other on validation rows, then runs every method
    with every seed. Stop it with Ctrl-C and give the same command to go on; what has a result is not run again, so
    seeds, methods and tasks can be added later. Everything is in runs/compare/NAME: table.md (read this first), tuning.md,
    compute.png, decoding.png, and cells.jsonl, from which --report makes them all.
    """
    from unmask.compare.recipe import load_compare
    from unmask.compare.report import report as make_report
    from unmask.compare.report import shown
    from unmask.compare.run import compare as run
    from unmask.console import comparison_results

    picked = {"tasks": numbers(tasks, str, "--tasks"), "methods": numbers(methods, str, "--methods")}
    picked["seeds"] = numbers(seeds, int, "--seeds")
    options = [f"{key}={json.dumps(names)}" for key, names in picked.items() if names]
    loaded = load_compare(recipe, [*options, *(overrides or ())])
    if not report:
        run(
            loaded,
            jobs=jobs,
            rerun_changed=rerun_changed,
            keep_changed=keep_changed,
            retry_failed=retry_failed,
            tell=lambda line: say(line, err=True),
        )
    table = make_report(loaded)
    comparison_results(found := shown(loaded))
    say(f"table: {table}")
    for figure in found.figures:
        say(f"figure: {figure}")
    say(f"all of it on one page: unmask report {quote(str(loaded.folder))}")


@training.command(context_settings={"allow_interspersed_args": False})
def launch(
    command: Annotated[
        list[str] | None, typer.Argument(metavar="COMMAND...", help="train or pretrain, with all that follows it.")
    ] = None,
    preset: Annotated[
        str, typer.Option(help="How weights lie: ddp, fsdp2, zero2, zero3, or a file of accelerate's.")
    ] = "ddp",
    processes: Annotated[int, typer.Option(min=0, help="On this machine; default one for each GPU.")] = 0,
    cpu: Annotated[bool, typer.Option("--cpu", help="On the CPU, over gloo (ddp, zero2 and zero3).")] = False,
    nodes: Annotated[int, typer.Option(min=1, help="Machines, each started by this command.")] = 1,
    node_rank: Annotated[int, typer.Option(min=0, help="Which of them this is.")] = 0,
    main: Annotated[str, typer.Option(help="Address of the first machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, help="Free port there; 0 finds one, with one machine.")] = 0,
    slurm: Annotated[
        bool, typer.Option("--slurm", help="Be one process, which srun started; it says how many there are.")
    ] = False,
    show: Annotated[
        str | None, typer.Option(metavar="PRESET", help="Only print the file of a preset, for accelerate launch.")
    ] = None,
) -> None:
    """Run train or pretrain as several processes.

    Such as: unmask launch --preset zero3 --processes 8 train RECIPE
    """
    from unmask.errors import ConfigError
    from unmask.launch import find_preset, preset_environment, run_processes, slurm_environment

    if show is not None:
        say(str(find_preset(show)))
        return
    if not command or command[0] not in ("train", "pretrain"):
        raise ConfigError(
            f"launch runs train or pretrain, not {(command or ['nothing'])[0]}: unmask launch --processes 2 train RECIPE"
        )
    environment = preset_environment(find_preset(preset)) | ({"ACCELERATE_USE_CPU": "true"} if cpu else {})
    if cpu and "ACCELERATE_USE_FSDP" in environment:
        raise ConfigError("accelerate runs FSDP on GPUs only. With --cpu use --preset ddp, zero2 or zero3.")
    if slurm:
        everything = {**os.environ, **environment, **slurm_environment(os.environ)}
        os.execve(sys.executable, [sys.executable, "-m", "unmask", *command], everything)
    if nodes > 1 and not (port and node_rank < nodes):
        raise ConfigError(
            f"{nodes} machines need a --port that is free on the first (--main), and --node-rank 0 to {nodes - 1}."
        )
    count = processes or _num_gpus()
    code = run_processes(command, environment, count, nodes=nodes, node_rank=node_rank, address=main, port=port)
    if code:
        raise typer.Exit(code)


@training.command()
def demo(
    output_dir: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Of pretraining and training.")] = 0,
) -> None:
    """The main job in one go, on 4x4 Sudoku with a tiny model.

    Pretrain, train with EGSPO-SA, evaluate, report.
    """
    from unmask.demo import run

    run(output_dir.expanduser(), seed)


def _num_gpus() -> int:
    import torch

    return max(1, int(torch.cuda.device_count()))


def _is_main() -> bool:
    """Whether this is the process that speaks for all of a distributed run."""
    from accelerate import PartialState

    return bool(PartialState().is_main_process)

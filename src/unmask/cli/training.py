"""The commands that train models: train, pretrain, compare and demo."""

from __future__ import annotations

import json
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
    from unmask.recipes.schema import load_recipe
    from unmask.report.api.trainer import Trainer

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
    from unmask.recipes.schema import PretrainRecipe, load
    from unmask.report.progress import progress
    from unmask.trainer.pretrain import pretrain as run

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
    from unmask.cli.console import comparison_results
    from unmask.report.comparison_files import report as make_report
    from unmask.report.comparison_files import shown
    from unmask.trainer.comparison.recipe import load_compare
    from unmask.trainer.comparison.run import compare as run

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


@training.command()
def demo(
    output_dir: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Of pretraining and training.")] = 0,
) -> None:
    """The main job in one go, on 4x4 Sudoku with a tiny model.

    Pretrain, train with EGSPO-SA, evaluate, report.
    """
    from unmask.cli.demo import run

    run(output_dir.expanduser(), seed)


def _is_main() -> bool:
    """Whether this is rank 0, which prints for all ranks of a distributed run."""
    from accelerate import PartialState

    return bool(PartialState().is_main_process)

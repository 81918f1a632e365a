"""Commands that train models: train, pretrain, compare and demo."""

from __future__ import annotations

import json
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from unmask.cli.options import Overrides, Resume, SettingsCommand, numbers, say

if TYPE_CHECKING:
    from unmask.report.comparison_files import Shown

app = typer.Typer()


@app.command(cls=SettingsCommand)
def train(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name, or a YAML file.")],
    overrides: Overrides = None,
    resume: Resume = False,
) -> None:
    """Train a model with reinforcement learning, as a recipe describes.

    The command `unmask recipes` lists the shipped recipes, which include the papers' settings for
    LLaDA-8B and Dream-7B.
    """
    from unmask.recipes.load import load_recipe
    from unmask.report.api.trainer import Trainer

    trainer = Trainer(load_recipe(recipe, overrides or ()), resume=resume)
    folder = trainer.train()
    if trainer.is_main:
        say(f"model: {folder / 'final'}\nmetrics: {folder / 'metrics.jsonl'}")
        say("\n".join(f"{name}: {path}" for name, path in trainer.pictures.items()))


@app.command(cls=SettingsCommand)
def pretrain(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name, or a YAML file.")],
    overrides: Overrides = None,
    resume: Resume = False,
) -> None:
    """Train a model on demonstrations with the masked-diffusion ELBO.

    The model is a new tiny model, or a checkpoint.
    """
    from unmask.recipes.load import load
    from unmask.recipes.schema import PretrainRecipe
    from unmask.report.progress import progress
    from unmask.trainer.pretrain import pretrain as run

    loaded = load(PretrainRecipe, recipe, overrides or ())
    with progress("pretrain", loaded.max_steps) as view:
        folder = run(loaded, resume=resume, observe=view)
    if _is_main():
        say(f"model: {folder / 'final'}")


_Jobs = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Number of runs at a time, each in a process with one thread; by default 1, in this process. With "
        "--scheduler, the number of jobs that wait or run there; by default 100.",
        show_default=False,
    ),
]
_Scheduler = Annotated[
    str,
    typer.Option(
        help="Run the jobs through a scheduler: slurm, or local to try it out. Settings such as "
        "scheduler.partition=gpu and scheduler.minutes=60 give a job its resources.",
    ),
]
_Verify = Annotated[
    int | None,
    typer.Option(
        "--verify",
        metavar="SEED",
        help="Only run one finished run again, drawn with this seed, and say whether it agrees with its recorded result.",
    ),
]


@app.command(cls=SettingsCommand)
def compare(
    recipe: Annotated[str, typer.Argument(help="A shipped comparison's name, such as paper-tiny, or a YAML file.")],
    overrides: Overrides = None,
    jobs: _Jobs = None,
    scheduler: _Scheduler = "",
    report: Annotated[
        bool, typer.Option("--report", help="Only make the tables and figures from the results so far.")
    ] = False,
    verify: _Verify = None,
    rerun_changed: Annotated[
        bool, typer.Option("--rerun-changed", help="Repeat the jobs whose settings or code have changed.")
    ] = False,
    keep_changed: Annotated[
        bool,
        typer.Option("--keep-changed", help="Keep the results of code that has changed since; the tables mark them."),
    ] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Repeat the jobs that failed.")] = False,
    tasks: Annotated[str, typer.Option(help="Only these tasks of the recipe, comma-separated.")] = "",
    methods: Annotated[str, typer.Option(help="Only these methods of the recipe, comma-separated.")] = "",
    seeds: Annotated[str, typer.Option(help="Seeds to use instead of the recipe's, comma-separated.")] = "",
) -> None:
    """Compare methods on tasks over seeds, at equal compute.

    All runs of a task start from the same model and use the same prompts. The command pretrains
    this model, tunes every method with the same number of trials on validation examples, and then
    runs every method with every seed.

    Stop it with Ctrl-C, and repeat the command to continue. Jobs that have a result are not run
    again, so you can add seeds, methods and tasks later.

    The results are in runs/compare/NAME: table.md (read this first), tuning.md, compute.png,
    decoding.png, and cells.jsonl, from which --report makes the other files.
    """
    from unmask.report.comparison_files import report as make_report
    from unmask.report.comparison_files import shown
    from unmask.trainer.comparison.load import load_compare
    from unmask.trainer.comparison.run import compare as run

    chosen = {"tasks": numbers(tasks, str, "--tasks"), "methods": numbers(methods, str, "--methods")}
    chosen["seeds"] = numbers(seeds, int, "--seeds")
    options = [f"scheduler.type={scheduler}"] if scheduler else []
    options += [f"{key}={json.dumps(names)}" for key, names in chosen.items() if names]
    loaded = load_compare(recipe, [*options, *(overrides or ())])
    if verify is not None:
        _verify(loaded.folder, options, verify)
        return
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
    _print_comparison(results := shown(loaded))
    say(f"table: {table}")
    for figure in results.figures:
        say(f"figure: {figure}")
    say(f"to write all of it into one page: unmask report {quote(str(loaded.folder))}")


@app.command()
def demo(
    output_dir: Annotated[Path, typer.Option(help="Folder for all files of the demo.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Seed of pretraining and training.")] = 0,
) -> None:
    """Run a small example from start to end on 4x4 Sudoku.

    The demo pretrains a tiny model, trains it with EGSPO-SA, evaluates it and writes a report.
    """
    from unmask.cli.demo import run

    run(output_dir.expanduser(), seed)


def _is_main() -> bool:
    """Return whether this is rank 0, which prints for all ranks of a distributed run."""
    from accelerate import PartialState

    return bool(PartialState().is_main_process)


def _verify(folder: Path, selection: list[str], seed: int) -> None:
    """Run one run of a comparison again with the settings in its folder, and end with exit code 1 if
    the result disagrees."""
    from unmask.core.errors import RunError
    from unmask.trainer.comparison.load import load_compare
    from unmask.trainer.comparison.verify import verify

    if not (folder / "recipe.yaml").is_file():
        raise RunError(f"{folder} is not the folder of a comparison: it has no recipe.yaml. Set output_dir.")
    # The shipped recipe may have changed since.
    recipe = load_compare(str(folder / "recipe.yaml"), [*selection, f"output_dir={folder}"])
    found = verify(recipe, seed, Path("runs/verify") / recipe.folder.name, tell=lambda line: say(line, err=True))
    say("\n".join(found.lines()))
    if not found.is_equal and not found.is_expected:
        raise typer.Exit(1)


def _print_comparison(shown: Shown) -> None:
    """Print the tables of a comparison, and the notes that a reader needs."""
    from rich.console import Console
    from rich.text import Text

    from unmask.cli.tables import table
    from unmask.core.text import visible

    console = Console()
    for each in shown.tables:
        table(each.columns, each.rows, each.title)
        console.print()
    for note in shown.notes:
        console.print(Text(visible(note.replace("**", "").replace("`", ""))), soft_wrap=not console.is_terminal)
        console.print()

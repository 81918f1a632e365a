"""The command line. Heavy packages are imported inside the commands, so that help is there at once."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unmask import __version__
from unmask.cli_tools import tools
from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from unmask.records import Row
    from unmask.tasks import Task

app = typer.Typer(
    name="unmask",
    help="Reinforcement learning for diffusion language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

data = typer.Typer(help="Look at a task's rows.", no_args_is_help=True)
app.add_typer(data, name="data")
app.add_typer(tools)

_ENVIRONMENT = {
    # Idle OpenMP threads sleep instead of spinning: with anything else on the cores, spinning made a step 5 times slower.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Saving and loading a tiny model needs no progress bar of its own.
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    # transformers warns of padding without a mask whenever a completion holds a PAD token.
    "TRANSFORMERS_VERBOSITY": "error",
}
"""Set before the libraries that read them are imported, unless the user has set them."""

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change, such as optim.learning_rate=3e-4."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint of the run folder.")]
Model = Annotated[str, typer.Argument(help="Folder or hub id of a masked diffusion model.")]
TaskOptions = Annotated[
    list[str] | None, typer.Option("--option", help="An option of the task, as key=value; may be repeated.")
]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"unmask {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Take what holds for all commands."""


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name, or a YAML file.")],
    overrides: Overrides = None,
    resume: Resume = False,
) -> None:
    """Train a model with reinforcement learning, as a recipe says.

    unmask recipes lists those that are shipped, the papers' settings for LLaDA-8B and Dream-7B among them.
    """
    from unmask.console import progress
    from unmask.recipe import load_recipe
    from unmask.trainer import Trainer

    loaded = load_recipe(recipe, overrides or ())
    with progress("train", loaded.max_steps) as view:
        folder = Trainer(loaded, resume=resume, observe=view, example=view.example).train()
    if _is_main():
        typer.echo(f"model: {folder / 'final'}\nmetrics: {folder / 'metrics.jsonl'}\ncurve: {_curve(folder)}")
        typer.echo(f"report: {_report(folder)}")


@app.command()
def pretrain(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name, or a YAML file.")],
    overrides: Overrides = None,
    resume: Resume = False,
) -> None:
    """Train a model on demonstrations with the masked-diffusion ELBO: a tiny one from scratch, or a checkpoint."""
    from unmask.console import progress
    from unmask.pretrain import pretrain as run
    from unmask.recipe import PretrainRecipe, load

    loaded = load(PretrainRecipe, recipe, overrides or ())
    with progress("pretrain", loaded.max_steps) as view:
        folder = run(loaded, resume=resume, observe=view)
    if _is_main():
        typer.echo(f"model: {folder / 'final'}")


@app.command(name="eval")
def evaluate_(
    model: Model,
    task: Annotated[str, typer.Option(help="A task's name.")],
    option: TaskOptions = None,
    reward: Annotated[
        list[str] | None, typer.Option(help="A reward function's path instead of the task's own; may be repeated.")
    ] = None,
    length: Annotated[
        str, typer.Option(help="Completion lengths, comma-separated; default 128,256,512, or a bare task's own.")
    ] = "",
    steps: Annotated[str, typer.Option(help="Denoising steps, comma-separated; default half the length.")] = "",
    temperature: Annotated[str, typer.Option(help="Temperatures, comma-separated; 0 is greedy.")] = "0",
    samples: Annotated[int, typer.Option(min=1, help="Completions of each row, for pass@k.")] = 1,
    order: Annotated[str, typer.Option(help="Order in which positions are committed.")] = "low_confidence",
    block_length: Annotated[int | None, typer.Option(help="Block length; default one block.")] = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    rows: Annotated[int, typer.Option(min=1, help="How many rows.")] = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="Completions denoised together.")] = 256,
    seed: Annotated[int, typer.Option(help="Of rows and sampling.")] = 0,
    reward_timeout: Annotated[float, typer.Option(min=0.001, help="Seconds for the rewards of 64 completions.")] = 60.0,
    against: Annotated[
        Path | None, typer.Option(help="Compare row by row with the .jsonl file of an earlier evaluation.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Where results go: a .json file, and every completion in a .jsonl beside it.")
    ] = None,
) -> None:
    """Measure a model's accuracy on held-out rows, with 95 % intervals."""
    from unmask.console import comparison_table, evaluation_progress, results_table
    from unmask.errors import DataError
    from unmask.eval_results import Earlier, check_place, compare, default_place, facts_of, items_path, save, setting_of
    from unmask.evaluate import check, evaluate
    from unmask.models import load_model
    from unmask.recipe import make_sampler, make_task
    from unmask.score import Scorer, by_name, load_reward

    # All that can be wrong is looked for first: an evaluation takes hours on a large model.
    chosen = make_task(task, option or ())
    samplers = [
        make_sampler(max_completion_length=n, num_steps=k, temperature=t, order=order, block_length=block_length)
        for n in (_numbers(length, int, "--length") or chosen.evaluation_lengths)
        for k in (_numbers(steps, int, "--steps") or [None])
        for t in (_numbers(temperature, float, "--temperature") or [0.0])
    ]
    if output is not None:
        check_place(output)
    scorer = Scorer(by_name(map(load_reward, reward)) if reward else chosen.rewards(), timeout=reward_timeout)
    items = chosen.rows(split, rows, seed)  # type: ignore[arg-type]
    if not items:
        raise DataError(f"the task has no rows in the {split} split.")
    scorer.check_columns(items[0])
    earlier = Earlier.read(against) if against else None
    if earlier is not None:
        earlier.check(items, list(map(setting_of, samplers)), samples)
    denoiser, tokenizer = load_model(model)
    if _has_gpu():
        denoiser.to("cuda")
    check(denoiser, tokenizer, items, samplers, samples)

    ran: dict[str, Any] = {"seed": seed, "batch_size": batch_size, "samples": samples}
    facts = facts_of(model, denoiser, chosen, items, samplers, sorted(scorer.functions), split=split, **ran)
    place, results = output or default_place(facts), []
    for sampler in samplers:
        with evaluation_progress(sampler) as view:
            results.append(evaluate(denoiser, tokenizer, chosen, scorer, items, sampler, observe=view, **ran))
        # What is done is kept, whatever becomes of the other settings.
        save(place, facts, results)
    results_table(results, f"{model} on {task}, {split}")
    if earlier is not None:
        compared = compare(results, earlier, seed)
        comparison_table(compared, against)
        save(place, facts, results, compared)
    typer.echo(f"completions: {items_path(place)}\nresults: {place}")


@app.command()
def sample(
    model: Model,
    prompt: Annotated[str | None, typer.Option(help="The prompt; default one of the task's.")] = None,
    task: Annotated[str | None, typer.Option(help="Take the prompt and the length from a task.")] = None,
    option: TaskOptions = None,
    row: Annotated[int, typer.Option(min=0, help="Which test row of the task.")] = 0,
    length: Annotated[int | None, typer.Option(help="Completion length in tokens.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps; default half the length.")] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    order: Annotated[str, typer.Option(help="Order in which positions are committed.")] = "low_confidence",
    block_length: Annotated[int | None, typer.Option(help="Block length; default one block.")] = None,
    delay: Annotated[float, typer.Option(help="Seconds to show each step on a terminal.")] = 0.25,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
) -> None:
    """Watch a completion being unmasked, coloured by the entropy of each token when it was committed."""
    from unmask.errors import ConfigError
    from unmask.models import load_model
    from unmask.recipe import make_sampler, make_task
    from unmask.watch import watch

    chosen = make_task(task, option or ()) if task else None
    verdict = None
    if prompt is None:
        if chosen is None:
            raise ConfigError("give a --prompt, or a --task to take one from.")
        items = chosen.rows("test", row + 1, seed)
        if row >= len(items):
            raise ConfigError(f"--row {row} is not there: the test split has {len(items)} rows, the first of them 0.")
        prompt, verdict = items[row]["prompt"], partial(_verdict, chosen, items[row])
    sampler = make_sampler(
        max_completion_length=length or (chosen.completion_length if chosen else 64),
        num_steps=steps,
        temperature=temperature,
        order=order,
        block_length=block_length,
    )
    denoiser, tokenizer = load_model(model)
    watch(denoiser, tokenizer, prompt, sampler, seed=seed, delay=delay, verdict=verdict)


@app.command()
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
        bool, typer.Option("--rerun-changed", help="Run again what settings other than the folder's touch.")
    ] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run again what failed before.")] = False,
) -> None:
    """Compare methods on tasks over seeds, each run with the same compute, from the same model, on the same prompts.

    Pretrains what the runs start from, tunes each method as much as any other on validation rows, then runs every method
    with every seed. Stop it with Ctrl-C and give the same command to go on; what has a result is not run again, so
    seeds, methods and tasks can be added later. Everything is in runs/compare/NAME: table.md (read this first), tuning.md,
    compute.png, decoding.png, and cells.jsonl, from which --report makes them all.
    """
    from unmask.compare.recipe import load_compare
    from unmask.compare.report import report as make_report
    from unmask.compare.run import compare as run

    loaded = load_compare(recipe, overrides or ())
    if not report:
        run(
            loaded,
            jobs=jobs,
            rerun_changed=rerun_changed,
            retry_failed=retry_failed,
            tell=lambda line: typer.echo(line, err=True),
        )
    table = make_report(loaded)
    typer.echo(f"{table.read_text()}\ntable: {table}")


@app.command(name="report")
def report_(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, and folders of comparisons.")],
    output: Annotated[
        Path | None, typer.Option(help="The file to write; default report.html in the first folder.")
    ] = None,
    rollouts: Annotated[
        int, typer.Option(min=0, help="Kept rollouts of each run to show, evenly spaced if it kept more; 0 for none.")
    ] = 200,
) -> None:
    """Write one HTML file that shows what happened: the denoising film, the curves of the run, the comparison.

    The file holds all that it shows, opens from disk and asks nothing of any server. Several runs are drawn into the same curves.
    """
    from unmask.report.build import write_report

    made = write_report(runs, output, rollouts)
    for note in made.notes:
        typer.echo(f"left out: {note}", err=True)
    size = made.size / 1e6
    hint = "; --rollouts with a smaller number makes it smaller" if size > 20 else ""
    typer.echo(f"report: {made.path} ({size:.1f} MB{hint})")


@app.command()
def plot(
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders, or the folder of one comparison.")
    ],
    metric: Annotated[
        str, typer.Option(help="Keys of metrics.jsonl, comma-separated; default accuracies and reward.")
    ] = "",
    output: Annotated[
        Path | None, typer.Option(help="A .png or .svg file; both are written, and the numbers as .csv.")
    ] = None,
    x: Annotated[str, typer.Option(help="Against what: step, token_passes, reward_calls or seconds.")] = "step",
    smooth: Annotated[int, typer.Option(min=1, help="Draw means of this many measurements; not of accuracies.")] = 1,
    across: Annotated[
        str, typer.Option(help="Settings that may differ among runs of one line besides the seed, comma-separated.")
    ] = "",
) -> None:
    """Draw metrics of runs for a paper, each line with its 95 % interval: over seeds, or Wilson's of one run's accuracy.

    Runs of one recipe with different seeds are one line. Of a comparison, accuracy against compute and against denoising
    steps are drawn anew.
    """
    from unmask.compare.report import replot
    from unmask.errors import ConfigError
    from unmask.report.plot import plot_metrics

    if any((folder / "cells.jsonl").is_file() for folder in folders):
        if len(folders) > 1 or metric or across or x != "step" or smooth > 1:
            raise ConfigError("a comparison's figures are drawn alone and take --output only. Name its folder alone.")
        drawn = replot(folders[0], output)
    else:
        metrics, others = _numbers(metric, str, "--metric"), _numbers(across, str, "--across")
        drawn = [plot_metrics(folders, metrics, output or Path("plot.png"), x=x, smooth=smooth, across=others)]
    typer.echo("\n".join(f"figure: {path}" for path in drawn))


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="Show this method with all its options.")] = None,
) -> None:
    """List the methods, or one of them with its options and their sources."""
    from unmask.console import method_page, methods_table
    from unmask.errors import ConfigError, unknown_name
    from unmask.methods import METHODS

    if name is None:
        methods_table()
    elif name in METHODS:
        method_page(name)
    else:
        raise ConfigError(unknown_name("method", name, METHODS))


@app.command()
def tasks() -> None:
    """List the tasks."""
    from unmask.console import table
    from unmask.tasks import TASKS
    from unmask.tasks.reasoning_gym import available

    table(
        ["task", "what it is", "options"],
        [
            [
                name,
                (task.__doc__ or "").strip().splitlines()[0],
                ", ".join(key for key in task.model_fields if key != "type"),
            ]
            for name, task in TASKS.items()
        ],
    )
    count = len(available())
    typer.echo(
        f"reasoning_gym:NAME is any of {count} more, such as reasoning_gym:chain_sum."
        if count
        else 'reasoning_gym:NAME is any task of that package: pip install "unmask[reasoning-gym]"'
    )


@app.command()
def models(
    name: Annotated[
        str | None, typer.Argument(help="Show this family with its checkpoints and what to know of it.")
    ] = None,
) -> None:
    """List the model families that can be trained, or one of them with its checkpoints, tokens and traps."""
    from unmask.console import families_table, family_page
    from unmask.errors import ConfigError, unknown_name
    from unmask.models.families import FAMILIES

    if name is None:
        families_table()
    elif name in FAMILIES:
        family_page(name)
    else:
        raise ConfigError(unknown_name("family", name, FAMILIES))


@app.command()
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
    """Convert a checkpoint to a native transformers class, or back to its family's own layout.

    Reads data files only: nothing that the checkpoint brings is run. The destination is written whole or not at all.
    """
    from unmask.models import convert as run

    family = run(
        source,
        destination,
        to=to,
        dtype=dtype,
        tokenizer=tokenizer,
        block_length=block_length,
        tell=lambda line: typer.echo(line, err=True),
    )
    if to == "native":
        typer.echo(f"{family.title} as {family.native_class}: {destination}")
    else:
        typer.echo(
            f"{family.title} in its own layout: {destination}\n"
            "Its code is not carried: to run it there, copy the .py files of the release beside it. The tokenizer stays native."
        )


@app.command()
def merge(
    source: Annotated[
        Path, typer.Argument(help="Folder of a LoRA adapter, ours or peft's, or of a run that trained one.")
    ],
    destination: Annotated[Path, typer.Argument(help="Where to: a folder that does not exist yet.")],
    base: Annotated[
        str | None, typer.Option(help="Folder or hub id of the model under it; default the one that the adapter names.")
    ] = None,
) -> None:
    """Merge a LoRA adapter into its base model: a plain transformers checkpoint.

    A run's final/ is merged already. This is for an adapter that travelled alone, or for another base: say, the same weights
    in another precision.
    """
    from unmask.errors import ModelError
    from unmask.models.adapters import find_adapter, merge_adapter
    from unmask.models.convert import written_aside

    if destination.exists():
        raise ModelError(f"{destination} exists already. Name a folder that does not, or remove it.")
    adapter = find_adapter(source)
    with written_aside(destination) as aside:
        under = merge_adapter(adapter, aside, base)
    typer.echo(f"{adapter} merged into {under}: {destination}")


@data.command(name="check")
def check_data(
    task: Annotated[str, typer.Argument(help="A task's name.")],
    option: TaskOptions = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of each split to look at, or all there are.")] = 10_000,
    ngram: Annotated[int, typer.Option(min=1, help="Words of an n-gram.")] = 13,
    seed: Annotated[int, typer.Option(help="Of the rows.")] = 0,
) -> None:
    """Report what held-out rows share with training rows; exit code 1 if they share prompts."""
    from unmask.console import overlap_table
    from unmask.data_check import check_splits, rows_of_splits
    from unmask.recipe import make_task

    splits = rows_of_splits(make_task(task, option or ()), rows, seed)
    overlaps = check_splits(splits, n=ngram)
    overlap_table(overlaps, f"{task}: {len(splits['train'])} training rows looked at")
    if any(o.num_found for o in overlaps if o.kind == "prompt"):
        raise typer.Exit(1)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    options_metavar="[lm_eval's options of `run`]",
)
def harness(context: typer.Context) -> None:
    """Run tasks of lm-evaluation-harness on a denoiser: --model_args pretrained=FOLDER,length=256 --tasks gsm8k."""
    from unmask.harness import run

    run(context.args)


@app.command(context_settings={"allow_interspersed_args": False})
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
    """Run train or pretrain as several processes: unmask launch --preset zero3 --processes 8 train RECIPE."""
    from unmask.errors import ConfigError
    from unmask.launch import find_preset, preset_environment, run_processes, slurm_environment

    if show is not None:
        typer.echo(find_preset(show))
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


@app.command()
def demo(
    output_dir: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Of pretraining and training.")] = 0,
) -> None:
    """The main job in one go: pretrain a tiny model on 4x4 Sudoku, train it with EGSPO-SA, evaluate, plot."""
    from unmask.demo import run

    run(output_dir, seed)


def _verdict(task: Task, row: Row, completion: str) -> str:
    """What a task says of a completion of one of its rows."""
    said = "solved" if task.solved(completion, row) else "not solved"
    return f"{said}, right would be {row['answer']}" if "answer" in row else said


def _has_gpu() -> bool:
    """Whether there is a GPU to evaluate on. An MPS one has no float64, which the hashed draws need."""
    import torch

    return bool(torch.cuda.is_available())


def _num_gpus() -> int:
    import torch

    return max(1, int(torch.cuda.device_count()))


def _is_main() -> bool:
    """Whether this is the process that speaks for all of a distributed run."""
    from accelerate import PartialState

    return bool(PartialState().is_main_process)


def _curve(folder: Path) -> Path:
    from unmask.report.curve import plot_curve
    from unmask.run_folder import disk_faults_explained

    with disk_faults_explained(folder):
        return plot_curve(folder, folder / "curve.png")


def _report(folder: Path) -> str:
    from unmask.report.build import write_report

    try:
        return str(write_report([folder]).path)
    except UnmaskError as error:
        # The run is done and whole; its picture can be had later.
        return f"not written ({error})"


def _numbers(text: str, kind: type[Any], option: str) -> list[Any]:
    """The numbers of a comma-separated option, each once."""
    from unmask.errors import ConfigError

    try:
        return list(dict.fromkeys(kind(part.strip()) for part in text.split(",") if part.strip()))
    except ValueError:
        raise ConfigError(f'{option} "{text}" is not a comma-separated list of numbers.') from None


def main() -> None:
    """Run the command line; a user's mistake ends with its message and exit code 2."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        app()
    except UnmaskError as error:
        # What all processes of a run have agreed on is said by one of them.
        if not error.is_agreed or os.environ.get("RANK", "0") == "0":
            typer.echo("\n  ".join([f"{error.kind}: {error}", *getattr(error, "__notes__", ())]), err=True)
        sys.exit(error.exit_code)

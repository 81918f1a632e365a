"""Commands that say how good a model is, or show how it writes: eval, sample, harness, data check."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unmask.cli.options import Model, Order, Overrides, SettingsCommand, TaskOptions, numbers, say

if TYPE_CHECKING:
    from unmask.core.config import SamplerConfig
    from unmask.core.records import Row
    from unmask.recipes.evaluation import EvalRecipe
    from unmask.tasks import Task

evaluation = typer.Typer()

data = typer.Typer(help="Look at a task's rows.", no_args_is_help=True)
evaluation.add_typer(data, name="data")


@evaluation.command(name="eval", cls=SettingsCommand)
def evaluate_(
    context: typer.Context,
    model: Model,
    overrides: Overrides = None,
    task: Annotated[
        str, typer.Option(help="A task: a name, or a path as in my_task.py:Mine. Or task.type=NAME among the settings.")
    ] = "",
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
    order: Order = "low_confidence",
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
    """Measure accuracy on held-out rows, with 95 % intervals.

    The options are short names of settings, which are given as key=value like those of train: --rows 64 is
    evaluation.num_rows=64, and sampler.guidance=1.0 has no short name. Where both are given, key=value wins.
    """
    from unmask.recipes.evaluation import load_evaluation
    from unmask.recipes.schema import task_settings

    changes = [*(f"task.{text}" for text in option or ()), *(overrides or ())]
    if not task and not any(text.startswith(("task.type=", "task=")) for text in changes):
        raise typer.BadParameter("name a task: --task NAME, or task.type=NAME. unmask tasks lists them.", ctx=context)
    settings: dict[str, Any] = {
        **({f"task.{key}": value for key, value in task_settings(task).items()} if task else {}),
        "reward_funcs": reward or [],
        "evaluation.temperatures": numbers(temperature, float, "--temperature"),
        "samples": samples,
        "sampler.order": order,
        "sampler.block_length": block_length,
        "evaluation.split": split,
        "evaluation.num_rows": rows,
        "evaluation.batch_size": batch_size,
        "seed": seed,
        "reward_timeout": reward_timeout,
    }
    recipe, samplers = load_evaluation(
        settings, changes, numbers(length, int, "--length"), numbers(steps, int, "--steps")
    )
    _evaluate(model, recipe, samplers, against and against.expanduser(), output and output.expanduser())


def _evaluate(
    model: str, recipe: EvalRecipe, samplers: list[SamplerConfig], against: Path | None, output: Path | None
) -> None:
    """Evaluate, print tables, and write the results after each setting."""
    from unmask.cli.console import comparison_table, evaluation_progress, results_table
    from unmask.core.errors import DataError
    from unmask.evaluation.evaluate import check_samples, evaluate
    from unmask.evaluation.results import (
        Earlier,
        check_place,
        compare,
        default_place,
        facts_of,
        items_path,
        save,
        setting_of,
    )
    from unmask.evaluation.usable import faults_for, usable_rows
    from unmask.models import load_model
    from unmask.rewards.scorer import make_scorer
    from unmask.sampling.engine import BatchLimits, LocalEngine

    # Everything that can be wrong is checked first: an evaluation of a large model takes hours.
    task, rows = recipe.task, recipe.evaluation
    for sampler in samplers:
        check_samples(sampler, recipe.samples)
    if output is not None:
        check_place(output, against)
    scorer = make_scorer(
        recipe.reward_funcs,
        task.rewards(),
        recipe.reward_weights,
        timeout=recipe.reward_timeout,
        workers=recipe.reward_workers,
        item_timeout=recipe.reward_item_timeout,
    )
    candidates = task.candidates(rows.split, rows.num_rows, recipe.seed)  # type: ignore[arg-type]
    if not candidates.rows:
        raise DataError(f"the task has no rows in the {rows.split} split.")
    items, _ = candidates.take()
    scorer.check_columns(items[0])
    earlier = Earlier.read(against) if against else None
    if earlier is not None and not candidates.drop:
        earlier.check(items, list(map(setting_of, samplers)), recipe.samples)
    policy = load_model(model)
    denoiser, tokenizer = policy
    if _has_gpu():
        denoiser.to("cuda")
    engine = LocalEngine(policy, BatchLimits(rows.batch_size))
    longest = max(sampler.max_completion_length for sampler in samplers)
    faults_of = faults_for(task, denoiser, tokenizer, longest, needs_answer=not recipe.reward_funcs)
    usable = usable_rows({rows.split: candidates}, faults_of)
    items = usable.rows[rows.split]
    if earlier is not None and candidates.drop:
        # Which rows these are is known only with the model.
        earlier.check(items, list(map(setting_of, samplers)), recipe.samples)

    ran: dict[str, Any] = {"seed": recipe.seed, "samples": recipe.samples}
    settings = {"split": rows.split, "batch_size": rows.batch_size, **ran}
    facts = facts_of(model, denoiser, task, items, samplers, sorted(scorer.functions), **settings)
    if usable.left_out:
        facts["left_out"] = usable.record()["left_out"]
    place, results = output or default_place(facts, against), []
    for sampler in samplers:
        with evaluation_progress(sampler) as view:
            results.append(evaluate(engine, task, scorer, items, sampler, observe=view, **ran))
        # What is done is kept, whatever becomes of the other settings.
        save(place, facts, results)
    named = getattr(task, "name", "")
    results_table(results, f"{model} on {task.type}{f':{named}' if named else ''}, {rows.split}")
    if earlier is not None:
        compared = compare(results, earlier, recipe.seed)
        comparison_table(compared, against)
        save(place, facts, results, compared)
    say(f"completions: {items_path(place)}\nresults: {place}")


@evaluation.command()
def sample(
    model: Model,
    prompt: Annotated[str | None, typer.Option(help="The prompt; default one of the task's.")] = None,
    task: Annotated[str | None, typer.Option(help="Take the prompt and the length from a task.")] = None,
    option: TaskOptions = None,
    row: Annotated[int, typer.Option(min=0, help="Which test row of the task.")] = 0,
    length: Annotated[int | None, typer.Option(help="Completion length in tokens.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps; default half the length.")] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    order: Order = "low_confidence",
    block_length: Annotated[int | None, typer.Option(help="Block length; default one block.")] = None,
    delay: Annotated[float, typer.Option(help="Seconds to show each step on a terminal.")] = 0.25,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
) -> None:
    """Watch a completion being unmasked.

    Each token is coloured by its entropy when it was committed.
    """
    from unmask.cli.sample import watch
    from unmask.core.errors import ConfigError
    from unmask.models import load_model
    from unmask.recipes.schema import make_sampler, make_task

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
    watch(load_model(model), prompt, sampler, seed=seed, delay=delay, verdict=verdict)


@evaluation.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    options_metavar="[lm_eval's options of `run`]",
)
def harness(context: typer.Context) -> None:
    """Run tasks of lm-evaluation-harness on a denoiser.

    Such as: unmask harness --model_args pretrained=FOLDER,length=256 --tasks gsm8k

    All options are those of lm_eval's own command, which --help lists once that package is installed:
    pip install "unmask[lm-eval]"
    """
    from importlib.util import find_spec

    if {"-h", "--help"} & {*context.args} and find_spec("lm_eval") is None:
        typer.echo(context.get_help())
        return
    from unmask.evaluation.lm_eval import run

    run(context.args)


@data.command(name="check")
def check_data(
    task: Annotated[str, typer.Argument(help="A task's name.")],
    option: TaskOptions = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of each split to look at, or all there are.")] = 10_000,
    ngram: Annotated[int, typer.Option(min=1, help="Words of an n-gram.")] = 13,
    seed: Annotated[int, typer.Option(help="Of the rows.")] = 0,
) -> None:
    """Report what held-out rows share with training rows.

    Exit code 1 if they share prompts.
    """
    from unmask.cli.console import overlap_table
    from unmask.recipes.schema import make_task
    from unmask.tasks.contamination import check_splits, rows_of_splits

    chosen = make_task(task, option or ())
    splits = rows_of_splits(chosen, rows, seed)
    overlaps = check_splits(splits, n=ngram)
    overlap_table(overlaps, f"{task}: {len(splits['train'])} training rows looked at")
    if left_out := chosen.candidates("train", rows, seed).left_out:
        say(f"left out, because they cannot be used: {len(left_out)}, the first of them {left_out[0]}")
    if any(o.num_found for o in overlaps if o.kind == "prompt"):
        raise typer.Exit(1)


def _verdict(task: Task, row: Row, completion: str) -> str:
    """What a task says of a completion of one of its rows."""
    if task.solved(completion, row):
        return "solved"
    return f"not solved; right would be {row['answer']}" if "answer" in row else "not solved"


def _has_gpu() -> bool:
    """Whether there is a GPU to evaluate on. An MPS one has no float64, which the hashed draws need."""
    import torch

    return bool(torch.cuda.is_available())

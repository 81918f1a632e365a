"""Commands that evaluate a model or show its samples (eval, sample, harness), and the command that
checks a task's data (data check)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unmask.cli.options import (
    BlockLength,
    Cache,
    Model,
    Order,
    Overrides,
    Schedule,
    SettingsCommand,
    TaskOptions,
    numbers,
    say,
)

if TYPE_CHECKING:
    from unmask.core.config import SamplerConfig
    from unmask.core.records import Row
    from unmask.evaluation.results import Earlier
    from unmask.recipes.evaluation import EvalRecipe
    from unmask.rewards.scorer import Scorer
    from unmask.tasks import Task
    from unmask.tasks.candidates import Candidates

app = typer.Typer()

data = typer.Typer(help="Inspect the examples of a task.", no_args_is_help=True)
app.add_typer(data, name="data")


_Task = Annotated[
    str,
    typer.Option(help="Name of the task, or path as in my_task.py:Mine; or set task.type=NAME among the settings."),
]
_Reward = Annotated[
    list[str] | None,
    typer.Option(help="Path of a reward function to use instead of the task's own; can be repeated."),
]
_Lengths = Annotated[
    str, typer.Option(help="Completion lengths, comma-separated; default the task's, which is often 128,256,512.")
]
_Steps = Annotated[str, typer.Option(help="Numbers of denoising steps, comma-separated; default half the length.")]
_Temperatures = Annotated[str, typer.Option(help="Temperatures, comma-separated; 0 is greedy.")]
_Samples = Annotated[int, typer.Option(min=1, help="Number of completions for each example, for pass@k.")]
_Schedules = Annotated[
    str,
    typer.Option(
        help="Schedules, comma-separated, as in fixed,threshold=0.9,0.95,factor=1,entropy_bound=0.3: their accuracy against "
        "forward passes is drawn. --steps then belongs to the fixed schedule, and adaptive ones have no limit."
    ),
]
_Split = Annotated[str, typer.Option(help="Split of the task: train, validation or test.")]
_Rows = Annotated[int, typer.Option(min=1, help="Number of examples.")]
_BatchSize = Annotated[
    int | None,
    typer.Option(min=1, help="Number of completions denoised together; default as many as fit into memory, up to 256."),
]
_Seed = Annotated[int, typer.Option(help="Seed of the examples and the sampling.")]
_RewardTimeout = Annotated[
    float,
    typer.Option(
        min=0.001,
        help="Time limit in seconds for one call of the reward functions; a call gets at most 64 completions.",
    ),
]
_Against = Annotated[
    Path | None, typer.Option(help="The .jsonl file of an earlier evaluation to compare with, example by example.")
]
_Output = Annotated[
    Path | None, typer.Option(help="File for the results (.json); a .jsonl file next to it gets every completion.")
]


@app.command(name="eval", cls=SettingsCommand)
def evaluate_(
    context: typer.Context,
    model: Model,
    overrides: Overrides = None,
    task: _Task = "",
    option: TaskOptions = None,
    reward: _Reward = None,
    length: _Lengths = "",
    steps: _Steps = "",
    temperature: _Temperatures = "0",
    samples: _Samples = 1,
    order: Order = "low_confidence",
    block_length: BlockLength = None,
    schedule: _Schedules = "",
    cache: Cache = "off",
    split: _Split = "test",
    rows: _Rows = 256,
    batch_size: _BatchSize = None,
    seed: _Seed = 0,
    reward_timeout: _RewardTimeout = 60.0,
    against: _Against = None,
    output: _Output = None,
) -> None:
    """Measure accuracy on held-out examples, with 95 % intervals.

    The options are short names of settings: --rows 64 is evaluation.num_rows=64. Settings without a
    short name, such as sampler.guidance=1.0, are written as key=value, as for train. If both are
    given, key=value wins.
    """
    from unmask.core.schedules import Schedule as ScheduleSetting
    from unmask.recipes.evaluation import load_evaluation
    from unmask.recipes.load import task_settings

    changes = [*(f"task.{text}" for text in option or ()), *(overrides or ())]
    if not task and not any(text.startswith(("task.type=", "task=")) for text in changes):
        raise typer.BadParameter(
            "name a task with --task NAME or task.type=NAME. `unmask tasks` lists all tasks.", ctx=context
        )
    settings: dict[str, Any] = {
        **({f"task.{key}": value for key, value in task_settings(task).items()} if task else {}),
        "reward_funcs": reward or [],
        "evaluation.temperatures": numbers(temperature, float, "--temperature"),
        "samples": samples,
        "sampler.order": order,
        "sampler.block_length": block_length,
        "sampler.cache": cache,
        "evaluation.split": split,
        "evaluation.num_rows": rows,
        "evaluation.batch_size": batch_size,
        "seed": seed,
        "reward_timeout": reward_timeout,
    }
    recipe, samplers = load_evaluation(
        settings,
        changes,
        numbers(length, int, "--length"),
        numbers(steps, int, "--steps"),
        ScheduleSetting.parse_all(schedule),
    )
    _evaluate(model, recipe, samplers, against and against.expanduser(), output and output.expanduser())


def _evaluate(
    model: str, recipe: EvalRecipe, samplers: list[SamplerConfig], against: Path | None, output: Path | None
) -> None:
    """Evaluate the samplers, print tables, and write the results after each sampler."""
    from unmask.cli.evaluation_tables import comparison_table, evaluation_progress, plot_frontier, results_table
    from unmask.evaluation.evaluate import evaluate
    from unmask.evaluation.results import compare, default_place, facts_of, items_path, save, setting_of
    from unmask.evaluation.usable import faults_for, usable_rows
    from unmask.models import load_model
    from unmask.models.device import default_device
    from unmask.sampling.engine import BatchLimits, LocalEngine

    task, rows = recipe.task, recipe.evaluation
    scorer, candidates, earlier = _checked(recipe, samplers, against, output)
    policy = load_model(model, device=default_device())
    longest = max(sampler.max_completion_length for sampler in samplers)
    faults_of = faults_for(task, policy.denoiser, policy.tokenizer, longest, needs_answer=not recipe.reward_funcs)
    usable = usable_rows({rows.split: candidates}, faults_of)
    items = usable.rows[rows.split]
    if earlier is not None and candidates.drop:
        # Which examples are dropped is known only with the model.
        earlier.check(items, list(map(setting_of, samplers)), recipe.samples)

    ran: dict[str, Any] = {"seed": recipe.seed, "samples": recipe.samples}
    settings = {"split": rows.split, "batch_size": rows.batch_size, **ran}
    facts = facts_of(model, policy.denoiser, task, items, samplers, sorted(scorer.functions), **settings)
    if usable.left_out:
        facts["left_out"] = usable.record()["left_out"]
    engine = LocalEngine(policy, BatchLimits(rows.batch_size))
    path, results = output or default_place(facts, against), []
    for sampler in samplers:
        with evaluation_progress(sampler) as view:
            results.append(evaluate(engine, task, scorer, items, sampler, observe=view, **ran))
        # An error in a later sampler must not lose these results.
        save(path, facts, results)
    named = getattr(task, "name", "")
    results_table(results, f"{model} on {task.type}{f':{named}' if named else ''}, {rows.split}")
    if earlier is not None:
        compared = compare(results, earlier, recipe.seed)
        comparison_table(compared, against)
        save(path, facts, results, compared)
    say(f"completions: {items_path(path)}\nresults: {path}")
    if any(sampler.is_adaptive for sampler in samplers):
        say(f"frontier: {', '.join(map(str, plot_frontier(results, path)))}")


def _checked(
    recipe: EvalRecipe, samplers: list[SamplerConfig], against: Path | None, output: Path | None
) -> tuple[Scorer, Candidates, Earlier | None]:
    """Return the scorer, the examples and the earlier evaluation, after all checks that need no
    model. They come first because an evaluation of a large model takes hours."""
    from unmask.core.errors import DataError
    from unmask.evaluation.evaluate import check_samples
    from unmask.evaluation.results import Earlier, check_output, setting_of
    from unmask.rewards.loading import make_scorer

    rows = recipe.evaluation
    for sampler in samplers:
        check_samples(sampler, recipe.samples)
    if output is not None:
        check_output(output, against)
    scorer = make_scorer(
        recipe.reward_funcs,
        recipe.task.rewards(),
        recipe.reward_weights,
        timeout=recipe.reward_timeout,
        workers=recipe.reward_workers,
        item_timeout=recipe.reward_item_timeout,
    )
    candidates = recipe.task.candidates(rows.split, rows.num_rows, recipe.seed)  # type: ignore[arg-type]
    if not candidates.rows:
        raise DataError(f"the task has no examples in the {rows.split} split. Choose another one with --split.")
    items, _ = candidates.take()
    scorer.check_columns(items[0])
    earlier = Earlier.read(against) if against else None
    if earlier is not None and not candidates.drop:
        earlier.check(items, list(map(setting_of, samplers)), recipe.samples)
    return scorer, candidates, earlier


@app.command()
def sample(
    model: Model,
    prompt: Annotated[str | None, typer.Option(help="Prompt; default an example of the task.")] = None,
    task: Annotated[str | None, typer.Option(help="Task to take the prompt and the length from.")] = None,
    option: TaskOptions = None,
    row: Annotated[int, typer.Option(min=0, help="Index of the task's test example to use.")] = 0,
    length: Annotated[int | None, typer.Option(help="Completion length in tokens; default the task's, or 64.")] = None,
    steps: Annotated[int | None, typer.Option(help="Number of denoising steps; default half the length.")] = None,
    temperature: Annotated[float, typer.Option(help="Sampling temperature; 0 is greedy.")] = 0.0,
    order: Order = "low_confidence",
    block_length: BlockLength = None,
    schedule: Schedule = "fixed",
    cache: Cache = "off",
    delay: Annotated[float, typer.Option(help="Seconds to show each denoising step on a terminal.")] = 0.25,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
) -> None:
    """Watch a completion being unmasked.

    The colour of a token shows its entropy when it was committed.
    """
    from unmask.cli.sample import watch
    from unmask.core.errors import ConfigError
    from unmask.models import load_model
    from unmask.models.device import default_device
    from unmask.recipes.load import make_sampler, make_task

    chosen = make_task(task, option or ()) if task else None
    verdict = None
    if prompt is None:
        if chosen is None:
            raise ConfigError("there is no prompt. Set --prompt, or --task to take the prompt from a task.")
        items = chosen.rows("test", row + 1, seed)
        if row >= len(items):
            raise ConfigError(
                f"--row {row} does not exist: the test split has {len(items)} examples. The first one is --row 0."
            )
        prompt, verdict = items[row]["prompt"], partial(_verdict, chosen, items[row])
    sampler = make_sampler(
        max_completion_length=length or (chosen.completion_length if chosen else 64),
        num_steps=steps,
        temperature=temperature,
        order=order,
        block_length=block_length,
        schedule=schedule,
        cache=cache,
    )
    policy = load_model(model, device=default_device())
    watch(policy, prompt, sampler, seed=seed, delay=delay, verdict=verdict)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    options_metavar="[options of `lm_eval run`]",
)
def harness(context: typer.Context) -> None:
    """Run tasks of lm-evaluation-harness on a denoiser.

    Example: unmask harness --model_args pretrained=FOLDER,length=256 --tasks gsm8k

    The options are the options of the command `lm_eval run`. If the package is installed, --help
    lists these options: pip install "unmask[lm-eval]"
    """
    from importlib.util import find_spec

    if {"-h", "--help"} & {*context.args} and find_spec("lm_eval") is None:
        typer.echo(context.get_help())
        return
    from unmask.evaluation.lm_eval import run

    run(context.args)


@data.command(name="check")
def check_data(
    task: Annotated[str, typer.Argument(help="Name of the task, or path as in my_task.py:Mine.")],
    option: TaskOptions = None,
    rows: Annotated[int, typer.Option(min=1, help="Maximum number of examples to read from each split.")] = 10_000,
    ngram: Annotated[int, typer.Option(min=1, help="Number of words in an n-gram.")] = 13,
    seed: Annotated[int, typer.Option(help="Seed of the examples.")] = 0,
) -> None:
    """Report what held-out examples share with training examples.

    The exit code is 1 if they share prompts.
    """
    from unmask.cli.evaluation_tables import overlap_table
    from unmask.recipes.load import make_task
    from unmask.tasks.contamination import check_splits, rows_of_splits

    chosen = make_task(task, option or ())
    splits = rows_of_splits(chosen, rows, seed)
    overlaps = check_splits(splits, n=ngram)
    overlap_table(overlaps, f"{task}: compared with {len(splits['train'])} training examples")
    if left_out := chosen.candidates("train", rows, seed).left_out:
        say(f"unusable examples left out: {len(left_out)}, the first is {left_out[0]}")
    if any(o.num_found for o in overlaps if o.kind == "prompt"):
        raise typer.Exit(1)


def _verdict(task: Task, row: Row, completion: str) -> str:
    """Return whether a completion solves an example of a task, as a text with the right answer."""
    if task.solved(completion, row):
        return "solved"
    return f"not solved; the answer is {row['answer']}" if "answer" in row else "not solved"

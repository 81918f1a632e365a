"""Tasks with longer answers: does the value of a one-step completion predict the return?

    python -m benchmark.long_answers            # half a CPU minute a task
    python -m benchmark.long_answers --table

It samples completions of test examples with each base model, and scores the one-step
completion of every state of their paths. For each denoising step it reports Spearman's rank
correlation between this value and the reward of the finished completion: over all completions, and
within the completions of a prompt, where the mean of each prompt is subtracted from both. The
interval is a bootstrap over prompts. The control pairs the values of each prompt with the rewards
of the next prompt, and must be near zero.

Base models are those of the recipes, made once if they are missing (5 to 10 CPU minutes each).
Results go to benchmark/results/long_answers.jsonl, one line for each task; a task that has a line does
not run again. `unmask compare long-answers` trains on one of the tasks.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "long_answers.jsonl"
WORK = Path("runs/benchmark/long_answers")
TASKS = ("arithmetic-long", "story-small", "sudoku9-small")
RESAMPLES = 300


def base_of(task: str) -> Path:
    """Return the folder of a task's base model, which is made if it is missing."""
    from unmask.recipes.load import load
    from unmask.recipes.schema import PretrainRecipe
    from unmask.trainer.pretrain import pretrain

    folder = WORK / f"{task}-base"
    if not (folder / "final").exists():
        pretrain(load(PretrainRecipe, f"{task}-base", [f"output_dir={folder}"]), resume=folder.exists())
    return folder / "final"


def sampled_values(recipe_name: str, model: Path, num_prompts: int, group: int) -> dict[str, np.ndarray]:
    """Return the values and rewards of sampled paths.

    Args:
        recipe_name: recipe whose task and sampler are used.
        model: folder of the model to sample from.
        num_prompts: number of test examples.
        group: number of completions for each example.

    Returns:
        `value`, [prompts, group, T]: reward of the one-step completion of the state before each
        step, NaN for a step that a path did not take. `reward` and `solved`, [prompts, group].
    """
    import torch

    from unmask.core.records import Needs
    from unmask.functional.noise import named_generator
    from unmask.models import load_model
    from unmask.recipes.load import load_recipe
    from unmask.rewards.scorer import Scorer
    from unmask.sampling.encoding import decode, row_seeds
    from unmask.sampling.engine import LocalEngine

    recipe = load_recipe(recipe_name, [f"model={model}"])
    rows = [row for row in recipe.task.rows("test", num_prompts) for _ in range(group)]
    engine, scorer = LocalEngine(load_model(str(model))), Scorer(recipe.task.rewards())
    seeds = row_seeds(len(rows), named_generator(0, "long answers"))
    needs = Needs(greedy=True, selection=("all", recipe.sampler.steps))
    with engine.session(), torch.no_grad():
        path = engine.rollout([row["prompt"] for row in rows], recipe.sampler, seeds, needs=needs)
    texts = decode(engine.tokenizer, path.tokens)
    reward = scorer(rows, texts).total
    value = np.full((len(rows), recipe.sampler.steps), np.nan)
    assert path.one_step_tokens is not None
    for slot, step in enumerate(path.selected_steps.T.tolist()):
        guesses = scorer.unfinished(rows, decode(engine.tokenizer, path.one_step_tokens[:, slot])).total
        for i, (at, guess) in enumerate(zip(step, guesses, strict=True)):
            if at >= 0:
                value[i, at] = guess
    scorer.close()
    solved = [recipe.task.solved(text, row) for text, row in zip(texts, rows, strict=True)]
    shape = (num_prompts, group)
    return {
        "value": value.reshape(*shape, -1),
        "reward": np.reshape(reward, shape),
        "solved": np.reshape(solved, shape).astype(float),
    }


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Compute Spearman's rank correlation of two arrays of equal shape, with mean ranks for ties
    (C. Spearman, American Journal of Psychology 15, 1904). Entries that are NaN in either array are
    left out; the result is NaN if one array is then constant.

    Example:
        >>> rank_correlation(np.array([1.0, 2.0, 3.0, np.nan]), np.array([10.0, 30.0, 20.0, 0.0]))
        0.5
    """
    from scipy.stats import rankdata

    valid = ~(np.isnan(one) | np.isnan(other))
    a, b = rankdata(one[valid]), rankdata(other[valid])
    if len(a) < 2 or not np.ptp(a) or not np.ptp(b):
        return math.nan
    return round(float(np.corrcoef(a, b)[0, 1]), 12)


def centred(values: np.ndarray) -> np.ndarray:
    """Subtract from [prompts, group] values the mean of their prompt."""
    return np.round(values - values.mean(axis=1, keepdims=True), 9)


def correlations_of(value: np.ndarray, reward: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    """Return the rank correlations of the values before one step with the rewards.

    Args:
        value: [prompts, group] values, NaN where a path did not take the step.
        reward: [prompts, group] rewards of the finished completions.
        rng: source of the resamples.
    """
    draws = [rng.integers(len(value), size=len(value)) for _ in range(RESAMPLES)]
    resampled = [rank_correlation(value[draw], reward[draw]) for draw in draws]
    low, high = np.nanquantile(resampled, (0.025, 0.975)) if not np.all(np.isnan(resampled)) else (np.nan, np.nan)
    found = {
        "value": float(np.nanmean(value)) if not np.all(np.isnan(value)) else math.nan,
        "all": rank_correlation(value, reward),
        "low": float(low),
        "high": float(high),
        "within": rank_correlation(centred(value), centred(reward)),
        "control": rank_correlation(value, np.roll(reward, 1, axis=0)),
    }
    return {name: None if math.isnan(number) else round(number, 4) for name, number in found.items()}


def values_of(task: str, num_prompts: int, group: int) -> dict[str, Any]:
    """Return the line of a task: the correlations of each denoising step."""
    started = time.process_time()
    found = sampled_values(task, base_of(task), num_prompts, group)
    rng = np.random.default_rng(0)
    steps = [correlations_of(found["value"][..., k], found["reward"], rng) for k in range(found["value"].shape[-1])]
    return {
        "task": task,
        "prompts": num_prompts,
        "group": group,
        "solved": round(float(found["solved"].mean()), 4),
        "reward": round(float(found["reward"].mean()), 4),
        "steps": steps,
        "cpu_seconds": round(time.process_time() - started, 1),
    }


def read() -> list[dict[str, Any]]:
    """Return the results so far."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def write(line: dict[str, Any]) -> None:
    """Add a result to the file."""
    with RESULTS.open("a") as file:
        file.write(json.dumps(line) + "\n")


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return Markdown with the correlations at nine steps of each path."""
    lines = []
    for found in results:
        steps = found["steps"]
        shown = sorted(
            {round(share * (len(steps) - 1)) for share in (0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1)}
        )
        lines += [
            f"**{found['task']}**, {found['prompts']} test examples x {found['group']} completions, sampled at 0.9: solved "
            f"{found['solved']:.3f}, mean reward {found['reward']:.3f}",
            "",
            f"| denoising step of {len(steps)} | {' | '.join(str(k + 1) for k in shown)} |",
            "|---" * (len(shown) + 1) + "|",
        ]
        for name, keys in {
            "mean value": ("value",),
            "correlation, all completions": ("all",),
            "95 % interval": ("low", "high"),
            "correlation within prompts": ("within",),
            "control: rewards of another prompt": ("control",),
        }.items():
            cells = [" to ".join(_number(steps[k][key]) for key in keys) for k in shown]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines).rstrip()


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the tasks that have no line yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(TASKS), help="tasks, between commas")
    parser.add_argument("--prompts", type=int, default=48, help="number of test examples")
    parser.add_argument("--group", type=int, default=4, help="number of completions of an example")
    parser.add_argument("--table", action="store_true", help="print the table of the results so far and stop")
    options = parser.parse_args(arguments)
    if not options.table:
        done = {line["task"] for line in read()}
        for task in options.tasks.split(","):
            if task not in done:
                write(values_of(task, options.prompts, options.group))
    print(table(read()))


if __name__ == "__main__":
    main()

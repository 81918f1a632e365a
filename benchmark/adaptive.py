"""Adaptive schedules: accuracy against forward passes when a trained model decodes with them, and
accuracy of models that reinforcement learning trained on rollouts that use them.

    python -m benchmark.adaptive --seeds 5      # about eight minutes a seed on an idle core
    python -m benchmark.adaptive --table        # the tables of docs/adaptive-decoding.md
    python -m benchmark.adaptive --plot         # docs/images/adaptive-frontier-TASK.png

Every model of a seed and task starts from the same tiny base model. `frontier` decodes a trained model
on test examples by fixed numbers of steps and by adaptive schedules: on Sudoku the model trained on
rollouts of eight fixed steps, on the other tasks the model of the shipped recipe.
The other variants train on Sudoku with another schedule of the rollouts, until they have spent the same
token passes. All of them are evaluated at eight fixed steps. Results go to
benchmark/results/adaptive.jsonl, one line for each cell; an existing line does not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unmask.core.config import SamplerConfig
from unmask.core.schedules import Schedule
from unmask.functional.intervals import mean_interval
from unmask.models import load_model
from unmask.recipes.load import load, load_recipe, make_sampler
from unmask.recipes.schema import PretrainRecipe
from unmask.report.frontier import FrontierPoint, draw_frontier
from unmask.runs.metrics import read_metrics, temperature_name
from unmask.trainer.loop import Trainer
from unmask.trainer.pretrain import pretrain

RESULTS = Path(__file__).parent / "results" / "adaptive.jsonl"
IMAGES = Path(__file__).parents[1] / "docs" / "images"
WORK = Path("runs/benchmark/adaptive")
TASKS = ("sudoku", "countdown", "arithmetic")
MEASURED = ("evaluation.eval_steps=0", "evaluation.num_rows=1", "log_rollouts_steps=0")
BUDGET = 3_000_000
"""Token passes of a run in the comparison of schedules, about 145 steps with eight forward passes."""
NUM_ROWS = 256
"""Number of test examples of an evaluation."""
FIXED_STEPS = (1, 2, 3, 4, 6, 8, 12, 16)
SCHEDULES = tuple(
    str(schedule)
    for schedule in Schedule.parse_all(
        "threshold=0.5,0.7,0.9,0.95,0.98,0.99,0.995,factor=0.1,0.3,1,2,entropy_bound=0.01,0.03,0.1,0.3,1"
    )
)
PAIRS = (("factor=0.1", 4), ("factor=0.1", 8), ("threshold=0.99", 6), ("entropy_bound=0.1", 6))
"""Adaptive schedules, each with a fixed number of steps to compare it with."""
CONTROL = "fixed, 8 steps"
STATE, ALL = {"sampler.order": "max_probability"}, {"method.step_choice": "all"}


def _adaptive(schedule: str) -> dict[str, str]:
    return {"sampler.schedule": schedule, "sampler.num_steps": "null"}


VARIANTS: dict[str, dict[str, str]] = {
    CONTROL: {},
    "threshold .9": _adaptive("threshold=0.9"),
    "threshold .9, state": _adaptive("threshold=0.9") | STATE,
    "threshold .98, state": _adaptive("threshold=0.98") | STATE,
    "entropy bound .3, state": _adaptive("entropy_bound=0.3") | STATE,
    "fixed, 8 steps, all": ALL,
    "threshold .9, state, all": _adaptive("threshold=0.9") | STATE | ALL,
}
"""Changes to the shipped recipe. `state` stands for a criterion of the state alone; the others have the
recipe's order `low_confidence`, whose criterion is the drawn token. `all` trains every step."""


def base_of(task: str, seed: int) -> Path:
    """Return the base model of a task and seed, which is pretrained if it is missing."""
    folder = WORK / task / "base" / str(seed)
    if not (folder / "final").exists():
        pretrain(load(PretrainRecipe, f"{task}-tiny-base", [f"output_dir={folder}", f"seed={seed}"]))
    return folder / "final"


def shipped(task: str, seed: int) -> Path:
    """Train the shipped recipe of a task, and return the model."""
    folder = WORK / task / "shipped" / str(seed)
    changes = [*MEASURED, f"model={base_of(task, seed)}", f"output_dir={folder}", f"seed={seed}"]
    if not (folder / "final").exists():
        Trainer(load_recipe(f"{task}-tiny", changes), resume=folder.exists()).train()
    return folder / "final"


def trained(variant: str, seed: int) -> tuple[Path, list[dict[str, Any]]]:
    """Train a variant on Sudoku until the budget is spent, and return its model and metrics."""
    folder = WORK / "sudoku" / variant.replace(",", "").replace(" ", "-") / str(seed)
    changes = [*MEASURED, f"model={base_of('sudoku', seed)}", f"output_dir={folder}", f"seed={seed}"]
    changes += [f"max_token_passes={BUDGET}", "max_steps=1000"]
    changes += [f"{key}={value}" for key, value in VARIANTS[variant].items()]
    if not (folder / "final").exists():
        Trainer(load_recipe("sudoku-tiny", changes), resume=folder.exists()).train()
    return folder / "final", [line for line in read_metrics(folder) if "compute/token_passes" in line]


def measured(model: Path, task: str, sampler: SamplerConfig) -> dict[str, float]:
    """Return the accuracy of a model with its forward passes, on test examples."""
    from unmask.evaluation.on_task import evaluate

    found = evaluate(load_model(model), task, NUM_ROWS, sampler=sampler)
    return {
        "accuracy": found.accuracy,
        "forwards": round(found.forwards, 3),
        "tokens_per_forward": round(found.tokens_per_forward, 3),
    }


def frontier(task: str, seed: int) -> dict[str, Any]:
    """Decode the model of the shipped recipe with every schedule."""
    model = trained(CONTROL, seed)[0] if task == "sudoku" else shipped(task, seed)
    own = load_recipe(f"{task}-tiny", [f"model={base_of(task, seed)}"]).sampler
    length, points = own.max_completion_length, []
    settings = [("fixed", steps) for steps in FIXED_STEPS if steps <= length]
    settings += [(schedule, length) for schedule in SCHEDULES]
    for temperature in (0.0, 0.9):
        for schedule, steps in settings:
            sampler = make_sampler(
                **own.model_dump() | {"schedule": schedule, "num_steps": steps, "temperature": temperature}
            )
            found = measured(model, task, sampler)
            points.append({"schedule": schedule, "steps": steps, "temperature": temperature, **found})
    return {"points": points}


def training(variant: str, seed: int) -> dict[str, Any]:
    """Train on Sudoku with the rollouts of a variant, and evaluate at eight fixed steps."""
    started = time.process_time()
    model, lines = trained(variant, seed)
    seconds = time.process_time() - started
    sampler = make_sampler(max_completion_length=16, num_steps=8)
    reached = {
        name: measured(model, "sudoku", sampler.model_copy(update={"temperature": temperature}))["accuracy"]
        for name, temperature in (("greedy", 0.0), ("sampled", 0.9))
    }
    changes = [f"model={base_of('sudoku', seed)}", *(f"{key}={value}" for key, value in VARIANTS[variant].items())]
    own = load_recipe("sudoku-tiny", changes).sampler
    return {
        **reached,
        "own": measured(model, "sudoku", own),
        "steps": len(lines),
        "token_passes": sum(line["compute/token_passes"] for line in lines),
        "forwards": [round(lines[i]["diffusion/forwards"], 2) for i in (0, len(lines) // 2, -1)],
        "reward": [round(lines[i]["reward"], 3) for i in (0, len(lines) // 2, -1)],
        "cpu_seconds": round(seconds, 1),
    }


def cells(seeds: int) -> list[tuple[str, str, int]]:
    """Return the kind, name and seed of every cell, the most important first."""
    # All steps are trained at the end, because they cost the most for what they show.
    parts = [[v for v in VARIANTS if v.endswith("all") == is_last] for is_last in (False, True)]
    of_training = [("training", variant, seed) for part in parts for seed in range(seeds) for variant in part]
    of_frontier = [("frontier", task, seed) for task in TASKS for seed in range(seeds)]
    return of_training + of_frontier


def results() -> list[dict[str, Any]]:
    """Return the lines of the results."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def run(wanted: Sequence[tuple[str, str, int]]) -> None:
    """Run the cells that have no result yet."""
    done = {(line["kind"], line["name"], line["seed"]) for line in results()}
    for kind, name, seed in wanted:
        if (kind, name, seed) in done:
            continue
        found = frontier(name, seed) if kind == "frontier" else training(name, seed)
        with RESULTS.open("a") as file:
            file.write(json.dumps({"kind": kind, "name": name, "seed": seed, **found}) + "\n")


def training_table(lines: Sequence[dict[str, Any]]) -> str:
    """Return accuracy and cost of the trained variants: mean and half the 95 % t interval over seeds."""
    rows = ["| rollouts | seeds | greedy | sampled | own schedule, sampled | forwards, first to last | steps |"]
    rows.append("|---|---|---|---|---|---|---|")
    for variant in VARIANTS:
        of_variant = [line for line in lines if line["kind"] == "training" and line["name"] == variant]
        if not of_variant:
            continue
        greedy, sampled = (_mean([line[name] for line in of_variant]) for name in ("greedy", "sampled"))
        own = _mean([line["own"]["accuracy"] for line in of_variant])
        first, last = (statistics.fmean(line["forwards"][i] for line in of_variant) for i in (0, -1))
        steps = statistics.fmean(line["steps"] for line in of_variant)
        cells = [variant, len(of_variant), greedy, sampled, own, f"{first:.1f} to {last:.1f}", f"{steps:.0f}"]
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows)


def points_by_seed(lines: Sequence[dict[str, Any]], task: str) -> list[list[dict[str, Any]]]:
    """Return the points of the frontier of a task, a list for each seed."""
    return [line["points"] for line in lines if line["kind"] == "frontier" and line["name"] == task]


def frontier_points(lines: Sequence[dict[str, Any]], task: str) -> list[FrontierPoint]:
    """Return the mean of every schedule over seeds, with a panel for each temperature."""
    points = []
    for of_setting in zip(*points_by_seed(lines, task), strict=True):
        first, accuracy = of_setting[0], [point["accuracy"] for point in of_setting]
        mean, half = mean_interval(accuracy)
        panel = f"{task}, {temperature_name(first['temperature'])}"
        forwards = statistics.fmean(point["forwards"] for point in of_setting)
        kind = Schedule.parse(first["schedule"]).type
        points.append(FrontierPoint(panel, kind, forwards, mean, max(0.0, mean - half), min(1.0, mean + half)))
    return points


def named(schedule: str, steps: int) -> str:
    """Return the name of a schedule in tables; the number of steps belongs to the fixed schedule."""
    if schedule != "fixed":
        return f"`{schedule}`"
    return "fixed, 1 step" if steps == 1 else f"fixed, {steps} steps"


def frontier_table(lines: Sequence[dict[str, Any]], task: str) -> str:
    """Return accuracy and forward passes of every schedule on a task."""
    seeds = points_by_seed(lines, task)
    rows = [f"| {task} | forwards, greedy | accuracy, greedy | forwards, sampled | accuracy, sampled |"]
    rows.append("|---|---|---|---|---|")
    settings = list(zip(*seeds, strict=True))
    for greedy, sampled in zip(settings[: len(settings) // 2], settings[len(settings) // 2 :], strict=True):
        cells = [named(greedy[0]["schedule"], greedy[0]["steps"])]
        for points in (greedy, sampled):
            cells.append(f"{statistics.fmean(point['forwards'] for point in points):.1f}")
            cells.append(_mean([point["accuracy"] for point in points]))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def paired_table(lines: Sequence[dict[str, Any]]) -> str:
    """Return differences in accuracy on Sudoku between adaptive schedules and fixed numbers of steps,
    paired by seed."""
    seeds = points_by_seed(lines, "sudoku")
    rows = ["| difference, paired by seed | forwards | greedy | sampled |", "|---|---|---|---|"]
    for schedule, steps in PAIRS:
        cells = [f"`{schedule}` - {steps} fixed steps"]
        for temperature in (0.0, 0.9):
            adaptive, fixed = (
                [point for points in seeds for point in points if _is(point, name, at, temperature)]
                for name, at in ((schedule, None), ("fixed", steps))
            )
            if temperature == 0:
                cells.append(f"{statistics.fmean(point['forwards'] for point in adaptive):.1f} - {steps}")
            differences = [a["accuracy"] - b["accuracy"] for a, b in zip(adaptive, fixed, strict=True)]
            cells.append(_mean(differences, "+"))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _is(point: dict[str, Any], schedule: str, steps: int | None, temperature: float) -> bool:
    return (point["schedule"], point["temperature"]) == (schedule, temperature) and steps in (None, point["steps"])


def _mean(values: Sequence[float], sign: str = "") -> str:
    mean, half = mean_interval(values)
    return f"{mean:{sign}.3f}" if math.isnan(half) else f"{mean:{sign}.3f} ± {half:.3f}"


def main() -> None:
    """Run the cells, or print the tables or draw the plot of their results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--kind", choices=("training", "frontier"), help="run the cells of one kind only")
    parser.add_argument("--table", action="store_true", help="print the tables of the results")
    parser.add_argument("--plot", action="store_true", help="draw the frontier of the results")
    arguments = parser.parse_args()
    if arguments.table:
        tables = [frontier_table(results(), task) for task in TASKS]
        print(*tables, paired_table(results()), training_table(results()), sep="\n\n")
    if arguments.plot:
        for task in TASKS:
            image = IMAGES / f"adaptive-frontier-{task}.png"
            points = frontier_points(results(), task)
            draw_frontier(points, image, "Five seeds. Bands: 95 % Student-t interval over seeds.")
            for further in (".pdf", ".svg"):
                image.with_suffix(further).unlink(missing_ok=True)
    if not arguments.table and not arguments.plot:
        run([cell for cell in cells(arguments.seeds) if arguments.kind in (None, cell[0])])


if __name__ == "__main__":
    main()

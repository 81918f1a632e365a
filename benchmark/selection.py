"""Which denoising steps to train: highest entropy, uniform or last K, and EGSPO-SA or EGSPO.

    python -m benchmark.selection --jobs 2        # run the missing cells; interrupt and repeat as you like
    python -m benchmark.selection --table         # the table of docs/methods/egspo.md

The number of selected steps is K = 1, 2 or 4. Every cell of one task and seed starts from the same
base model, sees the same prompts, and may spend the same number of token passes, including those of
the rollout. All cells use the learning rate and other settings of the shipped recipe; nothing was
tuned for any of them. Results go to benchmark/results/selection.jsonl, one line for each finished
cell.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "selection.jsonl"
WORK = Path("runs/benchmark/selection")
BUDGET = {"sudoku": 2_600_000, "countdown": 2_000_000}
"""Number of token passes of a cell's training."""
PROMPT_LENGTH = {"sudoku": 17, "countdown": 9}
"""Length of the longest prompt in tokens, to compute how many steps a budget allows; the passes
spent are measured."""
ARMS = {
    "entropy": {"type": "egspo", "step_choice": "entropy_topk"},
    "entropy, SA": {"type": "egspo_sa", "step_choice": "entropy_topk"},
    "last_k": {"type": "egspo", "step_choice": "last_k"},
    "uniform": {"type": "egspo", "step_choice": "uniform"},
}
NUM_SELECTED = (1, 2, 4)


@dataclass(frozen=True)
class Cell:
    """One training run."""

    task: str
    arm: str
    num_selected: int
    seed: int


def cells(num_seeds: int) -> list[Cell]:
    """Return all cells, seed by seed, so that an interrupted comparison is balanced."""
    return [
        Cell(task, arm, k, seed) for seed in range(num_seeds) for task in BUDGET for k in NUM_SELECTED for arm in ARMS
    ]


def base_model(task: str, seed: int) -> Path:
    """Return the base model of one task and seed, which is pretrained once."""
    from unmask.recipes.load import load
    from unmask.recipes.schema import PretrainRecipe
    from unmask.trainer.pretrain import pretrain

    folder = WORK / f"{task}-base-{seed}"
    if not (folder / "final").exists():
        pretrain(load(PretrainRecipe, f"{task}-tiny-base", [f"output_dir={folder}", f"seed={seed}"]), resume=True)
    return folder / "final"


def run_cell(cell: Cell) -> dict[str, Any]:
    """Train one cell and evaluate it at the end."""
    from unmask.recipes.load import load_recipe
    from unmask.runs.metrics import read_metrics
    from unmask.trainer import Trainer

    folder = WORK / f"{cell.task}-{cell.arm.replace(', ', '-')}-{cell.num_selected}-{cell.seed}"
    overrides = [
        f"model={base_model(cell.task, cell.seed)}",
        f"output_dir={folder}",
        f"seed={cell.seed}",
        "num_iterations=1",
        "method.beta=0.0",
        f"method.num_selected={cell.num_selected}",
        *(f"method.{key}={value}" for key, value in ARMS[cell.arm].items()),
        "evaluation.eval_steps=0",
        "log_rollouts_steps=0",
    ]
    shape = load_recipe(f"{cell.task}-tiny", overrides)
    length = PROMPT_LENGTH[cell.task] + shape.sampler.max_completion_length
    completions = shape.num_prompts * shape.num_generations
    cost = completions * length * (shape.sampler.steps + 3 * cell.num_selected)
    recipe = load_recipe(f"{cell.task}-tiny", [*overrides, f"max_steps={BUDGET[cell.task] // cost}"])
    Trainer(recipe, resume=True).train()
    lines = read_metrics(folder)
    last, split = lines[-1], recipe.evaluation.split
    return asdict(cell) | {
        "steps": recipe.max_steps,
        "token_passes": sum(line.get("compute/token_passes", 0) for line in lines),
        "greedy": last[f"eval/{split}@0/accuracy"],
        "sampled": last[f"eval/{split}@0.9/accuracy"],
        "reward": last[f"eval/{split}@0.9/reward"],
    }


def base_accuracy(task: str, seed: int) -> dict[str, Any]:
    """Return the accuracy of the base model of one task and seed before RL."""
    from unmask.evaluation.evaluate import evaluate
    from unmask.models import load_model
    from unmask.recipes.load import load_recipe
    from unmask.rewards.scorer import Scorer

    model = base_model(task, seed)
    recipe = load_recipe(f"{task}-tiny", [f"model={model}", f"seed={seed}"])
    denoiser, tokenizer = load_model(str(model))
    rows = recipe.task.rows(recipe.evaluation.split, recipe.evaluation.num_rows, seed)
    found: dict[str, Any] = asdict(Cell(task, "base", 0, seed)) | {"steps": 0, "token_passes": 0}
    for name, temperature in (("greedy", 0.0), ("sampled", 0.9)):
        sampler = recipe.sampler.model_copy(update={"temperature": temperature})
        scorer = Scorer(recipe.task.rewards())
        result = evaluate(denoiser, tokenizer, recipe.task, scorer, rows, sampler, seed=seed)
        found |= {name: result.accuracy, "reward": result.reward}
    return found


def _work(cell: Cell) -> dict[str, Any]:
    import torch

    # Two processes with one thread each do half as much again as one with two.
    torch.set_num_threads(1)
    return base_accuracy(cell.task, cell.seed) if cell.arm == "base" else run_cell(cell)


def run(num_seeds: int, jobs: int) -> None:
    """Run all cells without a result, `jobs` at a time, and write each result as it arrives."""
    RESULTS.parent.mkdir(exist_ok=True)
    done = {(r["task"], r["arm"], r["num_selected"], r["seed"]) for r in read()}
    # Pretrain the base models first, so that several cells that start together do not pretrain the
    # same one.
    bases = [Cell(task, "base", 0, seed) for seed in range(num_seeds) for task in BUDGET]
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for stage in (bases, cells(num_seeds)):
            todo = [cell for cell in stage if (cell.task, cell.arm, cell.num_selected, cell.seed) not in done]
            for result in pool.imap_unordered(_work, todo):
                with RESULTS.open("a") as file:
                    file.write(json.dumps(result) + "\n")
                print(json.dumps(result), flush=True)


def read() -> list[dict[str, Any]]:
    """Return the results so far."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean, and half the width of its 95 % Student-t interval."""
    from scipy import stats

    if len(values) < 2:
        return statistics.fmean(values), float("nan")
    quantile = float(stats.t.ppf(0.975, len(values) - 1))
    return statistics.fmean(values), quantile * statistics.stdev(values) / len(values) ** 0.5


def table() -> str:
    """Return Markdown with each cell's accuracy, and paired differences within seeds."""
    results = read()
    by_cell: dict[tuple[str, str, int], dict[int, dict[str, Any]]] = {}
    for r in results:
        by_cell.setdefault((r["task"], r["arm"], r["num_selected"]), {})[r["seed"]] = r
    lines = []
    for task in BUDGET:
        lines += [
            f"**{task}**, {BUDGET[task] / 1e6:g}M token passes",
            "",
            "| steps trained | K | seeds | RL steps | solved, sampled at 0.9 | solved, greedy |",
            "|---|---|---|---|---|---|",
        ]
        for arm, k in [("base", 0), *((arm, k) for k in NUM_SELECTED for arm in ARMS)]:
            if found := by_cell.get((task, arm, k)):
                one = next(iter(found.values()))
                cells_ = [_cell([r[key] for r in found.values()]) for key in ("sampled", "greedy")]
                lines.append(f"| {arm} | {k or ''} | {len(found)} | {one['steps']} | {' | '.join(cells_)} |")
        lines += ["", "| difference, paired by seed | K | sampled at 0.9 | greedy |", "|---|---|---|---|"]
        for one_arm, other in (("entropy", "uniform"), ("entropy", "last_k"), ("entropy, SA", "entropy")):
            for k in NUM_SELECTED:
                a, b = by_cell.get((task, one_arm, k), {}), by_cell.get((task, other, k), {})
                seeds = sorted(a.keys() & b.keys())
                if seeds:
                    differences = [
                        _cell([a[s][key] - b[s][key] for s in seeds], signed=True) for key in ("sampled", "greedy")
                    ]
                    lines.append(f"| {one_arm} - {other} | {k} | {' | '.join(differences)} |")
        lines.append("")
    return "\n".join(lines)


def _cell(values: Sequence[float], *, signed: bool = False) -> str:
    mean, half = mean_and_interval(values)
    return f"{mean:{'+' if signed else ''}.3f} ± {half:.3f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="print the table of the results so far and stop")
    arguments = parser.parse_args()
    if not arguments.table:
        run(arguments.seeds, arguments.jobs)
    print(table())

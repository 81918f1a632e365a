"""Groups without signal, refilled or not, at equal token passes: accuracy over seeds.

    python -m benchmark.refill --seeds 5          # about 80 seconds a seed on an idle core
    python -m benchmark.refill --table

EGSPO and EGSPO-SA train the tiny Sudoku model with the reward 1 for a solved grid and 0 otherwise,
with which many groups have equal rewards. Every run stops at the same number of token passes, in
which those of the extra rollouts count. A step with extra rollouts costs about twice as much, so a
third variant without them has twice as many prompts in a step. Every variant of a seed starts from
the same base model. Results go to benchmark/results/refill.jsonl, one line for each variant and
seed; an existing line does not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from unmask.functional.intervals import mean_interval
from unmask.recipes.load import load, load_recipe
from unmask.recipes.schema import PretrainRecipe
from unmask.runs.metrics import read_metrics
from unmask.trainer.loop import Trainer
from unmask.trainer.pretrain import pretrain

RESULTS = Path(__file__).parent / "results" / "refill.jsonl"
WORK = Path("runs/benchmark/refill")
RECIPE, BASE = "sudoku-tiny", "sudoku-tiny-base"
SETTINGS = (
    "task.sparse=true",
    "max_steps=1000",
    "max_token_passes=1_600_000",
    "evaluation.eval_steps=0",
    "evaluation.num_rows=512",
    "log_rollouts_steps=0",
)
METHODS = {
    "EGSPO": ("method={type: egspo, num_selected: 1, beta: 0.0}",),
    "EGSPO-SA": (),
}
VARIANTS = {
    "no extra rollouts": (),
    "at most 2 extra rollouts": ("refill_rounds=2",),
    "no extra rollouts, 32 prompts": ("num_prompts=32",),
}
_, REFILLED, AS_DEAR = VARIANTS
TEMPERATURES = {"greedy": "eval/test@0/accuracy", "sampled": "eval/test@0.9/accuracy"}


def run_cell(method: str, variant: str, seed: int) -> dict[str, Any]:
    """Train one variant from the base of its seed, which is made if it is missing."""
    folder, base = WORK / f"{method}, {variant}" / str(seed), WORK / "base" / str(seed)
    if not (base / "final").exists():
        pretrain(load(PretrainRecipe, BASE, [f"output_dir={base}", f"seed={seed}"]))
    own = (f"model={base / 'final'}", f"output_dir={folder}", f"seed={seed}")
    recipe = load_recipe(RECIPE, (*SETTINGS, *METHODS[method], *VARIANTS[variant], *own))
    started = time.process_time()
    Trainer(recipe, resume=folder.exists()).train()
    seconds = time.process_time() - started
    lines = read_metrics(folder)
    steps = [line for line in lines if "advantage/frac_flat_groups" in line]
    names = {
        "equal_rewards": "frac_reward_zero_std",
        "without_signal": "advantage/frac_flat_groups",
        "extra_share": "refill/extra_share",
    }
    return {
        "method": method,
        "variant": variant,
        "seed": seed,
        "steps": len(steps),
        "token_passes": int(sum(line["compute/token_passes"] for line in steps)),
        "reward_calls": int(sum(line["compute/reward_calls"] for line in steps)),
        **{name: round(statistics.fmean(line.get(key, 0.0) for line in steps), 4) for name, key in names.items()},
        **{name: lines[-1][key] for name, key in TEMPERATURES.items()},
        "cpu_seconds": round(seconds, 1),
    }


def read_results() -> list[dict[str, Any]]:
    """Return the results so far."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return the table of the documentation. Differences are those of refilled groups and twice as
    many prompts, paired by seed."""
    by_cell = {(r["method"], r["variant"], r["seed"]): r for r in results}
    columns = ["method", "variant", "equal rewards", "without signal", "steps", "greedy", "sampled at 0.9"]
    lines = [columns, ["---"] * len(columns)]
    for method in METHODS:
        for variant in VARIANTS:
            seeds = sorted(seed for name, other, seed in by_cell if (name, other) == (method, variant))
            cells = [by_cell[method, variant, seed] for seed in seeds]
            if not cells:
                continue
            shares = [statistics.fmean(cell[key] for cell in cells) for key in ("equal_rewards", "without_signal")]
            line = [method, variant, *(f"{share:.2f}" for share in shares)]
            line.append(f"{statistics.fmean(cell['steps'] for cell in cells):.0f}")
            for name in TEMPERATURES:
                told = "{:.3f} ± {:.3f}".format(*mean_interval([cell[name] for cell in cells]))
                if variant == REFILLED:
                    plain = [by_cell[method, AS_DEAR, seed][name] for seed in seeds]
                    gains = [cell[name] - other for cell, other in zip(cells, plain, strict=True)]
                    told += " ({:+.3f} ± {:.3f})".format(*mean_interval(gains))
                line.append(told)
            lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--table", action="store_true", help="print the table of the results so far")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.table:
        print(table(read_results()))
        return
    for method, seed, variant in product(METHODS, range(arguments.seeds), VARIANTS):
        if (method, variant, seed) in {(r["method"], r["variant"], r["seed"]) for r in read_results()}:
            continue
        line = json.dumps(run_cell(method, variant, seed))
        with RESULTS.open("a") as file:
            file.write(line + "\n")
        print(line[:160], flush=True)


if __name__ == "__main__":
    main()

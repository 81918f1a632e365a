"""Groups without signal, refilled or not, at equal token passes: accuracy over seeds.

    python -m benchmark.refill --seeds 5          # about two minutes a seed on an idle core
    python -m benchmark.refill --table

EGSPO and EGSPO-SA train the tiny Sudoku model with the reward 1 for a solved grid and 0 otherwise,
with which many groups have equal rewards. Every run stops at the same number of token passes, in
which those of the extra rollouts count. Every variant of a seed starts from the same base model.
Results go to
benchmark/results/refill.jsonl, one line for each variant and seed; an existing line does not run
again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
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
ROUNDS = (0, 2)
TEMPERATURES = {"greedy": "eval/test@0/accuracy", "sampled": "eval/test@0.9/accuracy"}


def run_cell(method: str, rounds: int, seed: int) -> dict[str, Any]:
    """Train one variant from the base of its seed, which is made if it is missing."""
    folder, base = WORK / f"{method}-{rounds}" / str(seed), WORK / "base" / str(seed)
    if not (base / "final").exists():
        pretrain(load(PretrainRecipe, BASE, [f"output_dir={base}", f"seed={seed}"]))
    changes = (f"refill_rounds={rounds}", f"model={base / 'final'}", f"output_dir={folder}", f"seed={seed}")
    recipe = load_recipe(RECIPE, (*SETTINGS, *METHODS[method], *changes))
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
        "rounds": rounds,
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
    """Return the table of the documentation."""
    by_cell = {(r["method"], r["rounds"], r["seed"]): r for r in results}
    columns = ["method", "extra rollouts", "equal rewards", "without signal", "steps", "greedy", "sampled at 0.9"]
    lines = [columns, ["---"] * len(columns)]
    for method in METHODS:
        seeds = sorted({seed for name, _, seed in by_cell if name == method})
        for rounds in ROUNDS:
            cells = [by_cell[method, rounds, seed] for seed in seeds]
            mean = {
                key: statistics.fmean(cell[key] for cell in cells)
                for key in ("equal_rewards", "without_signal", "steps")
            }
            line = [method, f"at most {rounds}" if rounds else "none", f"{mean['equal_rewards']:.2f}"]
            line += [f"{mean['without_signal']:.2f}", f"{mean['steps']:.0f}"]
            for name in TEMPERATURES:
                told = "{:.3f} ± {:.3f}".format(*mean_interval([cell[name] for cell in cells]))
                if rounds:
                    gains = [
                        cell[name] - by_cell[method, 0, seed][name] for cell, seed in zip(cells, seeds, strict=True)
                    ]
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
    for method in METHODS:
        for seed in range(arguments.seeds):
            for rounds in ROUNDS:
                done = {(r["method"], r["rounds"], r["seed"]) for r in read_results()}
                if (method, rounds, seed) not in done:
                    line = json.dumps(run_cell(method, rounds, seed))
                    with RESULTS.open("a") as file:
                        file.write(line + "\n")
                    print(line[:160], flush=True)


if __name__ == "__main__":
    main()

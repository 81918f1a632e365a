"""Improvement of the embedded tasks by RL, over seeds, each with its own base model.

    python -m benchmark.lift                      # about two minutes a seed on an idle core
    python -m benchmark.lift --table

Arithmetic runs here, with its shipped recipes. Results go to benchmark/results/lift.jsonl, one line
for each seed; an existing seed does not run again. The improvements of the other tasks come from
the comparison in benchmark/results/controls-tiny.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from unmask.report.tables import with_interval
from unmask.runs.metrics import read_metrics
from unmask.trainer.comparison.results import Mean

RESULTS = Path(__file__).parent / "results" / "lift.jsonl"
WORK = Path("runs/benchmark/lift")
CELLS = RESULTS.parent / "controls-tiny" / "cells.jsonl"
RECIPE, BASE = "arithmetic-tiny-ca", "arithmetic-tiny-long-base"
COLUMNS = ("greedy base", "greedy trained", "sampled base", "sampled trained")
COMPARED = ("EGSPO-SA 8x4", "EGSPO-CA step 32x1", "EGSPO-CA all 32x1")
"""Methods of the comparison with a line in the table."""
TEMPERATURES = {"greedy": "0", "sampled": "0.9"}


def run_seed(seed: int) -> dict[str, Any]:
    """Pretrain and train, each in a separate process with one thread."""
    folder = WORK / f"{RECIPE}-{seed}"
    started = time.perf_counter()
    for command in (
        ["pretrain", BASE, f"output_dir={folder / 'base'}"],
        ["train", RECIPE, f"model={folder / 'base' / 'final'}", f"output_dir={folder / 'run'}"],
    ):
        subprocess.run(
            [sys.executable, "-m", "unmask", *command, f"seed={seed}", "--resume"],
            check=True,
            capture_output=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    lines = [line for line in read_metrics(folder / "run") if "eval/test@0/accuracy" in line]
    reached = {
        f"{name} {when}": line[f"eval/test@{temperature}/accuracy"]
        for name, temperature in TEMPERATURES.items()
        for when, line in (("base", lines[0]), ("trained", lines[-1]))
    }
    seconds = round(time.perf_counter() - started, 1)
    return {"recipe": RECIPE, "seed": seed, "steps": lines[-1]["step"], **reached, "seconds": seconds}


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file of results."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def compared(task: str, method: str) -> list[dict[str, Any]]:
    """Return base and trained accuracy of each seed of the comparison, named as in `run_seed`."""
    cells = [cell for cell in read(CELLS) if cell["task"] == task and "accuracy" in cell]
    base = {cell["seed"]: cell["accuracy"] for cell in cells if cell["stage"] == "base"}
    return [
        {"seed": cell["seed"]}
        | {
            f"{name} {when}": accuracy[temperature]
            for name, temperature in TEMPERATURES.items()
            for when, accuracy in (("base", base[cell["seed"]]), ("trained", cell["accuracy"]))
        }
        for cell in cells
        if cell["stage"] == "final" and cell["method"] == method
    ]


def summary(results: list[dict[str, Any]]) -> list[str]:
    """Return means over seeds and improvements paired by seed, with 95 % t intervals."""
    rises = [[r[f"{name} trained"] - r[f"{name} base"] for r in results] for name in TEMPERATURES]
    means = [with_interval(Mean.of([r[c] for r in results], 0.0, 1.0)) for c in COLUMNS]
    return means + [with_interval(Mean.of(rise, -1.0, 1.0), signed=True) for rise in rises]


def table() -> str:
    """Return Markdown with the runs of arithmetic, and a line for each task."""
    results = sorted(read(RESULTS), key=lambda r: r["seed"])
    lines = [f"| seed | {' | '.join(COLUMNS)} |", "|---" * 5 + "|"]
    lines += [f"| {r['seed']} | {' | '.join(f'{r[c]:.3f}' for c in COLUMNS)} |" for r in results]
    lines += ["", f"| task | seeds | {' | '.join(COLUMNS)} | greedy rise | sampled rise |", "|---" * 8 + "|"]
    rows = {f"arithmetic, `{RECIPE}`": results} if results else {}
    for task in ("sudoku", "sparse sudoku", "countdown", "arithmetic"):
        for method in COMPARED:
            if found := compared(task, method):
                rows[f"{task}, {method}"] = found
    lines += [f"| {name} | {len(found)} | {' | '.join(summary(found))} |" for name, found in rows.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--table", action="store_true", help="print the table of the results so far and stop")
    arguments = parser.parse_args()
    if not arguments.table:
        done = {r["seed"] for r in read(RESULTS)}
        for seed in range(arguments.seeds):
            if seed not in done:
                with RESULTS.open("a") as file:
                    file.write(json.dumps(run_seed(seed)) + "\n")
    print(table())

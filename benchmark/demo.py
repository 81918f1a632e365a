"""The demo on several seeds, with pretraining reseeded too: its accuracy, time and memory.

    python -m benchmark.demo --seeds 5            # about a minute and a half each on two idle cores
    python -m benchmark.demo --table

Results go to benchmark/results/demo.jsonl, one line for each seed.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from unmask.runs.metrics import read_metrics

RESULTS = Path(__file__).parent / "results" / "demo.jsonl"
WORK = Path("runs/benchmark/demo")


def run_seed(seed: int) -> dict[str, Any]:
    """Run one demo from the start in a separate process."""
    folder = WORK / f"seed-{seed}"
    started = time.perf_counter()
    command = [sys.executable, "-m", "unmask", "demo", "--seed", str(seed), "--output-dir", str(folder)]
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - started
    lines = read_metrics(folder / "egspo_sa")
    first, last = lines[0], lines[-1]
    reached = {
        f"{name} {when}": line[f"eval/test@{temperature}/accuracy"]
        for name, temperature in (("greedy", "0"), ("sampled", "0.9"))
        for when, line in (("base", first), ("trained", last))
    }
    # This covers all child processes so far: the largest is an upper bound for this one.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return {"seed": seed, **reached, "seconds": round(seconds, 1), "peak_gib": round(peak, 2)}


def read() -> list[dict[str, Any]]:
    """Return the results so far."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def table() -> str:
    """Return a Markdown table with a line for each seed, and the means."""
    results = sorted(read(), key=lambda r: r["seed"])
    columns = ["greedy base", "greedy trained", "sampled base", "sampled trained"]
    lines = [f"| seed | {' | '.join(columns)} | seconds | peak memory, GiB |", "|---" * 7 + "|"]
    for r in results:
        cells = " | ".join(f"{r[c]:.3f}" for c in columns)
        lines.append(f"| {r['seed']} | {cells} | {r['seconds']:.0f} | {r['peak_gib']:.2f} |")
    means = " | ".join(f"{statistics.fmean(r[c] for r in results):.3f}" for c in columns)
    lines.append(f"| mean | {means} | {statistics.fmean(r['seconds'] for r in results):.0f} | |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--table", action="store_true", help="print the table of the results so far and stop")
    arguments = parser.parse_args()
    if not arguments.table:
        RESULTS.parent.mkdir(exist_ok=True)
        done = {r["seed"] for r in read()}
        for seed in range(arguments.seeds):
            if seed not in done:
                with RESULTS.open("a") as file:
                    file.write(json.dumps(run_seed(seed)) + "\n")
    print(table())

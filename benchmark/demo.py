"""The demo on several seeds, with pretraining reseeded too: its accuracy, CPU time and memory.

    python -m benchmark.demo --seeds 5            # about half a minute each on two idle cores
    python -m benchmark.demo --table
    python -m benchmark.demo --against CHECKOUT   # the CPU time of its RL, alternating with another version's

Results go to benchmark/results/demo.jsonl, one line for each seed. CPU time is that of all threads;
on a machine that other work shares it is steadier than wall time, and larger than on an idle one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from unmask.runs.metrics import read_metrics

RESULTS = Path(__file__).parent / "results" / "demo.jsonl"
WORK = Path("runs/benchmark/demo")


def run(command: list[str], source: Path | None = None) -> tuple[float, float]:
    """Run a command of unmask in a separate process, and return its CPU seconds and its peak memory
    in GiB.

    Args:
        command: arguments after `unmask`.
        source: checkout whose code runs; default the code that runs now.
    """
    environment = os.environ | ({"PYTHONPATH": str(source / "src")} if source else {})
    process = subprocess.Popen([sys.executable, "-m", "unmask", *command], env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20


def accuracies(folder: Path) -> dict[str, float]:
    """Return the first and the last evaluation of a run."""
    lines = read_metrics(folder)
    return {
        f"{name} {when}": line[f"eval/test@{temperature}/accuracy"]
        for name, temperature in (("greedy", "0"), ("sampled", "0.9"))
        for when, line in (("base", lines[0]), ("trained", lines[-1]))
    }


def run_seed(seed: int) -> dict[str, Any]:
    """Run one demo from the start in a separate process."""
    folder = WORK / f"seed-{seed}"
    started = time.perf_counter()
    spent, peak = run(["demo", "--seed", str(seed), "--output-dir", str(folder)])
    seconds = {"seconds": round(time.perf_counter() - started, 1), "cpu_seconds": round(spent, 1)}
    return {"seed": seed, **accuracies(folder / "egspo_sa"), **seconds, "peak_gib": round(peak, 2)}


def against(other: Path, repeats: int) -> str:
    """Return a Markdown table of the CPU seconds of the demo after pretraining: imports,
    reinforcement learning with its evaluations, and the report. It alternates with that of another
    checkout, and each version starts from a base of its own."""
    versions: dict[str, Path | None] = {"this": None, "other": other}
    for name, source in versions.items():
        if not (WORK / "against" / name / "base" / "final").exists():
            run(["pretrain", "sudoku-tiny-base", f"output_dir={WORK / 'against' / name / 'base'}"], source)
    lines = ["| pair | this version, CPU s | the other, CPU s | ratio |", "|---|---|---|---|"]
    ratios = []
    for pair in range(repeats):
        spent = {}
        for name, source in versions.items():
            folder = WORK / "against" / f"{name}-{pair}"
            shutil.copytree(WORK / "against" / name / "base", folder / "base")
            # A demo whose base is finished continues with reinforcement learning.
            spent[name] = run(["demo", "--output-dir", str(folder)], source)[0]
        ratios.append(spent["other"] / spent["this"])
        lines.append(f"| {pair} | {spent['this']:.1f} | {spent['other']:.1f} | {ratios[-1]:.2f} |")
    lines.append(f"| median | | | {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |")
    return "\n".join(lines)


def read() -> list[dict[str, Any]]:
    """Return the results so far."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def table() -> str:
    """Return a Markdown table with a line for each seed, and the means."""
    results = sorted(read(), key=lambda r: r["seed"])
    columns = ["greedy base", "greedy trained", "sampled base", "sampled trained"]
    lines = [f"| seed | {' | '.join(columns)} | seconds | CPU seconds | peak memory, GiB |", "|---" * 8 + "|"]
    for r in results:
        cells = " | ".join(f"{r[c]:.3f}" for c in columns)
        lines.append(f"| {r['seed']} | {cells} | {r['seconds']:.0f} | {r['cpu_seconds']:.0f} | {r['peak_gib']:.2f} |")
    means = " | ".join(f"{statistics.fmean(r[c] for r in results):.3f}" for c in columns)
    seconds, spent = (statistics.fmean(r[key] for r in results) for key in ("seconds", "cpu_seconds"))
    lines.append(f"| mean | {means} | {seconds:.0f} | {spent:.0f} | |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--table", action="store_true", help="print the table of the results so far and stop")
    parser.add_argument("--against", type=Path, help="checkout of another version whose RL is timed in turn")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs with --against")
    arguments = parser.parse_args()
    if arguments.against:
        print(against(arguments.against, arguments.repeats))
        raise SystemExit
    if not arguments.table:
        RESULTS.parent.mkdir(exist_ok=True)
        done = {r["seed"] for r in read()}
        for seed in range(arguments.seeds):
            if seed not in done:
                with RESULTS.open("a") as file:
                    file.write(json.dumps(run_seed(seed)) + "\n")
    print(table())

"""The demo on several seeds, with pretraining reseeded too: its accuracy and CPU time.

    python -m benchmark.demo --seeds 5            # about half a minute each on two idle cores
    python -m benchmark.demo --table
    python -m benchmark.demo --against CHECKOUT   # the CPU time of its RL, alternating with another version's

Results go to benchmark/results/demo.jsonl, one line for each seed. CPU time is that of all threads.
On a machine that other work shares it is steadier than wall time, but larger than on an idle one,
up to twice as large; the load of each core is recorded with it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from unmask.runs.metrics import read_metrics

RESULTS = Path(__file__).parent / "results" / "demo.jsonl"
WORK = Path("runs/benchmark/demo")


def run(command: list[str], source: Path | None = None) -> float:
    """Run a command of unmask in a separate process, and return its CPU seconds.

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
    return usage.ru_utime + usage.ru_stime


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
    spent = run(["demo", "--seed", str(seed), "--output-dir", str(folder)])
    load = os.getloadavg()[1] / (os.cpu_count() or 1)
    return {"seed": seed, **accuracies(folder / "egspo_sa"), "cpu_seconds": round(spent, 1), "load": round(load, 1)}


def against(other: Path, repeats: int) -> str:
    """Return a Markdown table of the CPU seconds of the demo after pretraining: imports,
    reinforcement learning with its evaluations, and the report. It alternates with that of another
    checkout, and each version starts from a base of its own."""
    versions: dict[str, Path | None] = {"this": None, "other": other}
    for name, source in versions.items():
        if not (WORK / "against" / name / "base" / "final").exists():
            # The settings of the base are those of the version's own demo.
            run(["demo", "--output-dir", str(WORK / "against" / name)], source)
    lines = ["| pair | this version, CPU s | the other, CPU s | ratio |", "|---|---|---|---|"]
    ratios = []
    for pair in range(repeats):
        spent = {}
        for name, source in versions.items():
            folder = WORK / "against" / f"{name}-{pair}"
            shutil.copytree(WORK / "against" / name / "base", folder / "base")
            # A demo whose base is finished continues with reinforcement learning.
            spent[name] = run(["demo", "--output-dir", str(folder)], source)
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
    lines = [f"| seed | {' | '.join(columns)} | CPU seconds | load of a core |", "|---" * 7 + "|"]
    for r in results:
        cells = " | ".join(f"{r[c]:.3f}" for c in columns)
        lines.append(f"| {r['seed']} | {cells} | {r['cpu_seconds']:.0f} | {r['load']:.1f} |")
    means = " | ".join(f"{statistics.fmean(r[c] for r in results):.3f}" for c in columns)
    lines.append(f"| mean | {means} | {statistics.fmean(r['cpu_seconds'] for r in results):.0f} | |")
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

"""Speed and memory of a training step of this package beside the releases' own functions.

    OMP_NUM_THREADS=1 python -m benchmark.peers CHECKOUTS [--settings a,b,c --releases ESPO --output FILE]

CHECKOUTS is a folder with checkouts of the releases under the names of their repositories: nothing
is downloaded. A release without a checkout is named in the results as not measured. Both sides run
the same model on the same prompts or completions, in turn and in one process; a number is the CPU
time of the release divided by ours, as median (minimum to maximum) over the pairs. Memory is the
rise of the process's peak above its size before the phase, each side in a process of its own.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmark.peers.ours import Ours
from benchmark.peers.releases import RELEASES, Release
from benchmark.peers.setting import SHAPES, Setting

PHASES = ("rollout", "scoring", "update")
COLUMNS = (*PHASES, "whole step", "rollout, memory", "update, memory")
REPEATS = {"a": 9, "b": 5, "c": 5}


def phase_of(side: Ours | Release, phase: str) -> Callable[[], Any]:
    """Return the function of a phase, with its inputs made."""
    if phase != "rollout":
        side.prepare()
    if phase == "update":
        side.prepare_update()
    return {"rollout": side.rollout, "scoring": side.score, "update": side.update}[phase]


def times(theirs: Callable[[], Any], ours: Callable[[], Any], repeats: int) -> tuple[list[float], list[float]]:
    """Return the CPU seconds of both sides, run in turn after one warm-up each."""
    spent: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 1):
        for function, seconds in zip((theirs, ours), spent, strict=True):
            started = time.process_time()
            function()
            if repeat:
                seconds.append(time.process_time() - started)
    return spent


def ratio_text(theirs: list[float], ours: list[float]) -> str:
    """Return the median ratio of the pairs, and its range."""
    ratios = [one / other for one, other in zip(theirs, ours, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def peak_of(options: argparse.Namespace, release: str, setting: str, phase: str, side: str) -> float:
    """Return the memory of a phase in MiB, measured in a process of its own."""
    command = [sys.executable, "-m", "benchmark.peers", str(options.checkouts)]
    command += ["--peak", release, setting, phase, side]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure_peak(checkouts: Path, release: str, setting: str, phase: str, side: str) -> float:
    """Return how far the memory of this process rises above that of the model and the libraries in
    a phase, with the inputs that the phase keeps, in MiB."""
    made = Setting(setting)
    chosen = Ours(release, made) if side == "ours" else RELEASES[release](checkouts, made)
    before = peak_kilobytes()
    phase_of(chosen, phase)()
    return (peak_kilobytes() - before) / 1024


def peak_kilobytes() -> int:
    """Return the largest resident size of this program so far. `getrusage` would begin with that of
    the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def row_of(options: argparse.Namespace, release: str, setting: str) -> str:
    """Measure a release at a setting and return a line of the results."""
    cells = {}
    totals = [0.0, 0.0]
    for phase in filter(None, options.phases.split(",")):
        made = Setting(setting)
        sides = RELEASES[release](options.checkouts, made), Ours(release, made)
        theirs, ours = times(*(phase_of(side, phase) for side in sides), options.repeats or REPEATS[setting])
        cells[phase] = ratio_text(theirs, ours)
        if phase != "scoring" or RELEASES[release].scores:
            totals = [total + statistics.median(side) for total, side in zip(totals, (theirs, ours), strict=True)]
    if len(cells) == len(PHASES):
        cells["whole step"] = f"{totals[0] / totals[1]:.2f}"
    for phase in filter(None, options.memory.split(",")):
        theirs_, ours_ = (peak_of(options, release, setting, phase, side) for side in ("theirs", "ours"))
        cells[f"{phase}, memory"] = f"{theirs_ / max(ours_, 0.1):.2f} ({theirs_:.0f}/{ours_:.0f} MiB)"
    return f"| {release} | {setting} | {' | '.join(cells.get(column, '') for column in COLUMNS)} |"


def main(arguments: list[str] | None = None) -> None:
    """Measure and print; see the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkouts", type=Path, help="folder with the checkouts")
    parser.add_argument("--settings", default=",".join(SHAPES))
    parser.add_argument("--releases", default=",".join(RELEASES))
    parser.add_argument("--repeats", type=int, default=0, help="pairs of runs (9 at a, 5 at b and c)")
    parser.add_argument("--phases", default=",".join(PHASES), help="phases whose time is measured")
    parser.add_argument("--memory", default="rollout,update", help="phases whose memory is measured; may be empty")
    parser.add_argument("--output", type=Path, help="file for the results")
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if options.peak:
        print(measure_peak(options.checkouts, *options.peak))
        return
    lines = [f"| release | setting | {' | '.join(COLUMNS)} |", "|---" * (2 + len(COLUMNS)) + "|"]
    print("\n".join(lines), flush=True)
    for release in options.releases.split(","):
        for setting in options.settings.split(","):
            there = (options.checkouts / RELEASES[release].file).is_file()
            line = (
                row_of(options, release, setting) if there else f"| {release} | {setting} | not measured: no checkout |"
            )
            print(line, flush=True)
            lines.append(line)
    if options.output:
        options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

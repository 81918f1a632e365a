"""Speed and memory of a training step of this package beside the releases' own functions.

    OMP_NUM_THREADS=1 python -m benchmark.peers --checkouts FOLDER [--settings a,b,c --releases ESPO --output FILE]
    python -m benchmark.peers --checkouts FOLDER --device cuda [--phases rollout --rounds 2 --output FILE]

FOLDER has the checkouts of the releases under the names of their repositories: nothing is
downloaded. A release without a checkout is named in the results as not measured. Both sides run the
same model on the same prompts or completions, in turn and in one process; a number is the CPU time
of the release divided by ours. It is the median of the rounds, with their minimum and maximum and
the quotient of the fastest runs of the two sides. Memory is in MiB, release and ours; see `peak`.
Every measurement has a process of its own, which a server forks after it has loaded the libraries.

On a GPU, the model has the size of LLaDA-8B, setting (d), whose rollouts take hours on a CPU. Time
is wall-clock time, memory is what torch's allocator counts and is measured with the time, and one
process measures all, one side after the other; see `gpu`. A side that runs out of memory or fails
is a result, and the table names it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from benchmark.gpu.harness import about
from benchmark.peers.gpu import measured_on_gpu
from benchmark.peers.peak import RUNS_BEFORE, peaks_of
from benchmark.peers.phases import PHASES, SIDES, seconds_of
from benchmark.peers.releases import RELEASES
from benchmark.peers.results import Results
from benchmark.peers.setting import GPU_ONLY, SHAPES, Setting

ROUNDS = 5
PRELOADED = [
    "benchmark.peers.peak", "transformers.models.gpt2.modeling_gpt2", "transformers.models.llama.modeling_llama",
]  # fmt: skip
"""Modules that the server loads before it forks."""


Measurement = tuple[str, str, str, str, dict[str, Any]]
"""Release, setting, part of the record, phase and what was found."""


def measured(options: argparse.Namespace, releases: list[str]) -> Iterator[Measurement]:
    """Yield what is found on the device of the options, as it is found."""
    if options.device.type == "cpu":
        yield from measured_on_cpu(options, releases)
        return
    for setting in listed(options.settings):
        made = Setting(SHAPES[setting], options.device)
        yield from measured_on_gpu(options.checkouts, releases, setting, made, listed(options.phases), options.rounds)


def measured_on_cpu(options: argparse.Namespace, releases: list[str]) -> Iterator[Measurement]:
    """Yield what the processes of the measurements find."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    running: dict[Future[Any], tuple[str, str, str, str, str]] = {}
    with ProcessPoolExecutor(options.jobs or 1, mp_context=context, max_tasks_per_child=1) as pool:
        for setting in listed(options.settings):
            for release in releases:
                where = options.checkouts, release, setting
                for phase in listed(options.phases):
                    future: Future[Any] = pool.submit(seconds_of, *where, phase, options.rounds)
                    running[future] = release, setting, "seconds", phase, ""
                for phase in listed(options.memory):
                    for side in SIDES:
                        running[pool.submit(peaks_of, *where, phase, side)] = release, setting, "peaks", phase, side
        for future in as_completed(running):
            release, setting, part, phase, side = running[future]
            yield release, setting, part, phase, {side: future.result()} if side else future.result()


def listed(names: str) -> list[str]:
    """Return the names in a list with commas, which may be empty."""
    return [name for name in names.split(",") if name]


def main(arguments: list[str] | None = None) -> None:
    """Measure and print; see the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkouts", type=Path, required=True, help="folder with the checkouts")
    parser.add_argument("--device", type=torch.device, default="cpu", help="device of both sides; default cpu")
    parser.add_argument("--settings", help="default a,b,c on a CPU and d elsewhere; may be empty, to print records")
    parser.add_argument("--releases", default=",".join(RELEASES))
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="runs of each side")
    parser.add_argument("--phases", default=",".join(PHASES), help="phases whose time is measured; may be empty")
    parser.add_argument(
        "--memory", help="phases whose memory is measured on a CPU; default rollout,update; may be empty"
    )
    parser.add_argument("--jobs", type=int, help="measurements at the same time on a CPU; default 1")
    parser.add_argument("--output", type=Path, help="file of records, which is updated after each measurement")
    options = parser.parse_args(arguments)
    on_cpu = options.device.type == "cpu"
    if options.settings is None:
        options.settings = ",".join(name for name in SHAPES if (name != GPU_ONLY) == on_cpu)
    if on_cpu and GPU_ONLY in listed(options.settings):
        parser.error(f"setting {GPU_ONLY} has 8B parameters, and takes hours on a CPU; use --device cuda")
    if not on_cpu and (options.memory is not None or options.jobs is not None):
        parser.error("--memory and --jobs are for a CPU; on a GPU, one process measures time and memory of --phases")
    options.memory = ",".join(RUNS_BEFORE) if options.memory is None else options.memory
    results, releases = Results(options.output, None if on_cpu else about()), listed(options.releases)
    there = [release for release in releases if RELEASES[release].is_there(options.checkouts)]
    for release, setting, part, phase, found in measured(options, there):
        results.add(release, setting, part, phase, found)
        print(f"{release} {setting}: {phase}, {part}", file=sys.stderr, flush=True)
    table = results.table([release for release in releases if release not in there])
    print("\n".join([*results.summary(), "", *table, "", *results.origins()]))


if __name__ == "__main__":
    main()

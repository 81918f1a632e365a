"""Speed and memory of a training step of this package beside the releases' own functions.

    OMP_NUM_THREADS=1 python -m benchmark.peers --checkouts FOLDER [--settings a,b,c --releases ESPO --output FILE]

FOLDER has the checkouts of the releases under the names of their repositories: nothing is
downloaded. A release without a checkout is named in the results as not measured. Both sides run the
same model on the same prompts or completions, in turn and in one process; a number is the CPU time
of the release divided by ours. It is the median of the rounds, with their minimum and maximum and
the quotient of the fastest runs of the two sides. Memory is in MiB, release and ours; see `peak`.
Every measurement has a process of its own, which a server forks after it has loaded the libraries.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmark.peers.peak import RUNS_BEFORE, peaks_of
from benchmark.peers.phases import PHASES, SIDES, seconds_of
from benchmark.peers.releases import RELEASES
from benchmark.peers.results import Results
from benchmark.peers.setting import SHAPES

ROUNDS = 5
PRELOADED = [
    "benchmark.peers.peak", "transformers.models.gpt2.modeling_gpt2", "transformers.models.llama.modeling_llama",
]  # fmt: skip
"""Modules that the server loads before it forks."""


def measured(options: argparse.Namespace, releases: list[str]) -> Iterator[tuple[str, str, str, str, dict[str, Any]]]:
    """Yield release, setting, part of the record, phase and what was found, as it is found."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    running: dict[Future[Any], tuple[str, str, str, str, str]] = {}
    with ProcessPoolExecutor(options.jobs, mp_context=context, max_tasks_per_child=1) as pool:
        for setting in filter(None, options.settings.split(",")):
            for release in releases:
                where = options.checkouts, release, setting
                for phase in filter(None, options.phases.split(",")):
                    future: Future[Any] = pool.submit(seconds_of, *where, phase, options.rounds)
                    running[future] = release, setting, "seconds", phase, ""
                for phase in filter(None, options.memory.split(",")):
                    for side in SIDES:
                        running[pool.submit(peaks_of, *where, phase, side)] = release, setting, "peaks", phase, side
        for future in as_completed(running):
            release, setting, part, phase, side = running[future]
            yield release, setting, part, phase, {side: future.result()} if side else future.result()


def main(arguments: list[str] | None = None) -> None:
    """Measure and print; see the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkouts", type=Path, required=True, help="folder with the checkouts")
    parser.add_argument("--settings", default=",".join(SHAPES), help="may be empty, to print earlier records")
    parser.add_argument("--releases", default=",".join(RELEASES))
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="runs of each side")
    parser.add_argument("--phases", default=",".join(PHASES), help="phases whose time is measured; may be empty")
    parser.add_argument("--memory", default=",".join(RUNS_BEFORE), help="phases whose memory is measured; may be empty")
    parser.add_argument("--jobs", type=int, default=1, help="measurements at the same time")
    parser.add_argument("--output", type=Path, help="file of records, which is updated after each measurement")
    options = parser.parse_args(arguments)
    results, releases = Results(options.output), options.releases.split(",")
    there = [release for release in releases if RELEASES[release].is_there(options.checkouts)]
    for release, setting, part, phase, found in measured(options, there):
        results.add(release, setting, part, phase, found)
        print(f"{release} {setting}: {phase}, {part}", file=sys.stderr, flush=True)
    table = results.table([release for release in releases if release not in there])
    print("\n".join([*results.summary(), "", *table, "", *results.origins()]))


if __name__ == "__main__":
    main()

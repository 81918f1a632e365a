"""Speed and memory of a training step of this package beside the releases' own functions.

    OMP_NUM_THREADS=1 python -m benchmark.peers --checkouts FOLDER [--settings a,b,c --releases ESPO --output FILE]

FOLDER has the checkouts of the releases under the names of their repositories: nothing is
downloaded. A release without a checkout is named in the results as not measured. Both sides run the
same model on the same prompts or completions, in turn and in one process; a number is the CPU time
of the release divided by ours. It is the median of the rounds, with their minimum and maximum and
the quotient of the fastest runs of the two sides. Memory is in MiB, release and ours; see `peak`.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from pathlib import Path

import torch

from benchmark.peers.peak import peaks
from benchmark.peers.phases import PHASES, seconds_of
from benchmark.peers.releases import RELEASES
from benchmark.peers.results import MEMORY, Record, Results
from benchmark.peers.setting import SHAPES

ROUNDS = 5


def measured(options: argparse.Namespace, release: str, setting: str) -> Record:
    """Measure a release at a setting."""
    seconds = {
        phase: seconds_of(options.checkouts, release, setting, phase, options.rounds)
        for phase in filter(None, options.phases.split(","))
    }
    memory = {
        phase: [peaks(options.checkouts, release, setting, phase, side) for side in ("theirs", "ours")]
        for phase in filter(None, options.memory.split(","))
    }
    load = round(os.getloadavg()[0], 1)
    return {"release": release, "setting": setting, "load": load, "seconds": seconds, "peaks": memory}


def main(arguments: list[str] | None = None) -> None:
    """Measure and print; see the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkouts", type=Path, required=True, help="folder with the checkouts")
    parser.add_argument("--settings", default=",".join(SHAPES))
    parser.add_argument("--releases", default=",".join(RELEASES))
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="runs of each side")
    parser.add_argument("--phases", default=",".join(PHASES), help="phases whose time is measured; may be empty")
    parser.add_argument("--memory", default=",".join(MEMORY), help="phases whose memory is measured; may be empty")
    parser.add_argument("--output", type=Path, help="file of records, which are updated after each release")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    results, absent = Results(options.output), []
    for release in options.releases.split(","):
        if not RELEASES[release].is_there(options.checkouts):
            absent.append(release)
            continue
        for setting in options.settings.split(","):
            results.add(measured(options, release, setting))
            print(f"{release} {setting}", file=sys.stderr, flush=True)
    print("\n".join([*results.table(absent), "", *results.origins()]))


if __name__ == "__main__":
    main()

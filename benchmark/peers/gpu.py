"""Time and memory of the phases on a GPU.

All measurements share one process and the weights of one model, because an 8B model takes seconds
to make and torch's allocator counts the bytes of each phase by itself. The two sides run one after
the other: a GPU does not hold the states of two optimizers. The first run of a side does not count
as a round, and its memory is measured. torch's allocator has its default settings.
"""

from __future__ import annotations

import gc
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmark.gpu.harness import wall_seconds
from benchmark.peers.peak import MIB, RUNS_BEFORE
from benchmark.peers.phases import SIDES, phase_of, side_of
from benchmark.peers.results import FAILED, OUT_OF_MEMORY
from benchmark.peers.setting import Setting
from unmask.trainer.peak import peak_bytes

TimeAndMemory = tuple[list[float], tuple[float, float]]
"""Wall-clock seconds of each round, and the two numbers of the memory; see `found_of`."""


def measured_on_gpu(
    checkouts: Path, releases: Sequence[str], setting: str, made: Setting, phases: Sequence[str], rounds: int
) -> Iterator[tuple[str, str, str, str, dict[str, Any]]]:
    """Yield release, setting, part of the record, phase and what was found of a side, as it is found.

    A side that runs out of memory has `OUT_OF_MEMORY` in place of numbers, and one with another
    error, which is printed, `FAILED`.
    """
    with torch.no_grad():
        # Libraries keep memory of the GPU from their first use on.
        made.released(made.prompts[:1])
    for release in releases:
        for phase in phases:
            for side in SIDES:
                seconds: list[float] | str
                peaks: tuple[float, float] | str
                try:
                    seconds, peaks = found_of(side, release, checkouts, made, phase, rounds)
                except torch.OutOfMemoryError:
                    seconds = peaks = OUT_OF_MEMORY
                except Exception:
                    print(f"{release} {setting}: {phase}, {side} failed:", traceback.format_exc(), file=sys.stderr)
                    seconds = peaks = FAILED
                yield release, setting, "seconds", phase, {side: seconds}
                if phase in RUNS_BEFORE:
                    yield release, setting, "peaks", phase, {side: peaks}


def found_of(side: str, release: str, checkouts: Path, made: Setting, phase: str, rounds: int) -> TimeAndMemory:
    """Measure a phase of a side.

    Returns:
        The wall-clock seconds of each round, and two numbers in MiB. The first is how far the
        memory that torch's allocator reserves rises above what it reserves for the model. The second
        is the largest amount that tensors hold in addition to those that exist before the run.
    """
    made.denoiser.zero_grad(set_to_none=True)
    gc.collect()
    torch.cuda.empty_cache()
    reserved = torch.cuda.memory_reserved()
    function = phase_of(side_of(side, release, checkouts, made), phase)
    for _ in range(RUNS_BEFORE.get(phase, 0)):
        function()
    of_tensors = peak_bytes(function, made.denoiser, device=made.device)
    of_process = torch.cuda.max_memory_reserved() - reserved
    return wall_seconds(function, rounds), (of_process / MIB, of_tensors / MIB)

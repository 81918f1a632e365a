"""Memory of a phase: of the whole process, and of its tensors alone.

A phase first runs at a small size, because libraries load code when it is first used. An update is
run a few times, because the optimizer's state exists from the first update on: a later update holds
activations, gradients and state together, as all but one of a training run do. The C library gets
pages of their own for all but small tensors and returns them when a tensor is freed. Otherwise the
gaps between tensors would count, which took up to 4 MiB at setting (a) and 30 MiB at (b).
"""

from __future__ import annotations

import ctypes
import warnings
from pathlib import Path

import torch

from benchmark.peers.phases import phase_of, side_of
from benchmark.peers.setting import SHAPES, Setting
from unmask.trainer.peak import peak_bytes

MIB = 2**20
MMAP_THRESHOLD = -3, 2**14
"""Option of glibc's `mallopt`, and its value: bytes from which an allocation has pages of its own."""
RUNS_BEFORE = {"rollout": 0, "update": 2}
"""Runs of each phase before the one whose tensors are counted."""


def peaks_of(checkouts: Path, release: str, setting: str, phase: str, side: str) -> tuple[float, float]:
    """Measure the memory of a phase. The process must be new, because its peak so far counts.

    Args:
        checkouts: folder of the checkouts.
        release: name of the release.
        setting: name of the setting.
        phase: rollout or update.
        side: `theirs` for the release, `ours` for this package.

    Returns:
        Two numbers in MiB. The first is how far the memory of the process rises above that of the
        model and the libraries, with the inputs that the phase keeps. The second is the largest
        amount that tensors hold in the last run in addition to those that exist before this run.
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(*MMAP_THRESHOLD)
    phase_of(side_of(side, release, checkouts, Setting(SHAPES[setting].small())), phase)()
    made = Setting(SHAPES[setting])
    chosen = side_of(side, release, checkouts, made)
    before = _peak_kilobytes()
    function = phase_of(chosen, phase)
    for _ in range(RUNS_BEFORE[phase]):
        function()
    of_tensors = peak_bytes(function, made.denoiser) / MIB
    return (_peak_kilobytes() - before) / 1024, of_tensors


def _peak_kilobytes() -> int:
    """Return the largest resident size of this program so far. `getrusage` would begin with that of
    the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])

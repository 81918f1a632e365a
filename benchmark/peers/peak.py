"""Memory of a phase: of the whole process, and of its tensors alone.

Each measurement has a process of its own, which a server forks after it has loaded the libraries.
An update is run a few times, because the optimizer's state exists from the first update on. A later
update holds activations, gradients and state together, as all but one of a training run do.
"""

from __future__ import annotations

import multiprocessing
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from benchmark.peers.phases import phase_of, side_of
from benchmark.peers.setting import Setting
from unmask.trainer.peak import peak_bytes

MIB = 2**20
RUNS = {"rollout": 1, "scoring": 1, "update": 3}
"""Number of runs of each phase whose largest memory is measured."""


def peaks(checkouts: Path, release: str, setting: str, phase: str, side: str) -> tuple[float, float]:
    """Measure a phase in a process of its own.

    Args:
        checkouts: folder of the checkouts.
        release: name of the release.
        setting: name of the setting.
        phase: rollout, scoring or update.
        side: `theirs` for the release, `ours` for this package.

    Returns:
        Two numbers in MiB. The first is how far the memory of the process rises above that of the
        model and the libraries, with the inputs that the phase keeps. The second is the largest
        amount that tensors hold during one further run in addition to those that exist before it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        return executor.submit(_measured, checkouts, release, setting, phase, side).result()


def _measured(checkouts: Path, release: str, setting: str, phase: str, side: str) -> tuple[float, float]:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    made = Setting(setting)
    chosen = side_of(side, release, checkouts, made)
    before = _peak_kilobytes()
    function = phase_of(chosen, phase)
    for _ in range(RUNS[phase]):
        function()
    of_process = (_peak_kilobytes() - before) / 1024
    return of_process, peak_bytes(function, made.denoiser) / MIB


def _peak_kilobytes() -> int:
    """Return the largest resident size of this program so far. `getrusage` would begin with that of
    the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])

"""The phases of a training step, and the CPU time of each on both sides."""

from __future__ import annotations

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
SIDES = ("theirs", "ours")


def side_of(side: str, release: str, checkouts: Path, setting: Setting) -> Ours | Release:
    """Return the release for `theirs`, and this package beside it for `ours`."""
    return Ours(release, setting) if side == "ours" else RELEASES[release](checkouts, setting)


def phase_of(side: Ours | Release, phase: str) -> Callable[[], Any]:
    """Return the function of a phase, with its inputs made."""
    if phase != "rollout":
        side.prepare()
    if phase == "update":
        side.prepare_update()
    return {"rollout": side.rollout, "scoring": side.score, "update": side.update}[phase]


def seconds_of(checkouts: Path, release: str, setting: str, phase: str, rounds: int) -> dict[str, list[float]]:
    """Return the CPU seconds of a phase of the release and of this package, `theirs` and `ours`, run
    in turn after one warm-up each."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    made = Setting(SHAPES[setting])
    functions = {side: phase_of(side_of(side, release, checkouts, made), phase) for side in SIDES}
    spent: dict[str, list[float]] = {side: [] for side in SIDES}
    for index in range(rounds + 1):
        for side, function in functions.items():
            started = time.process_time()
            function()
            if index:
                spent[side].append(time.process_time() - started)
    return spent

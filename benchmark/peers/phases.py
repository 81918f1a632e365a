"""The phases of a training step, and the CPU time of each on both sides."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmark.peers.ours import Ours
from benchmark.peers.releases import RELEASES, Release
from benchmark.peers.setting import Setting

PHASES = ("rollout", "scoring", "update")


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


def seconds_of(checkouts: Path, release: str, setting: str, phase: str, rounds: int) -> tuple[list[float], list[float]]:
    """Return the CPU seconds of a phase of the release and of this package, run in turn after one
    warm-up each."""
    made = Setting(setting)
    functions = [phase_of(side_of(side, release, checkouts, made), phase) for side in ("theirs", "ours")]
    spent: tuple[list[float], list[float]] = ([], [])
    for index in range(rounds + 1):
        for function, seconds in zip(functions, spent, strict=True):
            started = time.process_time()
            function()
            if index:
                seconds.append(time.process_time() - started)
    return spent

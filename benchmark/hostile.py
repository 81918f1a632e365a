"""Run hostile programs in each sandbox: `python -m benchmark.hostile [BACKEND ...]`.

A sandbox holds if no program earned anything, nothing outside changed, and every program got a
verdict.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmark.hostile_programs import ATTACKS, SECRET, Attack
from unmask.rewards.sandbox import Sandbox, SandboxConfig, SandboxJob, make_sandbox
from unmask.rewards.sandbox.bubblewrap import DEVICES

RESULTS = Path(__file__).parent / "results" / "hostile.md"
TOO_LONG = 30.0
"""Seconds after which a program counts as having stopped the run."""


@dataclass(frozen=True, slots=True)
class Trial:
    """Result of one program."""

    attack: Attack
    statuses: tuple[str, ...]
    share: float
    seconds: float
    changed: bool
    """True if anything outside has changed."""

    @property
    def held(self) -> bool:
        """Return True if the program earned nothing and changed nothing."""
        return self.share == 0 and not self.changed and self.seconds < TOO_LONG


class Outside:
    """Objects that no program may touch: a folder, port, process, environment, shared devices."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.devices = _devices()
        (folder / "secret").write_text(SECRET)
        os.environ["UNMASK_HOSTILE_SECRET"] = SECRET
        self.bystander = subprocess.Popen(["sleep", "3600"])
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.datagrams.bind(("127.0.0.1", self.port))
        self.listener.setblocking(False)
        self.datagrams.setblocking(False)

    def job(self, attack: Attack) -> SandboxJob:
        """Return the job of an attack on these objects."""
        aims = {"OUTSIDE": str(self.folder), "PORT": str(self.port), "PID": str(self.bystander.pid)}
        code, tests = attack.code, attack.tests
        for word, aim in aims.items():
            code = code.replace(word, aim)
            tests = tuple(test.replace(word, aim) for test in tests)
        return SandboxJob(code, tests, ("f",), attack.setup)

    def has_changed(self) -> bool:
        """Return True if a program has touched one of them."""
        was_reached = _answers(self.listener.accept) or _answers(lambda: self.datagrams.recv(10))
        files = {path.name: path.read_text() for path in self.folder.iterdir()} if self.folder.is_dir() else {}
        return (
            was_reached
            or _devices() != self.devices
            or files != {"secret": SECRET}
            or self.bystander.poll() is not None
        )

    def close(self) -> None:
        """Remove all of them."""
        os.environ.pop("UNMASK_HOSTILE_SECRET", None)
        self.bystander.kill()
        self.bystander.wait()
        self.listener.close()
        self.datagrams.close()


@contextmanager
def outside() -> Iterator[Outside]:
    """Yield objects to protect."""
    with tempfile.TemporaryDirectory(prefix="unmask-hostile-") as folder:
        there = Outside(Path(folder))
        try:
            yield there
        finally:
            there.close()


def attempt(sandbox: Sandbox, attack: Attack, there: Outside) -> Trial:
    """Run one hostile program."""
    start = time.monotonic()
    result = sandbox.run_one(there.job(attack))
    seconds = time.monotonic() - start
    statuses = tuple(verdict.status for verdict in result.verdicts)
    return Trial(attack, statuses, result.share_passed, seconds, there.has_changed())


def attacks_on(backend: str) -> tuple[Attack, ...]:
    """Return the programs for a backend; without a sandbox, only those that do no harm."""
    return tuple(attack for attack in ATTACKS if attack.is_tame or backend != "none")


def table(trials: dict[str, list[Trial]]) -> str:
    """Return the results as Markdown, with a row for each program and a column for each backend."""
    by_name = {backend: {trial.attack.name: trial for trial in found} for backend, found in trials.items()}
    lines = [f"| program | {' | '.join(by_name)} |", "|---" * (1 + len(by_name)) + "|"]
    for attack in ATTACKS:
        cells = [_cell(found.get(attack.name)) for found in by_name.values()]
        lines.append(f"| {attack.name} | {' | '.join(cells)} |")
    lines.append("")
    for backend, found in trials.items():
        held = sum(trial.held for trial in found)
        lines.append(
            f"`{backend}`: {held} of {len(found)} programs got nothing and did nothing; "
            f"longest {max(trial.seconds for trial in found):.1f} s, all {sum(trial.seconds for trial in found):.0f} s."
        )
    return "\n".join(lines) + "\n"


def main(backends: Sequence[str]) -> int:
    """Run everything, print and write the table; return 1 if a sandbox did not hold."""
    trials: dict[str, list[Trial]] = {}
    for backend in backends:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sandbox = make_sandbox(SandboxConfig(backend=backend, timeout=1.0, total_timeout=5.0))  # type: ignore[arg-type]
        trials[backend] = []
        for attack in attacks_on(backend):
            with outside() as there:
                trials[backend].append(attempt(sandbox, attack, there))
                print(backend, trials[backend][-1].attack.name, *trials[backend][-1].statuses, flush=True)
    text = table(trials)
    print(text)
    RESULTS.write_text(f"Made by `python -m benchmark.hostile {' '.join(backends)}`.\n\n{text}")
    return 0 if all(trial.held for found in trials.values() for trial in found) else 1


def _cell(trial: Trial | None) -> str:
    if trial is None:
        return "not run"
    status = " ".join(dict.fromkeys(trial.statuses))
    return (
        f"{status}, {trial.seconds:.1f} s" if trial.held else f"**{status}, paid {trial.share:.2f}, {trial.changed=}**"
    )


def _devices() -> list[tuple[int, ...]]:
    """Return mode, owner and time of change of each device."""
    found = [os.stat(path) for path in DEVICES if os.path.exists(path)]
    return [(status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns) for status in found]


def _answers(receive: object) -> bool:
    try:
        receive()  # type: ignore[operator]
    except BlockingIOError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["monty", "bubblewrap", "auto", "none"]))

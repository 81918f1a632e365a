"""Programs in full CPython: a process for the program, one for its tests, two pipes between them, and this one watching.

What surrounds the two processes is the subclass's: namespaces of their own (`bubblewrap`) or nothing (`none`).
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sysconfig
import tempfile
import time
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, Literal

from unmask.rewards.sandbox.base import Sandbox, SandboxJob, Status, Verdict, verdict

Role = Literal["judge", "program"]

Pipes = tuple[int, int]
"""File descriptors from which a role reads and to which it writes."""

POLL_SECONDS = 0.05
START_SECONDS = 5.0
"""Given to two interpreters to start on a busy machine, and to imports of the tests, beyond the time of what is run."""
JUDGE_MEMORY_MB = 1024
GIVE_UP_AFTER = 2
"""Tests that may hang before the rest is taken to hang as well."""


class ProcessSandbox(Sandbox):
    """Runs each program in processes that end with it."""

    @abstractmethod
    @contextmanager
    def command(self, role: Role, pipes: Pipes, packages: str) -> Iterator[tuple[list[str], list[int], dict[str, Any]]]:
        """The command line that starts a role, file descriptors that it inherits beside its pipes, and options of `Popen`."""
        yield [], [], {}

    def excess(self, process: int) -> str:
        """What the program uses up that no limit of the system bounds, or nothing; asked again and again while it runs."""
        return ""

    def package_folder(self, role: Role, job: SandboxJob) -> str:
        """Folder of installed packages that a role may import from, or none: tests that use pytest need it."""
        wanted = self.config.packages or (role == "judge" and "pytest" in job.setup)
        return sysconfig.get_paths()["purelib"] if wanted else ""

    def verdicts(self, job: SandboxJob, end: float) -> list[Verdict]:
        """Run the tests, starting anew after each that took the program's process with it."""
        found: list[Verdict] = []
        deadline = time.monotonic() + self.config.total_timeout
        hung = 0
        while len(found) < len(job.tests) and (not found or time.monotonic() <= end):
            left = deadline - time.monotonic()
            if left <= 0 or hung == GIVE_UP_AFTER:
                reason = f"more than {self.config.total_timeout:g} s in all" if left <= 0 else "it hung in tests before"
                found += [verdict("timed_out", reason)] * (len(job.tests) - len(found))
                break
            before = len(found)
            # Whoever limits the batch has little time to spare after its end: no more than a test takes.
            spare = end + self.config.timeout - time.monotonic()
            found += self._attempt(job, before, min(left, spare))
            hung += found[-1].status == "timed_out"
        return found

    def _attempt(self, job: SandboxJob, first: int, seconds: float) -> list[Verdict]:
        """The verdicts from test `first` to the one that ended the program's process, or to the last."""
        rest = len(job.tests) - first
        try:
            report, complaint = self._start(job, first, seconds)
        except OSError as error:
            # The machine has no process, file or memory left: that is no fault of the program.
            return [verdict("unsupported", f"the sandbox cannot be started: {error}")] * rest
        found: list[Verdict] = []
        for kind, status, reason in _lines(report):
            if kind == "load":
                return [verdict("error" if status == "failed" else status, reason)] * rest
            if kind == "setup":
                is_time = status == "timed_out"
                return [verdict(status if is_time else "unsupported", f"the tests cannot be prepared: {reason}")] * rest
            found.append(verdict(status, reason))
        if found and not complaint:
            return found
        # The judge is ours: without a word from it, it was stopped from outside, for time or for memory.
        status_of: Status = "error" if complaint else "timed_out"
        rest -= len(found)
        return found + [verdict(status_of, complaint or f"more than {seconds:g} s")] * (rest if complaint else 1)

    def _start(self, job: SandboxJob, first: int, seconds: float) -> tuple[str, str]:
        """Run both processes to their end: the judge's report, and what went wrong in starting it."""
        given: dict[Role, dict[str, Any]] = {
            "judge": {
                "setup": job.setup,
                "names": job.names,
                "tests": job.tests[first:],
                "seconds": self.config.timeout,
                "grace": START_SECONDS,
            },
            "program": {"code": job.code},
        }
        running: list[subprocess.Popen[str]] = []
        to_judge, to_program = os.pipe(), os.pipe()
        try:
            try:
                running.append(self._spawn("program", (to_program[0], to_judge[1]), given["program"], job))
                running.append(self._spawn("judge", (to_judge[0], to_program[1]), given["judge"], job))
            finally:
                for fileno in (*to_judge, *to_program):
                    os.close(fileno)
            return self._watch(running[0], running[1], seconds + START_SECONDS)
        finally:
            for process in running:
                # The whole group, for what a program without a sandbox has started. Not yet waited for, so the number is its own.
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _watch(self, program: subprocess.Popen[str], judge: subprocess.Popen[str], seconds: float) -> tuple[str, str]:
        """Wait for the judge, so long and no longer: its report, and what went wrong."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                report, complaint = judge.communicate(timeout=POLL_SECONDS)
            except subprocess.TimeoutExpired:
                excess = self.excess(program.pid)
                if excess or time.monotonic() > deadline:
                    judge.kill()
                    return judge.communicate()[0], excess
            else:
                if judge.returncode and not complaint:
                    complaint = f"the tests' process ended with status {judge.returncode}"
                return report, complaint.strip()

    def _spawn(self, role: Role, pipes: Pipes, given: dict[str, Any], job: SandboxJob) -> subprocess.Popen[str]:
        packages = self.package_folder(role, job)
        given |= {"limits": self._limits(role), "path": [packages] if packages else []}
        with _as_file(given) as standard_input, self.command(role, pipes, packages) as (command, extra, options):
            return subprocess.Popen(
                command,
                stdin=standard_input,
                stdout=subprocess.PIPE if role == "judge" else subprocess.DEVNULL,
                stderr=subprocess.PIPE if role == "judge" else subprocess.DEVNULL,
                pass_fds=[*pipes, *extra],
                text=True,
                errors="replace",
                # Ctrl-C is for the run, which ends its own processes.
                start_new_session=True,
                **options,
            )

    def _limits(self, role: Role) -> dict[str, int]:
        """Hard limits by the names of `resource`."""
        memory = self.config.memory_mb if role == "program" else JUDGE_MEMORY_MB
        return {
            "RLIMIT_AS": memory * 2**20,
            "RLIMIT_CPU": math.ceil(self.config.total_timeout) + 1,
            "RLIMIT_FSIZE": 2**20,
            "RLIMIT_NOFILE": 64,
            "RLIMIT_CORE": 0,
            "RLIMIT_SIGPENDING": 64,
            "RLIMIT_MEMLOCK": 0,
            "RLIMIT_MSGQUEUE": 0,
        }


def _lines(report: str) -> Iterator[tuple[str, Status, str]]:
    """What the judge said, but for a line that it was killed in."""
    for line in report.splitlines():
        with suppress(ValueError):
            kind, status, reason = json.loads(line)
            yield kind, status, reason


def interpreter_flags(pipes: Pipes, folder: str, role: Role) -> list[str]:
    """Arguments of Python that start a role of the guest package in `folder`: isolated, without site packages."""
    start = f"import sys; sys.path.insert(0, {folder!r}); from guest.{role} import main; sys.path.pop(0); main{pipes}"
    return ["-I", "-S", "-B", "-c", start]


@contextmanager
def _as_file(given: dict[str, Any]) -> Iterator[IO[bytes]]:
    """A file to be read as standard input: unlike a pipe it takes any amount though nobody may read it."""
    with tempfile.TemporaryFile() as file:
        file.write(json.dumps(given).encode())
        file.seek(0)
        yield file

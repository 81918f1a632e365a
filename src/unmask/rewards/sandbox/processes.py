"""Programs in full CPython: one process for the program, one process for its tests, and two pipes
between them.

Subclasses decide what surrounds the two processes: separate namespaces (`bubblewrap`) or nothing
(`none`).
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
"""File descriptors from which a role (program or judge) reads and to which it writes."""

POLL_SECONDS = 0.05
START_SECONDS = 5.0
"""Extra seconds for two interpreters to start on a busy machine, and for the imports of the
tests."""
JUDGE_MEMORY_MB = 1024
GIVE_UP_AFTER = 2
"""Number of tests that may hang before all remaining tests count as hanging without a run."""


class ProcessSandbox(Sandbox):
    """Sandbox that starts two processes for each program, one for the program and one for its
    tests. Both end with the program."""

    @abstractmethod
    @contextmanager
    def command(self, role: Role, pipes: Pipes, packages: str) -> Iterator[tuple[list[str], list[int], dict[str, Any]]]:
        """Yield the command line of a role, its extra file descriptors, and options of `Popen`."""
        yield [], [], {}

    def excess(self, process: int) -> str:
        """Return the name of a resource that no system limit bounds and of which the program uses
        too much; "" if there is none.

        This method is called repeatedly while the program runs.
        """
        return ""

    def package_folder(self, role: Role, job: SandboxJob) -> str:
        """Return the folder of packages that a role may import, or "".

        Tests that use pytest need it.
        """
        is_needed = self.config.packages or (role == "judge" and "pytest" in job.setup)
        return sysconfig.get_paths()["purelib"] if is_needed else ""

    def verdicts(self, job: SandboxJob, end: float) -> list[Verdict]:
        """Run the tests; restart the program after each test that ended its process."""
        verdicts: list[Verdict] = []
        deadline = time.monotonic() + self.config.total_timeout
        hung = 0
        while len(verdicts) < len(job.tests) and (not verdicts or time.monotonic() <= end):
            left = deadline - time.monotonic()
            if left <= 0 or hung == GIVE_UP_AFTER:
                reason = (
                    f"more than {self.config.total_timeout:g} s for all tests"
                    if left <= 0
                    else "the program hung in earlier tests"
                )
                verdicts += [verdict("timed_out", reason)] * (len(job.tests) - len(verdicts))
                break
            before = len(verdicts)
            # The batch may exceed its end by the time of one test at most.
            spare = end + self.config.timeout - time.monotonic()
            verdicts += self._attempt(job, before, min(left, spare))
            hung += verdicts[-1].status == "timed_out"
        return verdicts

    def _attempt(self, job: SandboxJob, first: int, seconds: float) -> list[Verdict]:
        """Return the verdicts from test `first` to the test that ended the attempt, or to the last
        test."""
        rest = len(job.tests) - first
        try:
            report, complaint = self._start(job, first, seconds)
        except OSError as error:
            # The machine has no process, file or memory left, which is not the program's fault.
            return [verdict("unsupported", f"the sandbox cannot be started: {error}")] * rest
        verdicts: list[Verdict] = []
        for kind, status, reason in _lines(report):
            if kind == "load":
                return [verdict("error" if status == "failed" else status, reason)] * rest
            if kind == "setup":
                is_time = status == "timed_out"
                return [verdict(status if is_time else "unsupported", f"the tests cannot be prepared: {reason}")] * rest
            verdicts.append(verdict(status, reason))
        if verdicts and not complaint:
            return verdicts
        # The judge is trusted. If it reported nothing, it was stopped from outside, for time or
        # memory.
        status_of: Status = "error" if complaint else "timed_out"
        rest -= len(verdicts)
        return verdicts + [verdict(status_of, complaint or f"more than {seconds:g} s")] * (rest if complaint else 1)

    def _start(self, job: SandboxJob, first: int, seconds: float) -> tuple[str, str]:
        """Run both processes to their end; return the judge's report and any error at start."""
        settings: dict[Role, dict[str, Any]] = {
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
                running.append(self._spawn("program", (to_program[0], to_judge[1]), settings["program"], job))
                running.append(self._spawn("judge", (to_judge[0], to_program[1]), settings["judge"], job))
            finally:
                for fileno in (*to_judge, *to_program):
                    os.close(fileno)
            return self._watch(running[0], running[1], seconds + START_SECONDS)
        finally:
            for process in running:
                # Kill the whole group, which includes the children of an unprotected program. No
                # other process can have this number, because nobody has waited for the process yet.
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _watch(self, program: subprocess.Popen[str], judge: subprocess.Popen[str], seconds: float) -> tuple[str, str]:
        """Wait for the judge for a limited time; return its report and any error."""
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

    def _spawn(self, role: Role, pipes: Pipes, settings: dict[str, Any], job: SandboxJob) -> subprocess.Popen[str]:
        packages = self.package_folder(role, job)
        settings |= {"limits": self._limits(role), "path": [packages] if packages else []}
        with _as_file(settings) as standard_input, self.command(role, pipes, packages) as (command, extra, options):
            return subprocess.Popen(
                command,
                stdin=standard_input,
                stdout=subprocess.PIPE if role == "judge" else subprocess.DEVNULL,
                stderr=subprocess.PIPE if role == "judge" else subprocess.DEVNULL,
                pass_fds=[*pipes, *extra],
                text=True,
                errors="replace",
                # The run handles Ctrl-C and ends its own processes.
                start_new_session=True,
                **options,
            )

    def _limits(self, role: Role) -> dict[str, int]:
        """Return the hard limits by their names in the module `resource`."""
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
    """Yield the complete lines of the judge, which may have been killed while it wrote the last
    line."""
    for line in report.splitlines():
        with suppress(ValueError):
            kind, status, reason = json.loads(line)
            yield kind, status, reason


def interpreter_flags(pipes: Pipes, folder: str, role: Role) -> list[str]:
    """Return Python's arguments to start a role of the guest package without site packages."""
    start = f"import sys; sys.path.insert(0, {folder!r}); from guest.{role} import main; sys.path.pop(0); main{pipes}"
    return ["-I", "-S", "-B", "-c", start]


@contextmanager
def _as_file(settings: dict[str, Any]) -> Iterator[IO[bytes]]:
    """Yield a file with the data for standard input.

    Unlike a pipe, a file holds any amount of unread data.
    """
    with tempfile.TemporaryFile() as file:
        file.write(json.dumps(settings).encode())
        file.seek(0)
        yield file

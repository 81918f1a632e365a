"""What every sandbox does: take programs with tests, say for each test what happened and why.

The program is what a model wrote, and nothing that it does may decide its own verdict. So it never shares an interpreter
with its tests: they run beside it, in a process (or a session) of their own, and reach it only by calling the names in
`SandboxJob.names`. Arguments and results cross as plain data. What a program may then do to be right is to return the right data.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from unmask.core.config import Config
from unmask.core.timeouts import budget

Status = Literal["passed", "failed", "error", "timed_out", "unsupported"]
"""`failed`: an assertion did not hold. `error`: the program or the test raised, crashed, or broke a limit other than time.
`unsupported`: the sandbox lacks what the program or the test needs, so nothing is known about right and wrong."""

NOT_BEGUN = "no time left for it in its batch"
"""Reason of the verdict of a test that was not run, of which another batch may tell more."""
MAX_REASON = 300
"""Characters of a verdict's reason that are kept."""


class SandboxConfig(Config):
    """How untrusted programs are run, and what they may use up."""

    backend: Literal["monty", "bubblewrap", "auto", "none"] = "monty"
    """`monty`: a Python interpreter without file system and network, fast, with a part of the language. `bubblewrap`: all of
    CPython in Linux namespaces of its own. `auto`: monty, and bubblewrap for what monty does not support. `none`: a plain
    process with limits, which is no protection at all."""
    timeout: float = Field(2.0, gt=0)
    """Seconds that loading the program, or one test, may take, by the clock on the wall: give more on a busy machine."""
    total_timeout: float = Field(10.0, gt=0)
    """Seconds that all tests of one program may take together."""
    batch_timeout: float = Field(40.0, gt=0)
    """Seconds after which no more tests of a batch are begun; less where `reward_timeout` leaves less, so that programs that hang
    cost their reward and not the run."""
    memory_mb: int = Field(256, ge=16)
    """Address space of a program; of its heap, in monty."""
    packages: bool = False
    """Let programs import what is installed beside unmask (read-only). Not in monty, which has its own modules only."""
    workers: int = Field(2, ge=1)
    """Programs that run at the same time."""


@dataclass(frozen=True, slots=True)
class SandboxJob:
    """One untrusted program and the trusted tests for it."""

    code: str
    """The program, any text."""
    tests: tuple[str, ...]
    """Python statements; a test passes if it raises nothing."""
    names: tuple[str, ...]
    """What the tests take from the program: its functions, and in full CPython also classes and values."""
    setup: str = ""
    """Trusted statements that run before the first test: imports, helpers, test functions."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What happened in one test."""

    status: Status
    reason: str = ""
    """Why, where it did not pass: in the words of the exception. Of the program's making, so it is for people to read."""
    may_differ: bool = False
    """Whether full CPython may reach another verdict: the interpreter may be what failed, rather than the program."""


@dataclass(frozen=True, slots=True)
class Result:
    """The verdicts of a job, one for each test, in order."""

    verdicts: tuple[Verdict, ...]

    @property
    def share_passed(self) -> float:
        """Tests passed / tests, in [0, 1]; 0 where there is no test."""
        passed = sum(verdict.status == "passed" for verdict in self.verdicts)
        return passed / len(self.verdicts) if self.verdicts else 0.0

    @property
    def passed(self) -> bool:
        """Whether there are tests and all passed."""
        return self.share_passed == 1.0

    @property
    def status(self) -> Status:
        """Of the whole: `passed`, or the status of the first test that did not pass; `failed` where there is no test."""
        return next((v.status for v in self.verdicts if v.status != "passed"), "passed" if self.verdicts else "failed")

    @property
    def was_run(self) -> bool:
        """Whether there was time to begin every test."""
        return all(verdict.reason != NOT_BEGUN for verdict in self.verdicts)

    @property
    def is_judged(self) -> bool:
        """Whether the result says something about the program: every test was begun, or the program itself used up the time."""
        hung = any(verdict.status == "timed_out" and verdict.reason != NOT_BEGUN for verdict in self.verdicts)
        return self.was_run or hung

    @property
    def may_differ(self) -> bool:
        """Whether full CPython may reach another verdict on a test."""
        return any(verdict.may_differ for verdict in self.verdicts)

    @property
    def is_supported(self) -> bool:
        """Whether every test could be run."""
        return all(verdict.status != "unsupported" for verdict in self.verdicts)


class Sandbox(ABC):
    """Runs untrusted programs. Thread-safe; nothing that a program does makes it raise, hang, or change anything outside."""

    def __init__(self, config: SandboxConfig) -> None:
        self.config = config

    def run(self, jobs: Sequence[SandboxJob]) -> list[Result]:
        """The result of each job, in order; `config.workers` at the same time, and no test begun after `config.batch_timeout`."""
        return self.run_until(jobs, time.monotonic() + budget(self.config.batch_timeout))

    def run_until(self, jobs: Sequence[SandboxJob], end: float) -> list[Result]:
        """The result of each job, in order; no test is begun after `end` on the monotonic clock."""

        def work(job: SandboxJob) -> Result:
            return self.run_one(job, end)

        if len(jobs) < 2 or self.config.workers == 1:
            return [work(job) for job in jobs]
        pool = ThreadPoolExecutor(self.config.workers, thread_name_prefix="unmask-sandbox")
        try:
            return list(pool.map(work, jobs))
        finally:
            # Where the caller's own time is up, what has not begun is not begun.
            pool.shutdown(wait=False, cancel_futures=True)

    def run_one(self, job: SandboxJob, end: float = math.inf) -> Result:
        """The result of one job, of which no test is begun after `end` on the monotonic clock."""
        found = self.verdicts(job, end) if job.tests and time.monotonic() <= end else []
        return Result((*found, *[Verdict("timed_out", NOT_BEGUN)] * (len(job.tests) - len(found))))

    @abstractmethod
    def verdicts(self, job: SandboxJob, end: float) -> list[Verdict]:
        """Verdicts of a job's tests, in order: of all of them, or of those that were begun before `end`."""

    def close(self) -> None:  # noqa: B027 (most have nothing to close)
        """Give back processes that are kept for the next job."""


def verdict(status: Status, reason: object = "", may_differ: bool = False) -> Verdict:
    """A verdict with its reason cut to a line of `MAX_REASON` printable characters."""
    text = " ".join(str(reason)[: 2 * MAX_REASON].split())
    return Verdict(status, text.encode("utf-8", "replace").decode()[:MAX_REASON], may_differ)

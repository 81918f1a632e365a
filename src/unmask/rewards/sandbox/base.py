"""Base of all sandboxes: they take programs with tests, and report the result of each test.

The model wrote the program, so nothing that the program does may decide its own verdict. The
program never shares an interpreter with its tests. The tests run in a separate process or session
and reach the program only by calling the names in `SandboxJob.names`. Arguments and results cross
as plain data. The only way to pass a test is to return the correct data.
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

from unmask.core.settings import Config
from unmask.core.timeouts import budget

Status = Literal["passed", "failed", "error", "timed_out", "unsupported"]
"""Result of a test.

`failed`: an assertion did not hold. `error`: the program or the test raised, crashed, or exceeded a
limit other than time. `unsupported`: the sandbox lacks something that the program or the test
needs, so the result is unknown."""

NOT_BEGUN = "no time left for it in its batch"
"""Reason in the verdict of a test that did not run. Another batch may run the test."""
MAX_REASON = 300
"""Maximum length of a verdict's reason in characters."""


class SandboxConfig(Config):
    """Settings of the sandbox: how untrusted programs run, and their limits."""

    backend: Literal["monty", "bubblewrap", "auto", "none"] = "monty"
    """Kind of sandbox.

    `monty`: a fast Python interpreter without file system and network, which supports part of the
    language. `bubblewrap`: full CPython in separate Linux namespaces. `auto`: monty first, then
    bubblewrap for programs that monty does not support. `none`: an ordinary process with limits,
    which gives no protection."""
    timeout: float = Field(2.0, gt=0)
    """Wall-clock seconds for loading the program, and for each test. Set it higher on a busy
    machine."""
    total_timeout: float = Field(10.0, gt=0)
    """Seconds for all tests of one program together."""
    batch_timeout: float = Field(40.0, gt=0)
    """Seconds after which no more tests of a batch start. `reward_timeout` may shorten it, so that
    programs that hang lose their reward and do not stop the run."""
    memory_mb: int = Field(256, ge=16)
    """Address space of a program in MB; for monty, the size of its heap."""
    packages: bool = False
    """True to let programs import the packages that are installed with unmask, read-only. Monty has
    only its own modules."""
    workers: int = Field(2, ge=1)
    """Number of programs that run at the same time."""


@dataclass(frozen=True, slots=True)
class SandboxJob:
    """One untrusted program and its trusted tests."""

    code: str
    """Source of the program, any text."""
    tests: tuple[str, ...]
    """Python statements. A test passes if it raises nothing."""
    names: tuple[str, ...]
    """Names that the tests take from the program: functions, and in full CPython also classes and
    values."""
    setup: str = ""
    """Trusted statements that run before the first test: imports, helpers, test functions."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Result of one test."""

    status: Status
    reason: str = ""
    """Reason why the test did not pass, usually the text of an exception. The program may influence
    it, so it is only for people to read."""
    may_differ: bool = False
    """True if full CPython may reach another verdict, because the fault may lie in the interpreter
    rather than in the program."""


@dataclass(frozen=True, slots=True)
class Result:
    """Verdicts of a job, one for each test, in order."""

    verdicts: tuple[Verdict, ...]

    @property
    def share_passed(self) -> float:
        """Return the share of tests that passed, in [0, 1]; 0 if there are no tests."""
        passed = sum(verdict.status == "passed" for verdict in self.verdicts)
        return passed / len(self.verdicts) if self.verdicts else 0.0

    @property
    def passed(self) -> bool:
        """Return True if there are tests and all of them passed."""
        return self.share_passed == 1.0

    @property
    def status(self) -> Status:
        """Return `passed` if all tests passed, else the status of the first test that did not pass.

        The status is `failed` if there are no tests.
        """
        return next((v.status for v in self.verdicts if v.status != "passed"), "passed" if self.verdicts else "failed")

    @property
    def was_run(self) -> bool:
        """Return True if there was time to start every test."""
        return all(verdict.reason != NOT_BEGUN for verdict in self.verdicts)

    @property
    def is_judged(self) -> bool:
        """Return True if every test was started, or the program itself used up the time."""
        hung = any(verdict.status == "timed_out" and verdict.reason != NOT_BEGUN for verdict in self.verdicts)
        return self.was_run or hung

    @property
    def may_differ(self) -> bool:
        """Return True if full CPython may reach another verdict on a test."""
        return any(verdict.may_differ for verdict in self.verdicts)

    @property
    def is_supported(self) -> bool:
        """Return True if every test could be run."""
        return all(verdict.status != "unsupported" for verdict in self.verdicts)


class Sandbox(ABC):
    """Base class of sandboxes, which run untrusted programs.

    A sandbox is thread-safe. No program can make the sandbox raise or hang, or change anything
    outside of the sandbox."""

    def __init__(self, config: SandboxConfig) -> None:
        self.config = config

    def run(self, jobs: Sequence[SandboxJob]) -> list[Result]:
        """Return the result of each job, in order; no test starts after `config.batch_timeout`.

        `config.workers` jobs run at the same time.
        """
        return self.run_until(jobs, time.monotonic() + budget(self.config.batch_timeout))

    def run_until(self, jobs: Sequence[SandboxJob], end: float) -> list[Result]:
        """Return the result of each job; no test starts after `end` on the monotonic clock."""

        def work(job: SandboxJob) -> Result:
            return self.run_one(job, end)

        if len(jobs) < 2 or self.config.workers == 1:
            return [work(job) for job in jobs]
        pool = ThreadPoolExecutor(self.config.workers, thread_name_prefix="unmask-sandbox")
        try:
            return list(pool.map(work, jobs))
        finally:
            # If the caller's time is up, the remaining jobs do not start.
            pool.shutdown(wait=False, cancel_futures=True)

    def run_one(self, job: SandboxJob, end: float = math.inf) -> Result:
        """Return the result of one job; no test starts after `end` on the monotonic clock."""
        verdicts = self.verdicts(job, end) if job.tests and time.monotonic() <= end else []
        return Result((*verdicts, *[Verdict("timed_out", NOT_BEGUN)] * (len(job.tests) - len(verdicts))))

    @abstractmethod
    def verdicts(self, job: SandboxJob, end: float) -> list[Verdict]:
        """Return the verdicts of all tests, or only of those that started before `end`."""

    def close(self) -> None:  # noqa: B027 (most sandboxes have nothing to close)
        """End the processes that are kept for the next job."""


def verdict(status: Status, reason: object = "", may_differ: bool = False) -> Verdict:
    """Return a verdict whose reason is cut to one line of `MAX_REASON` printable characters."""
    text = " ".join(str(reason)[: 2 * MAX_REASON].split())
    return Verdict(status, text.encode("utf-8", "replace").decode()[:MAX_REASON], may_differ)

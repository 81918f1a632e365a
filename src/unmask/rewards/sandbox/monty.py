"""Sandbox that uses monty (pydantic-monty), a Python interpreter without file system or network.

Values of an untrusted program are built and compared in Python. A value can be large or slow to
build, whatever limits the interpreter has. Therefore the training process never holds such a value.
A worker process (`unmask.rewards.workers`) with limited memory judges the whole job, and is killed
if it takes too long.
"""

from __future__ import annotations

import threading
import time

from unmask.core.errors import ConfigError, RewardError
from unmask.rewards.sandbox.base import Sandbox, SandboxConfig, SandboxJob, Verdict, verdict
from unmask.rewards.workers import WorkerOutcome, Workers

JUDGE_MEMORY_MB = 512
"""Address space in MB of a worker and of each interpreter that it starts, in addition to the heap
of a program."""
GRACE_SECONDS = 3.0
"""Seconds that a worker may exceed its own limits, to start its interpreters and to return."""


class MontySandbox(Sandbox):
    """Fast and strict sandbox that supports part of Python.

    Worker processes start with the first job.
    """

    def __init__(self, config: SandboxConfig) -> None:
        super().__init__(config)
        # The worker enforces `total_timeout` itself, except during a step that it cannot interrupt.
        self._seconds = config.total_timeout + config.timeout + GRACE_SECONDS
        self._lock = threading.Lock()
        self._workers: Workers | None = None
        self._has_worked = False

    def verdicts(self, job: SandboxJob, end: float) -> list[Verdict]:
        """Judge the job in a worker. A worker that is killed or dies loses only this job.

        Raises:
            ConfigError: monty is missing, has an unknown version, or cannot be started.
        """
        left = end - time.monotonic()
        call = {
            "code": job.code,
            "tests": job.tests,
            "names": job.names,
            "setup": job.setup,
            "limits": (self.config.timeout, self.config.total_timeout, self.config.memory_mb, left),
            "is_worker": True,
        }
        try:
            # The batch may exceed `end` by one step at most.
            [outcome] = self._pool().map([call], max(left, 0.0) + self.config.timeout + GRACE_SECONDS)
        except (RewardError, OSError) as error:
            if not self._has_worked:
                raise ConfigError(f"monty's worker process does not start: {error}") from error
            return [verdict("unsupported", f"monty's worker process did not start again: {error}")] * len(job.tests)
        if isinstance(outcome.value, str):
            raise ConfigError(outcome.value)
        self._has_worked = True
        if outcome.failure:
            return [self._lost(outcome)] * len(job.tests)
        return [Verdict(status, reason, bool(may_differ)) for status, reason, may_differ in outcome.value]

    def close(self) -> None:
        """End the worker processes."""
        with self._lock:
            workers, self._workers = self._workers, None
        if workers is not None:
            workers.close()

    def _lost(self, outcome: WorkerOutcome) -> Verdict:
        """Return the verdict on every test of a job whose worker did not reply."""
        match outcome.failure:
            case "timeout" | "no time":
                return verdict("timed_out", f"more than {self._seconds:g} s for all tests", may_differ=True)
            case "crash":
                reason = "the judging process ended: a value is too large, or takes too long to build or to compare"
                return verdict("error", reason, may_differ=True)
        return verdict("error", outcome.message, may_differ=True)

    def _pool(self) -> Workers:
        with self._lock:
            if self._workers is None:
                memory = (JUDGE_MEMORY_MB + self.config.memory_mb) * 2**20
                path = "unmask.rewards.sandbox.monty_judge:judge"
                self._workers = Workers(path, self.config.workers, self._seconds, memory)
            return self._workers

"""The thread that works for a server: one job after another, from a queue of bounded length."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class AbandonedError(Exception):
    """Nobody waits for the result of a job any more."""


class Job:
    """A function to run, and its result.

    Args:
        function: function of the job, which calls `check` from time to time.
    """

    def __init__(self, function: Callable[[Job], Any]) -> None:
        self.function = function
        self.result: Future[Any] = Future()
        self._is_abandoned = threading.Event()

    def abandon(self) -> None:
        """Give the job up. If it has begun, it ends at its next call of `check`."""
        self._is_abandoned.set()
        self.result.cancel()

    @property
    def is_abandoned(self) -> bool:
        """True if the job was given up."""
        return self._is_abandoned.is_set()

    def check(self) -> None:
        """End the job if it was given up.

        Raises:
            AbandonedError: it was given up.
        """
        if self.is_abandoned:
            raise AbandonedError

    def run(self) -> None:
        """Run the function, and store its result or its error."""
        if not self.result.set_running_or_notify_cancel():
            return
        try:
            self.check()
            self.result.set_result(self.function(self))
        except BaseException as error:  # the error belongs to the caller, and the thread goes on
            self.result.set_exception(error)


class Worker:
    """A thread that runs jobs in the order in which they arrive. Weights are replaced by a job,
    too, so a rollout that has begun keeps its weights.

    Args:
        capacity: maximum number of jobs that wait.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._jobs: deque[Job] = deque()
        self._has_jobs = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="rollouts", daemon=True)
        self._thread.start()

    def submit(self, function: Callable[[Job], Any]) -> Job:
        """Add a job. Jobs that were given up make room for it.

        Raises:
            queue.Full: too many jobs wait.
        """
        job = Job(function)
        with self._has_jobs:
            self._jobs = deque(other for other in self._jobs if not other.is_abandoned)
            if len(self._jobs) >= self._capacity:
                raise queue.Full
            self._jobs.append(job)
            self._has_jobs.notify()
        return job

    def _next(self) -> Job:
        """Wait for a job, and take it from the queue."""
        with self._has_jobs:
            self._has_jobs.wait_for(lambda: self._jobs)
            return self._jobs.popleft()

    def _work(self) -> None:
        while True:
            self._next().run()

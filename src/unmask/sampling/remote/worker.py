"""The thread that works for a server: one job after another, from a queue of bounded length."""

from __future__ import annotations

import queue
import threading
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

    def check(self) -> None:
        """End the job if it was given up.

        Raises:
            AbandonedError: it was given up.
        """
        if self._is_abandoned.is_set():
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
        self._jobs: queue.Queue[Job] = queue.Queue(capacity)
        self._thread = threading.Thread(target=self._work, name="rollouts", daemon=True)
        self._thread.start()

    def submit(self, function: Callable[[Job], Any]) -> Job:
        """Add a job.

        Raises:
            queue.Full: too many jobs wait.
        """
        job = Job(function)
        self._jobs.put_nowait(job)
        return job

    def _work(self) -> None:
        while True:
            self._jobs.get().run()

"""Processes that run the jobs of a comparison."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from unmask.core.errors import RunError, UnmaskError
from unmask.trainer.comparison.jobs import ComparisonJob, Record
from unmask.trainer.distributed.stopping import RunStoppedError


class InThisProcess(Executor):
    """Executor that runs each call at once, in this process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call the function, and return a finished future."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def make_workers(count: int) -> Executor:
    """Return an executor that runs jobs in `count` processes; with one, it runs them in this
    process."""
    if count == 1:
        return InThisProcess()
    # A forked child of a process that has used torch's threads hangs. The server of the processes has
    # imported the code of the jobs and has run nothing, so it can be forked for each of them.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([ComparisonJob.__module__])
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_begin_worker)
    for _ in range(count):
        # All processes start now: one that started later would run code that was edited in the
        # meantime.
        pool.submit(_nothing)
    return pool


def _nothing() -> None:
    """Do nothing; submitting this call starts a worker."""


def _begin_worker() -> None:
    # Two processes of one thread do 1.5 times the work of one process of two.
    torch.set_num_threads(1)
    # During a run the trainer handles signals: it finishes its step and saves. Between runs the
    # parent ends the worker.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker when its parent process ends. Otherwise the worker would keep the lock of its
    run folder."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def work(job: ComparisonJob) -> Record:
    """Run a job in a worker. A user's mistake is recorded as the job's result; other exceptions
    stop the comparison."""
    try:
        return job.run()
    except RunStoppedError as stop:
        return {"stopped": stop.signal_number}
    except UnmaskError as error:
        return {"failed": str(error)}


def result_of(future: Future[Record]) -> Record:
    """Return the result of `work`.

    Raises:
        RunError: if the worker process died.
    """
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise RunError(
            "a worker process died, perhaps because memory ran out. The results so far are kept: repeat the command, with fewer "
            "--jobs if memory was the cause."
        ) from error

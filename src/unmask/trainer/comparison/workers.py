"""Processes that run the jobs of a comparison."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Self

import torch

from unmask.core.errors import RunError, UnmaskError
from unmask.trainer.comparison.jobs import ComparisonJob, Record
from unmask.trainer.distributed.stopping import RunStoppedError


class Workers:
    """Place where the jobs of a comparison run. A context releases it."""

    most: int
    """Maximum number of jobs at a time."""

    def start(self, job: ComparisonJob) -> Future[Record]:
        """Start a job, and return the future of its result, which is that of `work`."""
        raise NotImplementedError

    def stop(self) -> None:
        """Ask the running jobs to save and stop. Repeated calls do no harm."""

    def recorded(self, job: ComparisonJob) -> None:
        """Take note that the result of a job is recorded, so that it need not be kept elsewhere."""

    def close(self) -> None:
        """Release the workers."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        self.close()


class InThisProcess(Workers):
    """Workers that run each job at once, in this process. The trainer handles signals."""

    most = 1

    def start(self, job: ComparisonJob) -> Future[Record]:
        future: Future[Record] = Future()
        try:
            future.set_result(work(job))
        except Exception as error:
            future.set_exception(error)
        return future


class Processes(Workers):
    """Processes of this machine, with one thread each.

    Args:
        count: number of processes.
    """

    def __init__(self, count: int) -> None:
        self.most = count
        # A forked child of a process that has used torch's threads hangs. The server of the processes
        # has imported the code of the jobs and has run nothing, so it can be forked for each of them.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([ComparisonJob.__module__])
        self._pool = ProcessPoolExecutor(count, mp_context=context, initializer=_begin_worker)
        for _ in range(count):
            # All processes start now: one that started later would run code that was edited in the
            # meantime.
            self._pool.submit(_nothing)

    def start(self, job: ComparisonJob) -> Future[Record]:
        return self._pool.submit(work, job)

    def stop(self) -> None:
        # A terminal sends Ctrl-C to all processes, `kill` only to this one.
        for child in multiprocessing.active_children():
            os.kill(child.pid or 0, signal.SIGINT)

    def close(self) -> None:
        self._pool.shutdown()


def _nothing() -> None:
    """Do nothing; submitting this call starts a worker."""


def _begin_worker() -> None:
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


def work(job: ComparisonJob, threads: int = 1) -> Record:
    """Run a job in a worker with a number of threads. A user's mistake is recorded as the job's
    result; other exceptions stop the comparison."""
    before = torch.get_num_threads()
    # The same number wherever a job runs: sums over two threads have other last bits, and a run
    # amplifies them. Two processes of one thread do 1.5 times the work of one process of two.
    torch.set_num_threads(threads)
    try:
        return job.run()
    except RunStoppedError as stop:
        return {"stopped": stop.signal_number}
    except UnmaskError as error:
        return {"failed": str(error)}
    finally:
        torch.set_num_threads(before)


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

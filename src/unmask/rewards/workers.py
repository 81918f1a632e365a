"""Worker processes that call one function, a call at a time, each under a time limit that holds whatever the function does.

A call that runs too long, or a process that dies of it, costs that call its value and the pool one process, which is
started again. Nothing else is lost: that is what an alarm or a thread cannot promise.

Each reply carries the random number of its request. What the function, its threads or its forked children write between the
replies is skipped, so it can never be taken for a reply, and no reply for that of another request.

The process itself runs `unmask.rewards.worker`.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import queue
import secrets
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unmask.core.errors import ConfigError, RewardError
from unmask.core.timeouts import budget as time_for

START_SECONDS = 120.0
"""What a worker may take to import its function."""
PATIENCE = 4.0
"""Times its limit that a call may take by the clock on the wall where others hold the processors."""
LARGEST_REPLY = 64 * 2**20
"""Bytes of a reply. A process that writes more without ending the line is stopped before it fills the memory of this one."""

Kind = Literal["function", "reward"]
"""What a worker does with its function: call it and reply with its value, or call it by the contract of reward functions."""


@dataclass(frozen=True, slots=True)
class WorkerOutcome:
    """What became of one call."""

    value: Any = None
    """What the function returned, by way of JSON."""
    failure: Literal["timeout", "no time", "crash", "error"] | None = None
    """`timeout`: stopped at its limit; `no time`: stopped before it, or never begun, because the time for all was up;
    `crash`: the process died, for want of memory for instance; `error`: the function raised."""
    message: str = ""
    """Of the error."""


NO_TIME = WorkerOutcome(failure="no time")


class Workers:
    """A pool of processes for one function. They start when first needed, and end with this object or with this process.

    Args:
        path: the function, as `package.module:function` or `file.py:function`.
        num: processes.
        timeout: seconds that one call may take; those in which its process was ready and got no processor do not count (Linux),
            up to `PATIENCE` times the limit. A right answer must not be late because the machine is busy.
        memory: bytes of address space of each process; 0 sets no limit.
        kind: how the function is called.
        start_seconds: what a process may take to import the function.
    """

    def __init__(
        self,
        path: str,
        num: int = 1,
        timeout: float = 5.0,
        memory: int = 0,
        kind: Kind = "function",
        start_seconds: float = START_SECONDS,
    ) -> None:
        self.path, self.num, self.timeout, self.memory = path, num, timeout, memory
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        # One process may use all cores; several share them.
        environment = {"OMP_NUM_THREADS": "1"} if num > 1 or kind == "function" else {}
        self._all = [_Worker(path, memory, kind, start_seconds, environment) for _ in range(num)]
        for worker in self._all:
            self._idle.put(worker)
        self._end = weakref.finalize(self, _kill_all, self._all)

    def map(
        self, calls: Sequence[Mapping[str, Any]], budget: float = float("inf"), timeouts: Sequence[float] = ()
    ) -> list[WorkerOutcome]:
        """Call the function once with each set of keyword arguments.

        Args:
            calls: values that pickle knows.
            budget: seconds for all; calls that have not begun by then are given up. Less where the time limit around this leaves
                less (`unmask.core.timeouts`).
            timeouts: of each call, where they differ from the pool's.

        Returns:
            An outcome for each, in order.

        Raises:
            RewardError: the processes cannot be started, or arguments cannot be sent to one.
        """
        deadline = time.monotonic() + time_for(budget)

        def one(arguments: Mapping[str, Any], timeout: float) -> WorkerOutcome:
            worker = self._idle.get()
            try:
                left = deadline - time.monotonic()
                outcome = worker.call(arguments, timeout, left) if left > 0 else NO_TIME
                is_cut = outcome.failure == "timeout" and time.monotonic() >= deadline
                return NO_TIME if is_cut else outcome
            finally:
                self._idle.put(worker)

        threads = ThreadPoolExecutor(min(self.num, len(calls) or 1))
        try:
            return list(threads.map(one, calls, timeouts or [self.timeout] * len(calls)))
        finally:
            # Not waited for: whoever interrupts this need not sit out the calls that are running.
            threads.shutdown(wait=False, cancel_futures=True)

    def facts(self) -> dict[str, Any]:
        """What a worker says of its function when it starts: parameters, reasons and declarations.

        Raises:
            ConfigError: there is no such function, or its module cannot be imported.
        """
        worker = self._idle.get()
        try:
            return worker.start()
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """End the processes; a further call starts them again."""
        _kill_all(self._all)


def _kill_all(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.kill()


class _Worker:
    """One process, started again whenever it had to be killed."""

    def __init__(
        self, path: str, memory: int, kind: Kind, start_seconds: float, environment: Mapping[str, str]
    ) -> None:
        # Without the current folder ahead of the standard library (-P): a queue.py of the user's would take its place.
        self.command = [sys.executable, "-P", "-m", "unmask.rewards.worker", path, str(memory), kind]
        self.path, self.start_seconds, self.environment = path, start_seconds, environment
        self.process: subprocess.Popen[bytes] | None = None

    def call(self, arguments: Mapping[str, Any], timeout: float, left: float) -> WorkerOutcome:
        """Send the arguments and wait for the reply, no longer than `timeout`, nor than what is left for all."""
        token = secrets.token_hex(16)
        try:
            payload = pickle.dumps((token, timeout, dict(arguments)))
        except Exception as error:  # pickle, and the objects in a row, raise what they like
            raise RewardError(
                f'the arguments of "{self.path}" cannot be sent to a worker process ({type(error).__name__}: {error}). '
                "Leave such columns out of the rows, or set reward_workers = 0."
            ) from error
        if self.process is None or self.process.poll() is not None:
            try:
                self.start()
            except ConfigError as error:
                raise RewardError(f'a worker process for "{self.path}" could not be started: {error}') from None
        reply, is_late = self._exchange(payload, token, timeout, min(PATIENCE * timeout, left))
        if reply is None:
            self.kill()
            return WorkerOutcome(failure="timeout" if is_late else "crash")
        value, message = reply
        return WorkerOutcome(failure="error", message=message) if message else WorkerOutcome(value)

    def kill(self) -> None:
        """End the process and what it started."""
        process, self.process = self.process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with contextlib.suppress(OSError):
                    pipe.close()

    def start(self) -> dict[str, Any]:
        """Start the process, and return what it says of its function; raise a ConfigError if it cannot load it."""
        self.kill()
        # A session of its own: Ctrl-C is for the run, which finishes its step and needs its rewards for that.
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            # It finds what this process finds.
            env=os.environ | {"PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path), **self.environment},
        )
        token = secrets.token_hex(16)
        reply, is_late = self._exchange(pickle.dumps(token), token, self.start_seconds, self.start_seconds)
        if reply is None or reply[1]:
            self.kill()
            raise ConfigError(
                reply[1] if reply else f'"{self.path}" {"hung" if is_late else "died"} as it was imported.'
            )
        facts: dict[str, Any] = reply[0]
        return facts

    def _exchange(
        self, payload: bytes, token: str, timeout: float, at_most: float
    ) -> tuple[tuple[Any, str] | None, bool]:
        """Write a request and read its reply; whether the time was up first, which kills the process and so ends both."""
        process, is_done, is_late = self.process, threading.Event(), threading.Event()
        assert process is not None
        assert process.stdin is not None

        def watch() -> None:
            start, waited = time.monotonic(), _waited(process.pid)
            limit = min(timeout, at_most)
            while not is_done.wait(max(0.0, start + limit - time.monotonic())):
                limit = min(timeout + _waited(process.pid) - waited, at_most)
                if time.monotonic() >= start + limit:
                    is_late.set()
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.killpg(process.pid, signal.SIGKILL)
                    return

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            process.stdin.write(payload)
            process.stdin.flush()
            reply = _reply(process, token.encode())
        except OSError:
            reply = None
        finally:
            is_done.set()
            watcher.join()
        return reply, is_late.is_set()


def _reply(process: subprocess.Popen[bytes], token: bytes) -> tuple[Any, str] | None:
    """The reply with this number, or None where the process ends, or breaks the line, first."""
    assert process.stdout is not None
    while line := process.stdout.readline(LARGEST_REPLY):
        if line.startswith(token):
            try:
                value, message = json.loads(line[len(token) :])
            except (ValueError, TypeError):
                return None
            return value, message
        if not line.endswith(b"\n"):
            return None
    return None


def _waited(pid: int) -> float:
    """Seconds in which a process was ready to run and got no processor; 0 where the system does not say."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0

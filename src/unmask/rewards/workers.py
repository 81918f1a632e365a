"""Pool of worker processes that call one function under a time limit that always holds.

A call that takes too long, or that kills its process, loses only its own value. The pool then
starts that process again. An alarm or a thread could not enforce the limit in all cases.

Each reply carries the random token of its request. Anything else that the function, its threads or
its forked children write is skipped, so it cannot be taken for a reply or for the reply to another
request.

The processes run `unmask.rewards.worker`.
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
"""Seconds that a worker may take to import its function."""
PATIENCE = 4.0
"""Maximum wall-clock time of a call on a machine with busy processors, as a multiple of its time
limit."""
LARGEST_REPLY = 64 * 2**20
"""Maximum size of a reply in bytes. A process that writes a longer line is killed, to protect
memory."""

Kind = Literal["function", "reward"]
"""How a worker calls its function: as a plain function, or by the contract of reward functions."""


@dataclass(frozen=True, slots=True)
class WorkerOutcome:
    """Result of one call."""

    value: Any = None
    """Return value of the function, after a round trip through JSON."""
    failure: Literal["timeout", "no time", "crash", "error"] | None = None
    """Reason why there is no value; None if the call succeeded.

    `timeout`: the call reached its own limit. `no time`: the time for all calls ran out before this
    one finished or started. `crash`: the process died, for example because memory ran out. `error`:
    the function raised an exception."""
    message: str = ""
    """Text of the error if `failure` is `error`."""


NO_TIME = WorkerOutcome(failure="no time")


class Workers:
    """Pool of processes for one function.

    The processes start on first use, and end with this object or this process.

    Args:
        path: path of the function, as `package.module:function` or `file.py:function`.
        num: number of processes.
        timeout: seconds that one call may take. On Linux, time in which the process waits for a
            processor does not count, up to `PATIENCE` times the limit, so a correct answer is not
            late on a busy machine.
        memory: limit of each process's address space in bytes; 0 sets no limit.
        kind: how the function is called.
        start_seconds: seconds that a process may take to import the function.
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
        # A single reward process may use all cores; otherwise the processes share them.
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
            calls: keyword arguments of each call, all of types that pickle supports.
            budget: seconds for all calls together; calls that have not started by then are given
                up. A time limit around this call shortens it (`unmask.core.timeouts`).
            timeouts: limit of each call in seconds; default: the pool's `timeout`.

        Returns:
            One outcome for each call, in order.

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
            # Do not wait, so that an interrupt does not have to wait for the running calls.
            threads.shutdown(wait=False, cancel_futures=True)

    def facts(self) -> dict[str, Any]:
        """Return what a worker reports about its function: parameters, reasons, declarations.

        Raises:
            ConfigError: the function does not exist, or its module cannot be imported.
        """
        worker = self._idle.get()
        try:
            return worker.start()
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """End the processes; another call starts them again."""
        _kill_all(self._all)


def _kill_all(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.kill()


class _Worker:
    """One process, which starts again after it was killed."""

    def __init__(
        self, path: str, memory: int, kind: Kind, start_seconds: float, environment: Mapping[str, str]
    ) -> None:
        # -P keeps the current folder off the path, where a user's queue.py would hide the standard
        # library's.
        self.command = [sys.executable, "-P", "-m", "unmask.rewards.worker", path, str(memory), kind]
        self.path, self.start_seconds, self.environment = path, start_seconds, environment
        self.process: subprocess.Popen[bytes] | None = None

    def call(self, arguments: Mapping[str, Any], timeout: float, left: float) -> WorkerOutcome:
        """Send the arguments, and wait at most `timeout` and `left` seconds for the reply."""
        token = secrets.token_hex(16)
        try:
            payload = pickle.dumps((token, timeout, dict(arguments)))
        except Exception as error:  # pickle, and the objects in a row, may raise any exception.
            raise RewardError(
                f'the arguments of "{self.path}" cannot be sent to a worker process ({type(error).__name__}: {error}). '
                "Leave such columns out of the rows, or set reward_workers=0."
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
        """End the process and its children."""
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
        """Start the process and return the facts about its function; else raise a ConfigError."""
        self.kill()
        # In its own session, the worker does not receive Ctrl-C: the run still finishes its step
        # and needs rewards.
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            # The worker must import the same modules as this process.
            env=os.environ | {"PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path), **self.environment},
        )
        token = secrets.token_hex(16)
        reply, is_late = self._exchange(pickle.dumps(token), token, self.start_seconds, self.start_seconds)
        if reply is None or reply[1]:
            self.kill()
            raise ConfigError(
                reply[1] if reply else f'"{self.path}" {"hung" if is_late else "died"} during its import.'
            )
        facts: dict[str, Any] = reply[0]
        return facts

    def _exchange(
        self, payload: bytes, token: str, timeout: float, at_most: float
    ) -> tuple[tuple[Any, str] | None, bool]:
        """Write a request; return its reply, and True if the reply took too long."""
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
    """Return the reply with this token, or None if the process ends or cuts a line before it."""
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
    """Return the seconds that a process waited for a processor; 0 if the system does not count
    them."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0

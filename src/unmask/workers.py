"""Worker processes that call one function, a call at a time, each under a time limit that holds whatever the function does.

A call that runs too long, or a process that dies of it, costs that call its value and the pool one process, which is
started again. Nothing else is lost: that is what an alarm or a thread cannot promise.

Run as a program, this module is a worker: `python -m unmask.workers PATH MEMORY TIMEOUT`.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import inspect
import json
import os
import pickle
import queue
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unmask.deadline import budget as time_for
from unmask.errors import ConfigError, RewardError
from unmask.reward import Score, load_reward, reasons_of

START_SECONDS = 120.0
"""What a worker may take to import its function."""
PATIENCE = 4.0
"""Times its limit that a call may take by the clock on the wall where others hold the processors."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one call."""

    value: Any = None
    """What the function returned, by way of JSON."""
    failure: Literal["timeout", "no time", "crash", "error"] | None = None
    """`timeout`: stopped at its limit; `no time`: stopped before it, or never begun, because the time for all was up;
    `crash`: the process died, of memory for instance; `error`: the function raised."""
    message: str = ""
    """Of the error."""


NO_TIME = Outcome(failure="no time")


class Workers:
    """A pool of processes for one function. They start when first needed and end with this process.

    Args:
        path: the function, as `package.module:function` or `file.py:function`.
        num: processes.
        timeout: seconds that one call may take; those in which its process was ready and got no processor do not count (Linux),
            up to `PATIENCE` times the limit. Right answers are not to be late because the machine is busy.
        memory: bytes of address space of each process; 0 sets no limit.
    """

    def __init__(self, path: str, num: int = 1, timeout: float = 5.0, memory: int = 0) -> None:
        self.path, self.num, self.timeout, self.memory = path, num, timeout, memory
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._all = [_Worker(path, timeout, memory) for _ in range(num)]
        for worker in self._all:
            self._idle.put(worker)
        atexit.register(self.close)

    def map(self, calls: Sequence[Mapping[str, Any]], budget: float = float("inf")) -> list[Outcome]:
        """Call the function once with each set of keyword arguments.

        Args:
            calls: values that pickle knows.
            budget: seconds for all; calls that have not begun by then are given up. Less where the time limit around this leaves
                less (`unmask.deadline`).

        Returns:
            An outcome for each, in order.

        Raises:
            RewardError: the processes cannot be started.
        """
        deadline = time.monotonic() + time_for(budget)

        def one(arguments: Mapping[str, Any]) -> Outcome:
            worker = self._idle.get()
            try:
                left = deadline - time.monotonic()
                outcome = worker.call(arguments, self.timeout, left) if left > 0 else NO_TIME
                is_cut = outcome.failure == "timeout" and time.monotonic() >= deadline
                return NO_TIME if is_cut else outcome
            finally:
                self._idle.put(worker)

        threads = ThreadPoolExecutor(min(self.num, len(calls) or 1))
        try:
            return list(threads.map(one, calls))
        finally:
            # Not waited for: whoever interrupts this need not sit out the calls that are running.
            threads.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """End the processes."""
        for worker in self._all:
            worker.kill()


class _Worker:
    """One process, started again whenever it had to be killed."""

    def __init__(self, path: str, timeout: float, memory: int) -> None:
        self.command = [sys.executable, "-m", "unmask.workers", path, str(memory), str(timeout)]
        self.path = path
        self.process: subprocess.Popen[bytes] | None = None

    def call(self, arguments: Mapping[str, Any], timeout: float, left: float) -> Outcome:
        """Send the arguments and wait for the reply, so long and no longer; never longer than what is left for all."""
        payload = pickle.dumps(dict(arguments))
        if self.process is None or self.process.poll() is not None:
            self._start()
        line, is_late = self._exchange(payload, timeout, min(PATIENCE * timeout, left))
        if is_late or not line.endswith(b"\n"):
            self.kill()
            return Outcome(failure="timeout" if is_late else "crash")
        value, message = json.loads(line)
        return Outcome(failure="error", message=message) if message else Outcome(value)

    def kill(self) -> None:
        """End the process and what it started."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                assert pipe is not None
                with contextlib.suppress(OSError):
                    pipe.close()
            self.process = None

    def _start(self) -> None:
        self.kill()
        # A session of its own: Ctrl-C is for the run, which finishes its step and needs its rewards for that.
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            # It finds what this process finds, and does not take all cores for what one call needs.
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
        )
        line, is_late = self._exchange(b"", START_SECONDS, START_SECONDS)
        message = json.loads(line)[1] if line.endswith(b"\n") else "it " + ("hung" if is_late else "died")
        if message or is_late:
            self.kill()
            raise RewardError(f'a worker process for "{self.path}" could not be started: {message}')

    def _exchange(self, payload: bytes, timeout: float, at_most: float) -> tuple[bytes, bool]:
        """Write and read a line; whether the time was up first, which kills the process and so ends both."""
        process, is_done, is_late = self.process, threading.Event(), threading.Event()
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None

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
            line = process.stdout.readline()
        except OSError:
            line = b""
        finally:
            is_done.set()
            watcher.join()
        return line, is_late.is_set()


def _waited(pid: int) -> float:
    """Seconds in which a process was ready to run and got no processor; 0 where the system does not say."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


class Isolated:
    """A reward function in worker processes: the same signature, but called with one completion at a time.

    A completion whose call takes too long or kills its process scores 0 for the reason "timeout". An error that the function
    raises is still an error.

    Args:
        path: the function, as `package.module:function` or `file.py:function`.
        num: processes.
        timeout: seconds for one completion.
        budget: seconds for all completions of a call; what has not begun by then is a timeout as well.

    Raises:
        ConfigError: nothing callable there.
    """

    def __init__(self, path: str, num: int, timeout: float, budget: float) -> None:
        self.__name__, function = load_reward(path)
        self.__signature__ = inspect.signature(function)
        self.reasons = tuple(dict.fromkeys(("timeout", *reasons_of(function))))
        self._budget = budget
        self._workers = Workers(path, num, timeout)

    def __call__(self, **columns: Sequence[Any]) -> list[Any]:
        """A number, a `Score` or None for each completion; `completions` must be among the columns if the function names it.

        Raises:
            RewardError: the function raised, or gave something else than a list of one.
        """
        count = len(next(iter(columns.values())))
        calls = [{name: [values[i]] for name, values in columns.items()} for i in range(count)]
        return [self._value(outcome) for outcome in self._workers.map(calls, self._budget)]

    def _value(self, outcome: Outcome) -> Any:
        if outcome.failure == "error":
            raise RewardError(f'reward function "{self.__name__}" {outcome.message}')
        if outcome.failure:
            return Score(0.0, "timeout")
        if not isinstance(outcome.value, list) or len(outcome.value) != 1:
            raise RewardError(f'reward function "{self.__name__}" returned {outcome.value!r} for one completion.')
        (value,) = outcome.value
        return Score(value["score"], value["reason"]) if isinstance(value, dict) else value


def _plain(value: Any) -> Any:
    """A value as JSON has it; a `Score` keeps its reason, tensors and arrays become lists."""
    if isinstance(value, Score):
        return {"score": float(value), "reason": value.reason}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "tolist"):
        return value.tolist()
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else repr(value)


def _serve(path: str, memory: int, timeout: float) -> None:
    """The worker's side: read arguments, call, reply with a line of JSON, until the pipe is closed."""
    inbox, outbox = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # What the function prints, or reads, must not get between the replies.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    if memory:
        with contextlib.suppress(ValueError, OSError):  # not every system has this limit
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))

    def reply(value: Any, message: str = "") -> None:
        outbox.write(json.dumps([_plain(value), message]).encode() + b"\n")
        outbox.flush()

    try:
        _, function = load_reward(path)
    except ConfigError as error:
        reply(None, str(error))
        return
    reply(None)
    while True:
        try:
            arguments = pickle.load(inbox)
        except EOFError:
            return
        # The pool stops a call that is late. Should the pool be gone, the process stops itself.
        signal.setitimer(signal.ITIMER_REAL, PATIENCE * timeout + 5)
        try:
            value = function(**arguments)
            value = asyncio.run(value) if inspect.iscoroutine(value) else value
            reply(value)
        except BaseException as error:
            reply(None, f"raised {type(error).__name__}: {error}")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))

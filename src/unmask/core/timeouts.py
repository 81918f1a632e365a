"""Time limits: functions that stop a call when its time is up, and that return how much time a
limit leaves.

A pool of workers inside a limited call uses `budget` to return before the limit of the call is
reached.
"""

from __future__ import annotations

import ctypes
import math
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from types import FrameType
from typing import Any

RESERVE = 10.0
"""Seconds reserved for ending the workers and returning; at most half of the remaining time."""
PATIENT_RINGS = 4
"""Number of alarms that are half a second apart. A function that catches all of them gets further
alarms at short intervals."""
CLOSE_RINGS = 1e-4
"""Seconds between the later alarms, which are so close together that the function cannot catch all
of them."""

_end: ContextVar[float] = ContextVar("end", default=math.inf)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Record that the code in the block must return after this many seconds. Nothing is
    interrupted."""
    token = _end.set(min(_end.get(), time.monotonic() + seconds))
    try:
        yield
    finally:
        _end.reset(token)


def budget(seconds: float) -> float:
    """Return the number of seconds in which a pool may start work: `seconds`, or less if an
    enclosing time limit leaves less.

    Example:
        >>> budget(40.0)
        40.0
        >>> with time_limit(20.0):
        ...     round(budget(40.0))
        10
    """
    left = _end.get() - time.monotonic()
    return max(0.0, min(seconds, max(left - RESERVE, left / 2)))


class _Interrupted(BaseException):
    """Raised in the thread that takes too long."""


@contextmanager
def interrupted_after(seconds: float, message: str) -> Iterator[None]:
    """Interrupt the Python code in the block after this many seconds, in any thread.

    The interruption takes effect between two instructions of the interpreter, so it cannot end a
    call of a C function.

    Raises:
        TimeoutError: the time is up; its text is `message`.

    Example:
        >>> with interrupted_after(0.1, "too slow"):
        ...     while True: pass
        Traceback (most recent call last):
        TimeoutError: too slow
    """
    thread, is_over, lock = threading.get_ident(), False, threading.Lock()

    def interrupt() -> None:
        with lock:
            if not is_over:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_Interrupted))

    timer = threading.Timer(seconds, interrupt)
    timer.daemon = True
    try:
        try:
            timer.start()
            yield
        finally:
            with lock:
                is_over = True
            timer.cancel()
    except _Interrupted:
        raise TimeoutError(message) from None


class TimeLimitError(BaseException):
    """Raised when the time is up. It is not an Exception, so that a function's own `except
    Exception` does not catch it."""


def within(seconds: float, work: Callable[[], Any]) -> Any:
    """Call `work`, and stop the call when the time is up.

    In the main thread an alarm interrupts the call. An alarm also ends C code that checks for
    signals, such as a regular expression that backtracks or a power of large integers. A function
    that catches everything in a loop is interrupted again and again, until an alarm arrives outside
    the function's `try`. Other threads have no alarms. There the call runs in a further thread,
    which is abandoned when the time is up.

    Raises:
        TimeLimitError: the time is up.
    """
    if threading.current_thread() is not threading.main_thread():
        return _within_thread(seconds, work)
    rings = 0

    def ring(_number: int, frame: FrameType | None) -> None:
        nonlocal rings
        rings += 1
        if rings == PATIENT_RINGS:
            signal.setitimer(signal.ITIMER_REAL, CLOSE_RINGS, CLOSE_RINGS)
        # No alarm counts after `work` has ended, while the alarm is being switched off.
        if frame is not None and frame.f_code not in (within.__code__, ring.__code__):
            raise TimeLimitError

    previous = signal.signal(signal.SIGALRM, ring)
    started = time.monotonic()
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, 0.5)
    try:
        return work()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        if left:
            # An alarm of the caller's own rings when it would have, or at once if that time is past.
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - started), 1e-3), interval)


def _within_thread(seconds: float, work: Callable[[], Any]) -> Any:
    result: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
    context = copy_context()

    def run() -> None:
        try:
            result.put((True, context.run(work)))
        except BaseException as error:
            result.put((False, error))

    # The thread is a daemon: a call that hangs cannot be stopped, and must not keep the process
    # alive.
    threading.Thread(target=run, daemon=True).start()
    try:
        succeeded, value = result.get(timeout=seconds)
    except queue.Empty:
        raise TimeLimitError from None
    if not succeeded:
        raise value
    return value

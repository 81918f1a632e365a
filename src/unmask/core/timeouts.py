"""Time limits: a call that is stopped when its time is up, and how much time is left within such a limit.

A pool of workers inside a limited call asks for its `budget`, and returns before the limit of the call is reached.
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
"""Seconds kept to end what is running and to come back; half of what is left where that is less."""
PATIENT_RINGS = 4
"""Alarms, half a second apart, that a function may catch before they follow each other closely."""
CLOSE_RINGS = 1e-4
"""Seconds between alarms from then on: one of them soon rings where the function cannot catch it."""

_end: ContextVar[float] = ContextVar("end", default=math.inf)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Record that what is called within must have returned after so many seconds. It interrupts nothing."""
    token = _end.set(min(_end.get(), time.monotonic() + seconds))
    try:
        yield
    finally:
        _end.reset(token)


def budget(seconds: float) -> float:
    """Seconds in which a pool may begin work: `seconds`, or less where the time limit around it leaves less.

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
    """End Python code that takes longer than so many seconds, in any thread.

    It interrupts between two instructions of the interpreter, and so not within one call of a C function.

    Raises:
        TimeoutError: with `message`.

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
    """The time is up. Not an Exception, so that a function's own `except Exception` does not catch it."""


def within(seconds: float, work: Callable[[], Any]) -> Any:
    """Call `work` and stop it when the time is up.

    In the main thread an alarm interrupts the call. That also ends calls into C that check for signals, such as a regular
    expression that backtracks or a power of large integers. A function that catches everything in a loop is interrupted
    again and again, until an alarm rings outside of its `try`. Other threads have no alarms: there the call runs in a further
    thread, which is left behind when the time is up.

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
        # Not where `work` has already ended and the alarm is about to be switched off.
        if frame is not None and frame.f_code not in (within.__code__, ring.__code__):
            raise TimeLimitError

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.5)
    try:
        return work()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _within_thread(seconds: float, work: Callable[[], Any]) -> Any:
    result: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
    context = copy_context()

    def run() -> None:
        try:
            result.put((True, context.run(work)))
        except BaseException as error:
            result.put((False, error))

    # A daemon: one that hangs can neither be stopped nor keep the process from ending.
    threading.Thread(target=run, daemon=True).start()
    try:
        succeeded, value = result.get(timeout=seconds)
    except queue.Empty:
        raise TimeLimitError from None
    if not succeeded:
        raise value
    return value

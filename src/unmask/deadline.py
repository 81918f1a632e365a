"""How much time is left for what is under way. Whoever limits a call says so here, and pools within it return before it is up.

A reward that is late stops the run; a program or a comparison that was not begun costs its own completion alone.
"""

from __future__ import annotations

import ctypes
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

RESERVE = 10.0
"""Seconds kept to end what is running and to come back; half of what is left where that is less."""

_end: ContextVar[float] = ContextVar("end", default=math.inf)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Say that what is called within must have returned after so many seconds. It interrupts nothing."""
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

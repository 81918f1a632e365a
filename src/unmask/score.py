"""Completions in, rewards out: reward functions with TRL's signature, weights, a time limit, and a cache for equal texts.

EGSPO-SA scores K + 1 completions of every rollout, and late in training most of them are equal, so equal texts of one row
are scored once.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from unmask.deadline import time_limit
from unmask.errors import ConfigError, DataError, RewardError
from unmask.records import Row
from unmask.reward import RewardFunc, Score, load_reward, reasons_of


@dataclass(frozen=True, slots=True)
class Scores:
    """Rewards of N completions."""

    total: list[float]
    """Weighted sum over the functions, None counting as 0."""
    by_function: dict[str, list[float | None]]
    """What each function gave."""
    reasons: dict[str, dict[str, list[bool]]] = field(default_factory=dict)
    """For each function and each reason that it reports: which completions had it."""


class Scorer:
    """Reward functions, called safely.

    Args:
        functions: by the name under which their mean is logged.
        weights: one for each; default 1.
        timeout: seconds that one call may take.

    Raises:
        ConfigError: no function, or weights that do not match.
    """

    def __init__(
        self, functions: Mapping[str, RewardFunc], weights: Sequence[float] = (), timeout: float = 60.0
    ) -> None:
        if not functions:
            raise ConfigError("no reward function: the task brings none, so set reward_funcs.")
        if weights and len(weights) != len(functions):
            raise ConfigError(
                f"{len(weights)} reward_weights for {len(functions)} reward functions; give one for each."
            )
        self.functions = dict(functions)
        self.weights = tuple(weights) or (1.0,) * len(functions)
        self.timeout = timeout
        self.count = 0
        """Completions scored since the last `take`, equal texts of a row once."""
        self.calling: Callable[[], None] = lambda: None
        """Called before each call of a function."""

    def take(self) -> int:
        """The count since the last call."""
        count, self.count = self.count, 0
        return count

    def check_columns(self, row: Row) -> None:
        """Refuse rows that lack a column which a reward function names as a required argument, or that hide an argument.

        Raises:
            DataError: names the function, the column and the columns that there are.
        """
        for taken in ("prompts", "completions"):
            if taken in row:
                raise DataError(f'the rows have a column "{taken}", an argument of every reward function. Rename it.')
        for name, function in self.functions.items():
            for parameter in inspect.signature(function).parameters.values():
                is_variadic = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
                is_required = parameter.default is parameter.empty and not is_variadic
                if is_required and parameter.name not in {"prompts", "completions", *row}:
                    raise DataError(
                        f'reward function "{name}" needs the column "{parameter.name}", which the rows do not have. '
                        f"They have: {', '.join(sorted(row))}."
                    )

    def __call__(self, rows: Sequence[Row], completions: Sequence[str]) -> Scores:
        """Score one completion for each row.

        Raises:
            RewardError: a function raised, took too long, or gave something other than one number or None for each.
        """
        index: dict[tuple[int, str], int] = {}
        slots = [index.setdefault((id(row), text), len(index)) for row, text in zip(rows, completions, strict=True)]
        place = {slot: i for i, slot in enumerate(slots)}
        distinct = [place[slot] for slot in range(len(index))]
        distinct_rows = [rows[i] for i in distinct]
        texts = [completions[i] for i in distinct]
        self.count += len(texts)
        prompts = [row["prompt"] for row in distinct_rows]
        columns = {key: [row.get(key) for row in distinct_rows] for key in distinct_rows[0] if key != "prompt"}
        by_function, reasons = {}, {}
        for name, function in self.functions.items():
            given = self._call(name, function, prompts, texts, columns)
            by_function[name] = [given[slot] for slot in slots]
            reasons[name] = {
                reason: [getattr(given[slot], "reason", None) == reason for slot in slots]
                for reason in reasons_of(function)
            }
        total = [
            sum(w * (value or 0.0) for w, value in zip(self.weights, values, strict=True))
            for values in zip(*by_function.values(), strict=True)
        ]
        return Scores(total, by_function, reasons)

    def _call(
        self, name: str, function: RewardFunc, prompts: list[Any], completions: list[str], columns: dict[str, list[Any]]
    ) -> list[float | None]:
        self.calling()
        arguments: dict[str, Any] = {"prompts": prompts, "completions": completions, **columns}
        parameters = inspect.signature(function).parameters
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            arguments = {key: values for key, values in arguments.items() if key in parameters}

        def work() -> Any:
            with time_limit(self.timeout):
                value = function(**arguments)
                value = asyncio.run(value) if inspect.iscoroutine(value) else value
                # A generator runs only now: within the limit, and as a part of the function.
                return list(value) if isinstance(value, Iterator) else value

        try:
            value = within(self.timeout, work)
        except TimeLimitError:
            raise RewardError(
                f'reward function "{name}" did not return within {self.timeout:g} s for {len(completions)} completions. '
                "Make it faster, or raise reward_timeout."
            ) from None
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise RewardError(
                f'reward function "{name}" raised {type(error).__name__}: {error} ({_place(function, error)})'
            ) from error
        return _checked(name, value, completions)


class TimeLimitError(BaseException):
    """The time is up. Not an Exception, so that a function's own `except Exception` does not catch it."""


def within(seconds: float, work: Callable[[], Any]) -> Any:
    """Call `work`, for so long and no longer.

    In the main thread an alarm interrupts it, which also ends what never gives the interpreter back, such as a regular
    expression that backtracks or a power of large integers. Elsewhere Python has no alarms: there it runs in a thread that is
    left behind when the time is up.

    Raises:
        TimeLimitError: the time was up.
    """
    if threading.current_thread() is not threading.main_thread():
        return _within_thread(seconds, work)

    def ring(_number: int, _frame: FrameType | None) -> None:
        raise TimeLimitError

    previous = signal.signal(signal.SIGALRM, ring)
    # Again and again, for a function that catches everything.
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.5)
    try:
        return work()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _within_thread(seconds: float, work: Callable[[], Any]) -> Any:
    result: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

    def run() -> None:
        try:
            result.put((True, work()))
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


def _place(function: RewardFunc, error: BaseException) -> str:
    """Where it was raised: in the function's own file rather than in a library that it calls."""
    frames = traceback.extract_tb(error.__traceback__)
    file = getattr(getattr(function, "__code__", None), "co_filename", None)
    frame = ([frame for frame in frames if frame.filename == file] or frames)[-1]
    return f"{Path(frame.filename).name}, line {frame.lineno}"


def _checked(name: str, value: Any, completions: list[str]) -> list[float | None]:
    """The rewards as floats, or a RewardError that says what is wrong with them."""
    try:
        values = list(value)
    except TypeError:
        raise RewardError(f'reward function "{name}" returned {type(value).__name__}; it must return a list.') from None
    if len(values) != len(completions):
        raise RewardError(
            f'reward function "{name}" returned {len(values)} rewards for {len(completions)} completions; '
            "it must return one for each."
        )
    checked: list[float | None] = []
    for reward, text in zip(values, completions, strict=True):
        try:
            number = reward if reward is None or isinstance(reward, Score) else float(reward)
        except (TypeError, ValueError, OverflowError):
            raise RewardError(
                f'reward function "{name}" returned {_shown(reward)} for the completion {text[:80]!r}; '
                "each reward must be a number or None."
            ) from None
        if number is not None and not math.isfinite(number):
            raise RewardError(f'reward function "{name}" returned {number} for the completion {text[:80]!r}.')
        checked.append(number)
    return checked


def _shown(value: object) -> str:
    """A value as an error message has room for it; Python refuses to write very long integers."""
    try:
        return repr(value)[:80]
    except ValueError:
        return f"a {type(value).__name__} too long to write"


def by_name(functions: Iterable[tuple[str, RewardFunc]]) -> dict[str, RewardFunc]:
    """Reward functions by name.

    Raises:
        ConfigError: two of one name.
    """
    named: dict[str, RewardFunc] = {}
    for name, function in functions:
        if name in named:
            raise ConfigError(f'two reward functions are called "{name}", under which its mean is logged. Rename one.')
        named[name] = function
    return named


__all__ = ["RewardFunc", "Scorer", "Scores", "TimeLimitError", "by_name", "load_reward", "within"]

"""Programs in monty (pydantic-monty): a Python interpreter of its own without file system, network or operating system.

Program and tests are two sessions in two worker processes; a call that a test makes goes through this process as plain data.
Workers are kept for the next program. Monty has a part of the language and of its library, and a program that needs more
fails like a wrong one: `unsupported_reason` tells the two apart.
"""

from __future__ import annotations

import builtins
import re
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from datetime import time as clock_time
from decimal import Decimal
from importlib import metadata
from typing import TYPE_CHECKING, Any

from unmask.errors import ConfigError
from unmask.sandbox.base import Job, Sandbox, SandboxConfig, Verdict, verdict

if TYPE_CHECKING:
    from pydantic_monty import Monty, MontyError, MontySession

GIVE_UP_AFTER = 2
"""Tests that may hang before the rest is taken to hang as well."""
MAX_CALLS = 20_000
"""Calls that the tests of one program may make of it."""
_VERSIONS = ">= 1.4, < 2"
_PLAIN = frozenset((bool, int, float, complex, bytes, type(None), Decimal, date, datetime, clock_time, timedelta))
_CONTAINERS = (list, tuple, dict, set, frozenset)
_BUILTIN_TYPES = (str, bytes, int, float, complex, list, tuple, dict, set, frozenset, range, bytearray)
_STAND_IN = re.compile(
    r"<(?:function|class|module) .*>|<[\w.]+ object\b.*>"
    r"|(?:range|slice|re\.compile|dict_\w+)\(.*\)|[\[{(]\.\.\.[\]})]",
    re.DOTALL,
)
"""Texts that monty gives in place of what it cannot hand out: functions, ranges, views, a list inside itself."""
_NO_ATTRIBUTE = re.compile(r"^'?(?:type object )?'?(\w+)'? object has no attribute '(\w+)'")


class MontySandbox(Sandbox):
    """Fast and tight; a part of Python.

    Raises:
        ConfigError: pydantic-monty is not installed, or its worker program is not found.
    """

    def __init__(self, config: SandboxConfig) -> None:
        super().__init__(config)
        self._lock = threading.Lock()
        # Each program takes two workers of the pool: more programs than that could wait for one another's second.
        self._turns = threading.BoundedSemaphore(config.workers)
        self._pool: Monty | None = None

    def verdicts(self, job: Job, end: float) -> list[Verdict]:
        """Run the tests, starting anew after each that hung or crashed."""
        found: list[Verdict] = []
        deadline = time.monotonic() + self.config.total_timeout
        hung = 0
        while len(found) < len(job.tests) and (not found or time.monotonic() <= end):
            if hung == GIVE_UP_AFTER or time.monotonic() > deadline:
                reason = "it hung in tests before" if hung == GIVE_UP_AFTER else "no time left"
                found += [verdict("timed_out", reason)] * (len(job.tests) - len(found))
                break
            found += self._attempt(job, len(found), min(deadline, end))
            hung += found[-1].status == "timed_out"
        return found

    def close(self) -> None:
        """End the worker processes."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.__exit__(None, None, None)

    def _attempt(self, job: Job, first: int, deadline: float) -> list[Verdict]:
        """The verdicts from test `first` to the one that ended a session, or to the last."""
        rest = len(job.tests) - first
        with self._turns, self._session() as program, self._session() as tests:
            if loaded := _run(program, job.code):
                return [verdict("error" if loaded.status == "failed" else loaded.status, loaded.reason)] * rest
            calls = Calls(program, deadline)
            lookup = {f"program_{name}": calls.of(name) for name in job.names}
            # By assignment: monty asks for names that it does not know only, and a program may define its own `sum`.
            taken = "".join(f"{name} = program_{name}\n" for name in job.names)
            if prepared := _run(tests, taken, lookup) or _run(tests, job.setup, lookup):
                return [verdict("unsupported", f"the tests cannot be prepared: {prepared.reason}")] * rest
            found: list[Verdict] = []
            for test in job.tests[first:]:
                if found and time.monotonic() > deadline:
                    break
                calls.fault = None
                outcome = _run(tests, test, lookup)
                # What ended the program's session counts, even where the test went on.
                found.append(calls.fault or (verdict(outcome.status, outcome.reason) if outcome else verdict("passed")))
                if found[-1].status == "timed_out" or calls.is_over or (outcome and outcome.is_over):
                    break
            return found

    def _session(self) -> MontySession:
        limits: dict[str, Any] = {
            "max_feed_duration_secs": self.config.timeout,
            "max_memory": self.config.memory_mb * 2**20,
            "max_suspensions": MAX_CALLS,
        }
        return self._workers().checkout(
            limits=limits,  # type: ignore[arg-type]
            assert_message_annotations=False,
            os_policy={"sleep": "zero"},
        )

    def _workers(self) -> Monty:
        with self._lock:
            if self._pool is None:
                self._pool = _open_pool(self.config)
            return self._pool


@dataclass(frozen=True, slots=True)
class Outcome(Verdict):
    """Why a feed did not complete."""

    is_over: bool = False
    """Whether the session ended with it."""


class Calls:
    """The program's functions, as the tests call them."""

    def __init__(self, program: MontySession, deadline: float) -> None:
        self.program = program
        self.deadline = deadline
        """When no more calls are made. Monty's own limit is for each of them, and not for a test that waits for them."""
        self.fault: Verdict | None = None
        """What the program did in this test that no test can mend: it hung, crashed, or needs more than monty has."""
        self.is_over = False
        """Whether the program's session has ended."""

    def of(self, name: str) -> Callable[..., Any]:
        """The function that calls the program's function `name`."""

        def call(*args: Any, **kwargs: Any) -> Any:
            return self._call(name, args, kwargs)

        return call

    def _call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.fault or self.is_over:
            raise RuntimeError("the program has ended")
        if time.monotonic() > self.deadline:
            self.fault = verdict("timed_out", "no time left for its calls")
            raise RuntimeError(self.fault.reason)
        inputs = {"given_args": list(args), "given_kwargs": kwargs}
        if not is_plain(inputs):
            self.fault = verdict("unsupported", f"a test passes {name} something other than plain data")
            raise RuntimeError(self.fault.reason)
        feed = f"[{name}(*given_args, **given_kwargs), given_args]"
        try:
            value, after = self.program.feed_run(feed, inputs=inputs, print_callback=_discard)
        except Exception as error:
            raise self._raised(error) from None
        if not is_plain(value):
            self.fault = verdict("unsupported", f"{name} returns something other than plain data")
            raise RuntimeError(self.fault.reason)
        if value is None and after != inputs["given_args"]:
            # The test holds its own copies, which a function that works in place cannot reach.
            self.fault = verdict("unsupported", f"{name} changes its arguments in place")
        return value

    def _raised(self, error: Exception) -> BaseException:
        """What the test is to see of a call that did not return."""
        outcome, inner = _explain(error), _inner(error)
        if outcome.status in ("timed_out", "unsupported") or outcome.is_over:
            self.fault, self.is_over = verdict(outcome.status, outcome.reason), outcome.is_over
            return RuntimeError(outcome.reason)
        return inner if isinstance(inner, Exception) else RuntimeError(str(inner))


def _run(session: MontySession, code: str, lookup: dict[str, Any] | None = None) -> Outcome | None:
    """Run code in a session: None if it completed."""
    try:
        session.feed_run(code, external_lookup=lookup or {}, print_callback=_discard)
    except Exception as error:
        return _explain(error, code)
    return None


def _explain(error: Exception, code: str = "") -> Outcome:
    """The outcome that an exception of monty's stands for."""
    from pydantic_monty import MontyCrashedError, MontyError

    if isinstance(error, MontyCrashedError):
        return Outcome(
            "timed_out" if error.timed_out else "error", _line(f"the program's process ended: {error}"), is_over=True
        )
    if not isinstance(error, MontyError):
        return Outcome("error", _line(f"{type(error).__name__}: {error}"))
    inner = _inner(error)
    text = f"{type(inner).__name__}: {inner}"
    if isinstance(inner, TimeoutError) and "time limit exceeded" in str(inner):
        return Outcome("timed_out", _line(text), is_over=True)
    if unsupported_reason(error, code):
        return Outcome("unsupported", _line(text))
    is_over = isinstance(inner, MemoryError) and "terminated" in str(inner)
    return Outcome("failed" if isinstance(inner, AssertionError) else "error", _line(text), is_over)


def unsupported_reason(error: MontyError, code: str = "") -> bool:
    """Whether monty failed for what it lacks, where CPython might have gone on.

    In doubt it says yes: that earns nothing either, and `auto` then asks CPython.

    Args:
        error: what monty raised.
        code: the program, for syntax that CPython reads and monty does not.
    """
    inner = _inner(error)
    text = str(inner)
    match inner:
        case SyntaxError():
            return _parses(code)
        case ImportError() | PermissionError():
            return True
        case NotImplementedError() | RuntimeError():
            return any(sign in text for sign in ("monty", "not supported in this environment", "cannot suspend in"))
        case NameError():
            name = text.partition("'")[2].partition("'")[0]
            return hasattr(builtins, name) or name.startswith("__")
        case AttributeError():
            return text.startswith("module ") or _has_attribute(text)
        case TypeError():
            function = text.partition("(")[0].rpartition(".")[2]
            is_builtin = hasattr(builtins, function) or any(hasattr(kind, function) for kind in _BUILTIN_TYPES)
            return is_builtin and ("keyword argument" in text or "not supported" in text or "not yet" in text)
    return False


def is_plain(value: object) -> bool:
    """Whether a value from a session is plain data throughout, and no stand-in for an object of the program's.

    Linear in the objects, not in the paths to them: a list that holds one list twice, thirty levels deep, is small.
    """
    seen: set[int] = set()
    left = [value]
    while left:
        item = left.pop()
        if type(item) in _PLAIN:
            continue
        if isinstance(item, str):
            if _STAND_IN.fullmatch(item):
                return False
            continue
        if type(item) not in _CONTAINERS:
            return False
        if id(item) in seen:
            continue
        seen.add(id(item))
        assert isinstance(item, _CONTAINERS)
        left.extend(item)
        if isinstance(item, dict):
            left.extend(item.values())
    return True


def _open_pool(config: SandboxConfig) -> Monty:
    try:
        from pydantic_monty import Monty
    except ImportError as error:
        raise ConfigError(
            f"sandbox.backend = monty needs the package pydantic-monty {_VERSIONS}; here is {_installed()} ({error}): "
            'pip install "unmask[code]"'
        ) from error
    try:
        # A backstop in time for a worker that does not keep its own.
        pool = Monty(max_processes=2 * config.workers, request_timeout=config.timeout + 2)
        pool.__enter__()
    except (TypeError, AttributeError) as error:
        raise ConfigError(
            f"pydantic-monty {_installed()} has another interface than the versions that unmask knows, {_VERSIONS} ({error}): "
            'pip install "unmask[code]"'
        ) from error
    except (OSError, IndexError) as error:
        raise ConfigError(
            f"monty's worker program was not found ({type(error).__name__}: {error}). Reinstall pydantic-monty, or set the "
            "environment variable MONTY_BIN to the path of its `monty` program."
        ) from error
    return pool


def _installed() -> str:
    """The version of pydantic-monty, or that there is none."""
    try:
        return metadata.version("pydantic-monty")
    except metadata.PackageNotFoundError:
        return "none"


def _inner(error: Exception) -> BaseException:
    from pydantic_monty import MontyError

    if not isinstance(error, MontyError):
        return error
    with suppress(Exception):
        return error.exception()
    return error


def _has_attribute(text: str) -> bool:
    match = _NO_ATTRIBUTE.match(text)
    return bool(match) and hasattr(getattr(builtins, match[1], None), match[2])  # type: ignore[index]


def _parses(code: str) -> bool:
    """Whether CPython reads the text as a program."""
    if len(code) > 2**18:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(code, "<program>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, MemoryError, RecursionError, OverflowError):
        return False
    return True


def _line(text: str) -> str:
    return verdict("error", text).reason


def _discard(_stream: str, _text: str) -> None:
    """What programs print is nobody's concern."""

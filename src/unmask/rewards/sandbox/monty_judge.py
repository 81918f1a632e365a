"""Judgement of one job with monty in a worker: one session for the program, and one session for its
tests.

A call that a test makes passes through this process as plain data. Interpreters are kept for the
next job.
"""

from __future__ import annotations

import faulthandler
import math
import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from datetime import time as clock_time
from decimal import Decimal
from functools import lru_cache
from importlib import metadata
from typing import IO, TYPE_CHECKING, Any

from unmask.core.errors import ConfigError
from unmask.rewards.sandbox.base import SandboxJob, Status, Verdict, verdict
from unmask.rewards.sandbox.monty_lacks import Source, is_unsupported

if TYPE_CHECKING:
    from pydantic_monty import Monty, MontySession

GIVE_UP_AFTER = 2
"""Number of tests that may hang before all remaining tests count as hanging without a run."""
MAX_CALLS = 20_000
"""Maximum number of calls that the tests of one program may make to it."""
MAX_BYTES = 64 * 2**20
"""Maximum size in bytes of a value that crosses between program and tests."""
GRACE_SECONDS = 4.0
"""Seconds that one step may exceed its limit before this process ends itself."""
_VERSIONS = ">= 1.4, < 2"
_PLAIN = frozenset((bool, int, float, complex, bytes, type(None), Decimal, date, datetime, clock_time, timedelta))
_CONTAINERS = (list, tuple, dict, set, frozenset)
_STAND_IN = re.compile(
    r"<(?:function|class|module) .*>|<[\w.]+ object\b.*>"
    r"|(?:range|slice|re\.compile|dict_\w+)\(.*\)|[\[{(]\.\.\.[\]})]",
    re.DOTALL,
)
"""Texts that monty returns for values that it cannot pass on: functions, ranges, views, a list
inside itself."""


def judge(
    code: str,
    tests: Sequence[str],
    names: Sequence[str],
    setup: str,
    limits: tuple[float, float, int, float],
    is_worker: bool = False,
) -> list[tuple[str, str, bool]] | str:
    """Return the verdicts of a job's tests, or the reason why monty cannot be used here.

    Args:
        code: source of the program.
        tests: statements, each of which is a test.
        names: names that the tests take from the program.
        setup: statements that run before the tests.
        limits: seconds for one step, seconds for all steps, megabytes of a program's heap, and
            seconds during which tests may start.
        is_worker: True if the process exists only for this purpose. It then closes its error
            output, where an interpreter that dies would print its trace.
    """
    if is_worker:
        _become_worker()
    step, total, memory_mb, left = limits
    now = time.monotonic()
    watchdog = Watchdog(step)
    try:
        attempts = Attempts(
            SandboxJob(code, tuple(tests), tuple(names), setup), _workers(step), watchdog, step, memory_mb
        )
        return [(v.status, v.reason, v.may_differ) for v in attempts.verdicts(now + total, now + left)]
    except ConfigError as error:
        return str(error)
    finally:
        watchdog.close()


class Attempts:
    """One job, which is started again after each test that ended its program's session."""

    def __init__(self, job: SandboxJob, workers: Monty, watchdog: Watchdog, step: float, memory_mb: int) -> None:
        self.job, self.workers, self.watchdog = job, workers, watchdog
        self.limits = {
            "max_feed_duration_secs": step,
            "max_memory": memory_mb * 2**20,
            "max_suspensions": MAX_CALLS,
        }
        self.program = Source(job.code, "\n" + " ".join(job.names))

    def verdicts(self, deadline: float, end: float) -> list[Verdict]:
        """Return a verdict for each test that started before `end` and ran before the deadline."""
        verdicts: list[Verdict] = []
        hung = 0
        while len(verdicts) < len(self.job.tests) and (not verdicts or time.monotonic() <= end):
            if hung == GIVE_UP_AFTER or time.monotonic() > deadline:
                reason = "the program hung in earlier tests" if hung == GIVE_UP_AFTER else "no time left"
                verdicts += [verdict("timed_out", reason, True)] * (len(self.job.tests) - len(verdicts))
                break
            verdicts += self._attempt(len(verdicts), min(deadline, end))
            hung += verdicts[-1].status == "timed_out"
        return verdicts

    def _attempt(self, first: int, deadline: float) -> list[Verdict]:
        """Return the verdicts from test `first` to the test that ended a session, or to the last
        test."""
        job, rest = self.job, len(self.job.tests) - first
        with self._session() as program, self._session() as tests:
            self.watchdog.step_begins()
            if loaded := _run(program, job.code, self.program):
                status: Status = "error" if loaded.status == "failed" else loaded.status
                return [replace(loaded.verdict, status=status)] * rest
            calls = Calls(program, self.program, self.watchdog, deadline)
            lookup = {f"program_{name}": calls.of(name) for name in job.names}
            # Assign the names, because monty looks up only unknown names and a program may define
            # its own `sum`.
            taken = "".join(f"{name} = program_{name}\n" for name in job.names)
            prepared = _run(tests, taken, Source(taken), lookup) or _run(tests, job.setup, Source(job.setup), lookup)
            if prepared:
                return [verdict("unsupported", f"the tests cannot be prepared: {prepared.reason}", True)] * rest
            verdicts: list[Verdict] = []
            for test in job.tests[first:]:
                if verdicts and time.monotonic() > deadline:
                    break
                verdicts.append(self._test(tests, test, calls, lookup))
                if verdicts[-1].status == "timed_out" or calls.is_over:
                    break
            return verdicts

    def _test(self, tests: MontySession, test: str, calls: Calls, lookup: dict[str, Any]) -> Verdict:
        """Run one test; `calls.is_over` is then True if it ended a session."""
        calls.fault = None
        self.watchdog.step_begins()
        source = Source(test, "\n".join(("", self.job.code, self.job.setup, *self.job.names)))
        outcome = _run(tests, test, source, lookup, calls.errors)
        # The end of the program's session counts even if the test continued.
        if calls.fault:
            return calls.fault
        if outcome is None:
            return verdict("passed")
        calls.is_over = calls.is_over or outcome.is_over
        if outcome.status == "failed":
            return replace(outcome.verdict, may_differ=self.program.may_differ or source.may_differ)
        return outcome.verdict

    def _session(self) -> MontySession:
        return self.workers.checkout(
            limits=self.limits,  # type: ignore[arg-type]
            assert_message_annotations=False,
            os_policy={"sleep": "zero"},
        )


@dataclass(frozen=True, slots=True)
class MontyVerdict(Verdict):
    """Verdict on code that did not complete in a session."""

    is_over: bool = False
    """True if the session ended with this failure."""

    @property
    def verdict(self) -> Verdict:
        """Return the verdict without `is_over`."""
        return Verdict(self.status, self.reason, self.may_differ)


class Calls:
    """The program's functions as the tests call them."""

    def __init__(self, program: MontySession, source: Source, watchdog: Watchdog, deadline: float) -> None:
        self.program = program
        self.source = source
        self.watchdog = watchdog
        self.deadline = deadline
        """Time after which no more calls are made. Monty's own limit applies to each call, not to a
        test that waits for several calls."""
        self.fault: Verdict | None = None
        """Fault of the program in this test that makes the test fail in any case: the program hung,
        crashed, or needs more than monty supports."""
        self.is_over = False
        """True if a session has ended."""
        self.errors: set[str] = set()
        """Texts of exceptions that the program raised by its own fault, and that a test may pass
        on."""

    def of(self, name: str) -> Callable[..., Any]:
        """Return a function that calls the program's function `name`."""

        def call(*args: Any, **kwargs: Any) -> Any:
            return self._call(name, args, kwargs)

        return call

    def _call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.fault or self.is_over:
            raise RuntimeError("the program has ended")
        if time.monotonic() > self.deadline:
            raise self._refuse("timed_out", "no time left for its calls")
        self.watchdog.step_begins()
        inputs = {"given_args": list(args), "given_kwargs": kwargs}
        if why := unfit(inputs):
            raise self._refuse("unsupported", f"a test passes {name} {why}")
        feed = f"[{name}(*given_args, **given_kwargs), given_args]"
        try:
            value, after = self.program.feed_run(feed, inputs=inputs, print_callback=_discard)
        except Exception as error:
            raise self._raised(error) from None
        if why := unfit(value):
            raise self._refuse("error" if "bytes" in why else "unsupported", f"{name} returns {why}")
        if value is None and after != inputs["given_args"]:
            # The test has its own copies, which a function that changes its arguments in place
            # cannot reach.
            self._refuse("unsupported", f"{name} changes its arguments in place")
        self.watchdog.step_begins()
        return value

    def _refuse(self, status: Status, reason: str) -> RuntimeError:
        self.fault = verdict(status, reason, may_differ=True)
        return RuntimeError(reason)

    def _raised(self, error: Exception) -> BaseException:
        """Return the exception that the test sees if a call did not return."""
        outcome, inner = _explain(error, self.source), _inner(error)
        if outcome.status in ("timed_out", "unsupported") or outcome.is_over:
            self.fault, self.is_over = outcome.verdict, outcome.is_over
            return RuntimeError(outcome.reason)
        self.errors.add(str(inner))
        return inner if isinstance(inner, Exception) else RuntimeError(str(inner))


class Watchdog:
    """Timer that ends this process if one step takes far too long.

    Values are built and compared in C while the interpreter's lock is held, so no signal handler
    and no Python thread can run. The watchdog is a C thread that needs no lock.
    """

    def __init__(self, step: float) -> None:
        self.seconds = step + GRACE_SECONDS
        self.since = -math.inf

    def step_begins(self) -> None:
        """Restart the clock, at most once a second, because each restart starts a thread."""
        if time.monotonic() > self.since + 1.0:
            self.since = time.monotonic()
            faulthandler.dump_traceback_later(self.seconds, exit=True, file=_nowhere())

    def close(self) -> None:
        """Stop the clock."""
        self.since = -math.inf
        faulthandler.cancel_dump_traceback_later()


@lru_cache(maxsize=1)
def _become_worker() -> None:
    os.dup2(_nowhere().fileno(), 2)


@lru_cache(maxsize=1)
def _nowhere() -> IO[str]:
    return open(os.devnull, "w")


def _run(
    session: MontySession,
    code: str,
    source: Source,
    lookup: dict[str, Any] | None = None,
    own: set[str] | frozenset[str] = frozenset(),
) -> MontyVerdict | None:
    """Run code in a session; return None if it completed.

    `own` holds the texts of errors that are the program's fault.
    """
    try:
        session.feed_run(code, external_lookup=lookup or {}, print_callback=_discard)
    except Exception as error:
        return _explain(error, source, own)
    return None


def _explain(error: Exception, source: Source, own: set[str] | frozenset[str] = frozenset()) -> MontyVerdict:
    """Return the outcome for an exception from monty."""
    from pydantic_monty import MontyCrashedError, MontyError

    if isinstance(error, MontyCrashedError):
        reason = _line(f"the program's process ended: {error}")
        return MontyVerdict("timed_out" if error.timed_out else "error", reason, may_differ=True, is_over=True)
    if not isinstance(error, MontyError):
        return MontyVerdict("error", _line(f"{type(error).__name__}: {error}"), may_differ=True)
    inner = _inner(error)
    text = _line(f"{type(inner).__name__}: {inner}")
    if isinstance(inner, TimeoutError) and "time limit exceeded" in str(inner):
        return MontyVerdict("timed_out", text, may_differ=True, is_over=True)
    if str(inner) not in own and is_unsupported(inner, source):
        return MontyVerdict("unsupported", text, may_differ=True)
    if isinstance(inner, AssertionError):
        return MontyVerdict("failed", text)
    is_over = isinstance(inner, MemoryError) and "terminated" in str(inner)
    return MontyVerdict("error", text, not source.is_at_fault(inner), is_over)


def unfit(value: object) -> str:
    """Return the reason why a value cannot cross between program and tests, or "" if it can.

    The value must be plain data throughout and not too large. Each container is checked once,
    however many paths lead to it. Texts count once for each path, as in a message.
    """
    seen: set[int] = set()
    left, size = [value], 0
    while left:
        item = left.pop()
        if isinstance(item, str | bytes):
            size += len(item)
            if size > MAX_BYTES:
                return f"more than {MAX_BYTES} bytes of text"
            if isinstance(item, str) and _STAND_IN.fullmatch(item):
                return "something other than plain data"
        elif type(item) in _PLAIN:
            continue
        elif type(item) not in _CONTAINERS:
            return "something other than plain data"
        elif id(item) not in seen:
            seen.add(id(item))
            assert isinstance(item, _CONTAINERS)
            left.extend(item)
            if isinstance(item, dict):
                left.extend(item.values())
    return ""


@lru_cache(maxsize=1)
def _workers(step: float) -> Monty:
    """Return two interpreters, for one job at a time.

    Raises:
        ConfigError: monty is missing, has an unknown version, or lacks its program.
    """
    try:
        from pydantic_monty import Monty
    except ImportError as error:
        raise ConfigError(
            f"sandbox.backend = monty needs the package pydantic-monty {_VERSIONS}, but {_installed()} is installed "
            f'({error}). Run: pip install "unmask[code]"'
        ) from error
    try:
        # A second time limit, for an interpreter that does not keep its own.
        pool = Monty(max_processes=2, request_timeout=step + 2)
        pool.__enter__()
    except (TypeError, AttributeError) as error:
        raise ConfigError(
            f"pydantic-monty {_installed()} has a different interface from the supported versions, {_VERSIONS} ({error}). "
            'Run: pip install "unmask[code]"'
        ) from error
    except (OSError, IndexError) as error:
        raise ConfigError(
            f"monty's worker program was not found ({type(error).__name__}: {error}). Reinstall pydantic-monty, or set the "
            "environment variable MONTY_BIN to the path of its `monty` program."
        ) from error
    return pool


def _installed() -> str:
    """Return the version of pydantic-monty, or that it is missing."""
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


def _line(text: str) -> str:
    return verdict("error", text).reason


def _discard(_stream: str, _text: str) -> None:
    """Discard what programs print."""

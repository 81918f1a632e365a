"""Trusted process, which runs the tests, sends their calls to the program, and reports results.

This process reports on its own pipe, which the program's process does not have. A test fails if the
program's process died, hung or sent invalid messages during it, even if the test's own `except`
caught the error.
"""

from __future__ import annotations

import builtins
import contextlib
import json
import os
import signal
import sys
import types
from collections.abc import Callable
from typing import Any

from .program import keep_only, set_limits
from .remote import Remote
from .wire import Channel, WireError, decode, encode

_NONSENSE = (WireError, KeyError, IndexError, TypeError, ValueError, RecursionError, MemoryError)
"""Exceptions that reading a hostile message can raise."""


CHANGING = frozenset(("call", "setattr", "setitem", "delitem", "enter", "leave"))
"""Operations after which an object of the program may have another length."""


class LostError(BaseException):
    """Error that says that the program's process cannot be used any more.

    This class does not derive from Exception, so tests rarely catch it. If a test does,
    `Judge.lost` still records the error."""


class Judge:
    """The program as the tests see it."""

    def __init__(self, channel: Channel, seconds: float) -> None:
        self.channel = channel
        self.seconds = seconds
        self.lost: tuple[str, str] | None = None
        """Status and reason, once the program's process cannot be used any more."""
        self.missing = ""
        """Description of what this test lacks: a missing module, or a way to send an object to the
        program."""
        self.functions: list[Callable[..., Any]] = []
        """Functions of the tests that were passed to the program."""
        self.error_classes: dict[str, type[BaseException]] = {}
        self.lengths: dict[int, int] = {}
        """Length that each object of the program reported, by the number of the object. Any
        operation that may change a length clears this dict."""
        self.counts: dict[int, int] = {}
        """Number of items that each object of the program has yielded, by the number of the object.
        This dict is cleared together with `lengths`."""

    def ask(self, operation: str, *arguments: Any) -> Any:
        """Send a request to the program's process and return the value; raise what it raised."""
        tree = encode(list(arguments), self._give)
        if operation in CHANGING:
            self.lengths.clear()
            self.counts.clear()
        try:
            self.channel.send({"do": operation, "with": tree})
            reply = self._reply()
            error = self._error(reply["raised"]) if "raised" in reply else None
            value = decode(reply.get("value"), self._take)
            # A function may change its arguments or return a value, but not both. Otherwise, it
            # could change the test's data to match its value.
            is_in_place = operation == "call" and value is None and error is None
            changed = decode(reply["changed"], self._take) if is_in_place and "changed" in reply else None
        except _NONSENSE as fault:
            raise self.give_up("error", f"the program ended: {fault}") from None
        if isinstance(error, StopIteration) and operation != "next":
            # StopIteration would end the test's own map(), zip() or all() as if there were nothing
            # left to check.
            raise RuntimeError(f"StopIteration: {error}")
        if error is not None:
            raise error
        if changed is not None:
            _write_back(arguments[1], changed)
        return value

    def run(self, work: Callable[[], object], grace: float = 0.0) -> tuple[str, str]:
        """Run a function for at most `seconds` plus `grace`; return status and reason."""
        self.missing = ""
        # A second alarm ends the whole process if a test catches the first one.
        signal.setitimer(signal.ITIMER_REAL, self.seconds + grace, 0.5)
        try:
            outcome = _outcome(work)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except LostError:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if self.lost:
            return self.lost
        return ("unsupported", self.missing) if self.missing and outcome[0] != "passed" else outcome

    def load(self) -> None:
        """Wait until the program's process has started, and then until the program has run."""
        try:
            reply = self.channel.receive()
            error = self._error(reply["raised"]) if "raised" in reply else None
        except _NONSENSE as fault:
            raise self.give_up("error", f"the program ended: {fault}") from None
        if error is not None:
            raise RuntimeError(f"{type(error).__name__}: {error}")

    def set_up(self, code: str, names: list[str], namespace: dict[str, Any]) -> None:
        """Define the program's names for the tests and in a module `solution`, and run the
        setup."""
        module = types.ModuleType("solution")
        module.__getattr__ = self._member  # type: ignore[method-assign]
        sys.modules["solution"] = module
        for name in names:
            # A name that the program lacks is an error only in a test that uses it.
            with contextlib.suppress(AttributeError):
                namespace[name] = self._member(name)
        module.__dict__.update({name: namespace[name] for name in names if name in namespace})
        exec(compile(code, "<setup>", "exec"), namespace)

    def _member(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            # With `__all__`, `from solution import *` could replace the tests' own `all` or `abs`.
            raise AttributeError(f"the tests cannot read {name} of the program")
        try:
            return self.ask("name", name)
        except KeyError:
            raise AttributeError(f"the program defines no {name}") from None

    def give_up(self, status: str, reason: str) -> LostError:
        """Record that the program's process cannot be used any more; the first reason counts."""
        self.lost = self.lost or (status, reason)
        return LostError(reason)

    def _reply(self) -> dict[str, Any]:
        """Return the next reply, and answer the program's calls of the tests' functions before
        it."""
        while "call" in (message := self.channel.receive()):
            try:
                args, kwargs = decode(message["with"], self._take)
                value = self.functions[message["call"]](*args, **kwargs)
                answer = {"value": encode(value, self._give)}
            except Exception as error:
                answer = {"raised": f"{type(error).__name__}: {error}"[:1000]}
            self.channel.send(answer)
        return message

    def _give(self, value: Any) -> Any:
        if isinstance(value, Remote):
            return {"id": object.__getattribute__(value, "_number")}
        if callable(value):
            self.functions.append(value)
            return {"function": len(self.functions) - 1}
        self.missing = f"a test passes an object of class {type(value).__name__}, which cannot be sent to the program"
        raise TypeError(self.missing)

    def _take(self, handle: Any) -> Any:
        if handle["bases"]:
            return self._error_class([str(name) for name in handle["bases"]])
        return Remote(self, int(handle["id"]))

    def _error(self, raised: Any) -> BaseException:
        """Return an exception of the program as one of this process with the same name."""
        if raised["unsupported"]:
            self.missing = str(raised["text"])
        kind = self._error_class([str(name) for name in raised["bases"]])
        try:
            return kind(str(raised["text"]))
        except TypeError:  # UnicodeDecodeError and similar classes need more than a text.
            return RuntimeError(f"{kind.__name__}: {raised['text']}")

    def _error_class(self, bases: list[str]) -> type[BaseException]:
        """Return Python's exception class of that name, or a new class under a base that Python
        has."""
        name, *rest = bases or ["Exception"]
        own = getattr(builtins, name, None)
        if isinstance(own, type) and issubclass(own, BaseException):
            return own
        if name not in self.error_classes:
            parent = self._error_class(rest[:20])
            self.error_classes[name] = type(name, (parent,), {})
        return self.error_classes[name]


def _write_back(arguments: list[Any], changed: Any) -> None:
    """Apply changes that a function without return value made to lists, dicts and sets."""
    for old, new in zip(arguments, changed, strict=False):
        if type(old) is not type(new):
            continue
        if isinstance(old, list | bytearray):
            old[:] = new
        elif isinstance(old, dict | set):
            old.clear()
            old.update(new)


def _outcome(work: Callable[[], object]) -> tuple[str, str]:
    try:
        work()
    except LostError:
        raise
    except AssertionError as error:
        return "failed", f"AssertionError: {_text(error)}"
    except BaseException as error:
        return "error", f"{type(error).__name__}: {_text(error)}"
    return "passed", ""


def _text(error: BaseException) -> str:
    """Return the text of an exception.

    The message of an assertion may be an object that runs the program's code.
    """
    try:
        return str(error)
    except LostError:
        raise
    except BaseException:
        return "a message without a text"


def run_test(function: Callable[..., Any]) -> None:
    """Call a test function, once for each set of arguments from pytest.mark.parametrize."""
    calls: list[dict[str, Any]] = [{}]
    for mark in getattr(function, "pytestmark", []):
        if mark.name != "parametrize":
            continue
        names, rows = mark.args[:2]
        names = [name.strip() for name in names.split(",")] if isinstance(names, str) else names
        sets = [dict(zip(names, _values(row, len(names)), strict=True)) for row in rows]
        calls = [call | arguments for call in calls for arguments in sets]
    for call in calls:
        function(**call)


def _values(row: Any, count: int) -> Any:
    """Return the values of a parametrize row: pytest.param's, the tuple, or the single value."""
    if type(row).__name__ == "ParameterSet":
        return row.values
    return (row,) if count == 1 else row


def main(reader: int, writer: int) -> None:
    """Read the tests from standard input, run them, and report each result until the program is
    lost."""
    settings = json.load(sys.stdin)
    report = os.dup(1)
    keep_only(report, reader, writer)
    sys.path.extend(settings["path"])
    set_limits(settings["limits"])
    judge = Judge(Channel(reader, writer), settings["seconds"])
    kind = "load"

    def say(status: str, reason: str) -> None:
        os.write(report, json.dumps([kind, status, reason[:2000]]).encode() + b"\n")

    def ring(_number: int, _frame: object) -> None:
        if judge.lost:
            say(*judge.lost)
            os._exit(0)
        raise judge.give_up("timed_out", f"more than {judge.seconds:g} s")

    signal.signal(signal.SIGALRM, ring)
    namespace: dict[str, Any] = {"__name__": "tests", "run_test": run_test}
    outcome = judge.run(judge.load, settings["grace"])
    if outcome[0] == "passed":
        outcome = judge.run(judge.load)
    if outcome[0] == "passed":
        kind = "setup"
        outcome = judge.run(lambda: judge.set_up(settings["setup"], settings["names"], namespace), settings["grace"])
    if outcome[0] != "passed":
        say(*outcome)
        return
    kind = "test"
    for test in settings["tests"]:
        say(*judge.run(lambda test=test: exec(compile(test, "<test>", "exec"), namespace)))  # type: ignore[misc]
        if judge.lost:
            return

"""Untrusted process, which runs the program's source and then serves the judge.

The judge is the process that runs the tests. The program controls everything in its own process.
"""

from __future__ import annotations

import contextlib
import json
import operator
import os
import resource
import sys
import types
from collections.abc import Callable
from typing import Any

from .remote import BINARY
from .wire import Channel, WireError, decode, encode

_MUTABLE = (list, dict, set, bytearray)

OPERATIONS: dict[str, Callable[..., Any]] = {
    "getattr": getattr,
    "setattr": setattr,
    "call": lambda function, args, kwargs: function(*args, **kwargs),
    "isinstance": isinstance,
    "enter": lambda manager: type(manager).__enter__(manager),
    "leave": lambda manager: type(manager).__exit__(manager, None, None, None),
    **{function.__name__: function for function in (len, iter, next, str, repr, bool, hash, reversed)},
    **{name: getattr(operator, name) for name in ("eq", "ne", *BINARY, "getitem", "setitem", "delitem", "contains")},
}
"""Operations that the judge may request."""


class Program:
    """Namespace of the program, and the objects that the judge refers to by number."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.objects: list[Any] = []
        self.module = types.ModuleType("solution")

    def load(self, code: str) -> None:
        """Run the program's source as the module `solution`."""
        sys.modules["solution"] = self.module
        exec(compile(code, "<program>", "exec"), self.module.__dict__)

    def serve(self) -> None:
        """Answer the judge until it disconnects."""
        while True:
            self.answer(self.channel.receive())

    def answer(self, message: dict[str, Any]) -> None:
        """Perform one request of the judge and send the result."""
        try:
            reply = self.perform(message["do"], message["with"])
        except WireError:
            raise
        except BaseException as error:
            reply = {"raised": describe(error)}
        try:
            self.channel.send(reply)
        except RecursionError as error:
            self.channel.send({"raised": describe(error)})

    def perform(self, name: str, tree: Any) -> dict[str, Any]:
        """Return the reply to a request: its value, or the arguments that the call changed."""
        arguments = decode(tree, self.take)
        if name == "name":
            return {"value": self.give_value(self.module.__dict__[arguments[0]])}
        value = OPERATIONS[name](*arguments)
        if name == "call" and value is None and any(type(item) in _MUTABLE for item in arguments[1]):
            return {"value": None, "changed": self.give_value(arguments[1])}
        return {"value": self.give_value(value)}

    def call_back(self, number: int, args: Any, kwargs: Any) -> Any:
        """Call a function that the judge passed as an argument."""
        self.channel.send({"call": number, "with": self.give_value([list(args), kwargs])})
        while "do" in (message := self.channel.receive()):
            self.answer(message)
        if "raised" in message:
            raise RuntimeError(message["raised"])
        return decode(message["value"], self.take)

    def give_value(self, value: Any) -> Any:
        return encode(value, self.give)

    def give(self, value: Any) -> Any:
        """Return a number for an object that stays in this process, with the lineage of an
        exception class."""
        self.objects.append(value)
        is_error = isinstance(value, type) and issubclass(value, BaseException)
        return {"id": len(self.objects) - 1, "bases": lineage(value) if is_error else None}

    def take(self, handle: Any) -> Any:
        if "function" in handle:
            return lambda *args, **kwargs: self.call_back(handle["function"], args, kwargs)
        return self.objects[handle["id"]]


def lineage(kind: type) -> list[str]:
    """Return the names of a class and its bases, nearest first, without `object`."""
    return [base.__name__ for base in kind.__mro__[:-1]]


def describe(error: BaseException) -> dict[str, Any]:
    """Return an exception as data.

    The text of the exception comes from the program's own code, which may raise too.
    """
    try:
        text = str(error)[:1000]
    except BaseException:
        text = ""
    missing = isinstance(error, ModuleNotFoundError) and str(error.name).split(".")[0] not in sys.stdlib_module_names
    return {"bases": lineage(type(error)), "text": text, "unsupported": missing}


def set_limits(limits: dict[str, int]) -> None:
    """Set hard limits, which are given by their names in the module `resource`.

    An unprivileged process cannot raise them again.
    """
    for name, limit in limits.items():
        resource.setrlimit(getattr(resource, name), (limit, limit))


def keep_only(*filenos: int) -> None:
    """Close every open file except these, and connect standard streams to the sandbox's null
    device.

    Every file from outside, even a null device, still belongs to the user who started the sandbox.
    """
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fileno in (0, 1, 2):
        os.dup2(nowhere, fileno)
    for fileno in range(3, 256):
        if fileno not in filenos:
            with contextlib.suppress(OSError):
                os.close(fileno)


def main(reader: int, writer: int) -> None:
    """Read the program from standard input, run it, and serve the judge."""
    settings = json.load(sys.stdin)
    keep_only(reader, writer)
    channel = Channel(reader, writer)
    sys.path.extend(settings["path"])
    set_limits(settings["limits"])
    program = Program(channel)
    # The time limit starts here, because a busy machine may take long to start an interpreter.
    channel.send({"value": None})
    try:
        program.load(settings["code"])
    except BaseException as error:
        channel.send({"raised": describe(error)})
        return
    channel.send({"value": None})
    program.serve()

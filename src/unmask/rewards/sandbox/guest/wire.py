"""Exchange of plain data over two pipes between the judge (the tests) and the untrusted program.

A message consists of its length and a JSON text. Values of exact, plain types cross as copies. Any
other value crosses as a number that only its owner can look up. Decoding builds only data, even
from a hostile message.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections import deque
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

MAX_MESSAGE = 16 * 2**20
"""Maximum size of one message in bytes. The limit bounds the memory that a hostile sender can make
the receiver use."""
_SMALL = 2**53

_CONTAINERS: dict[str, type[tuple[Any, ...] | set[Any] | frozenset[Any] | deque[Any]]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": deque,
}


class WireError(Exception):
    """Error that says that the other process is gone, or sent an invalid message."""


class Channel:
    """One end of the connection, which sends and receives whole messages.

    A channel uses two pipes rather than a socket, because a socket belongs to the host's network
    and reveals facts about that network.
    """

    def __init__(self, reader: int, writer: int) -> None:
        self._reader, self._writer = reader, writer

    def send(self, message: dict[str, Any]) -> None:
        """Send one message.

        Raises:
            WireError: the message is too large, or the other process is gone.
        """
        data = json.dumps(message, separators=(",", ":")).encode()
        if len(data) > MAX_MESSAGE:
            raise WireError(f"a value of {len(data)} bytes is more than {MAX_MESSAGE}")
        left = memoryview(struct.pack(">I", len(data)) + data)
        try:
            while left:
                left = left[os.write(self._writer, left) :]
        except OSError as error:
            raise WireError("the other side is gone") from error

    def receive(self) -> dict[str, Any]:
        """Wait for one message.

        Raises:
            WireError: the other process is gone, or sent something that is not a message.
        """
        (length,) = struct.unpack(">I", self._exactly(4))
        if length > MAX_MESSAGE:
            raise WireError(f"a message of {length} bytes is more than {MAX_MESSAGE}")
        try:
            message = json.loads(self._exactly(length))
        except (ValueError, RecursionError) as error:
            raise WireError("the other side sent no message") from error
        if not isinstance(message, dict):
            raise WireError("the other side sent no message")
        return message

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            try:
                part = os.read(self._reader, min(size - len(data), 2**16))
            except OSError as error:
                raise WireError("the other side is gone") from error
            if not part:
                raise WireError("the other side is gone")
            data += part
        return bytes(data)


def encode(value: Any, give: Callable[[Any], Any]) -> Any:
    """Return a value as a JSON tree.

    A value in it that is not plain data becomes {"handle": give(value)}.
    """
    kind = type(value)
    if value is None or kind in (bool, str):
        return value
    if kind is int:
        return value if -_SMALL < value < _SMALL else {"int": hex(value)}
    if kind is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    # A subclass of a container (Counter, defaultdict, a named tuple) crosses as the container,
    # because only its contents count.
    if isinstance(value, list):
        return [encode(item, give) for item in value]
    if isinstance(value, dict):
        return {"dict": [[encode(key, give), encode(item, give)] for key, item in value.items()]}
    for name, container in _CONTAINERS.items():
        if isinstance(value, container):
            return {name: [encode(item, give) for item in value]}
    if kind in (bytes, bytearray):
        return {kind.__name__: value.hex()}
    if kind is complex:
        return {"complex": [repr(value.real), repr(value.imag)]}
    if kind is Fraction:
        return {"fraction": [hex(value.numerator), hex(value.denominator)]}
    if kind is Decimal:
        return {"decimal": str(value)}
    if kind in (datetime, date, time) and getattr(value, "tzinfo", None) is None:
        return {kind.__name__: value.isoformat()}
    if kind is timedelta:
        return {"timedelta": [value.days, value.seconds, value.microseconds]}
    if kind is range:
        return {"range": [hex(value.start), hex(value.stop), hex(value.step)]}
    return {"handle": give(value)}


def decode(tree: Any, take: Callable[[Any], Any]) -> Any:
    """Return the value of a JSON tree, in which each handle becomes `take(handle)`.

    Raises:
        WireError: `encode` cannot have made the tree.
    """
    if isinstance(tree, list):
        return [decode(item, take) for item in tree]
    if not isinstance(tree, dict):
        return tree
    try:
        ((name, body),) = tree.items()
        if name == "dict":
            return {decode(key, take): decode(item, take) for key, item in body}
        if name in _CONTAINERS:
            return _CONTAINERS[name](decode(item, take) for item in body)
        if name == "handle":
            return take(body)
        return _SCALARS[name](body)
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
        raise WireError("the other side sent no value") from error


_SCALARS: dict[str, Callable[[Any], Any]] = {
    "int": lambda body: int(body, 16),
    "float": float,
    "complex": lambda body: complex(float(body[0]), float(body[1])),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "fraction": lambda body: Fraction(int(body[0], 16), int(body[1], 16)),
    "decimal": Decimal,
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "timedelta": lambda body: timedelta(*body),
    "range": lambda body: range(*(int(part, 16) for part in body)),
}

"""The wire between judge and program: plain values cross as copies; other input does no harm."""

from __future__ import annotations

import json
import math
import os
import struct
import threading
from collections import Counter, OrderedDict, deque, namedtuple
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.rewards.sandbox.guest.wire import MAX_MESSAGE, Channel, WireError, decode, encode

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.fractions(),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.sets(st.integers())
    ),
    max_leaves=20,
)


def no_handles(value: Any) -> Any:
    raise AssertionError(f"{value!r} is no plain data")


def there_and_back(value: Any) -> Any:
    return decode(json.loads(json.dumps(encode(value, no_handles))), no_handles)


def channels() -> tuple[Channel, Channel]:
    """Return the two ends of a connection."""
    to_second, to_first = os.pipe(), os.pipe()
    return Channel(to_first[0], to_second[1]), Channel(to_second[0], to_first[1])


@given(PLAIN)
@settings(max_examples=60, deadline=None)
def test_plain_values_come_back_equal_and_of_their_type(value: Any) -> None:
    assert there_and_back(value) == value
    assert type(there_and_back(value)) is type(value)


@pytest.mark.parametrize(
    "value",
    [2**53, -(2**53), 10**400, math.inf, -math.inf, -0.0, 1 - 2j, bytearray(b"a"), deque([1]), frozenset({1}), "\ud800",
     Decimal("1.50"), Fraction(-1, 3), datetime(2024, 2, 29, 1, 2, 3, 4), date(2024, 1, 1), time(1, 2), timedelta(-1, 2, 3),
     range(1, 10, 3)],
)  # fmt: skip
def test_values_of_the_standard_library_come_back(value: Any) -> None:
    assert repr(there_and_back(value)) == repr(value)


def test_not_a_number_comes_back() -> None:
    assert math.isnan(there_and_back(math.nan))


def test_a_subclass_of_a_container_crosses_as_the_container() -> None:
    pair = namedtuple("pair", "a b")
    assert there_and_back([Counter("aab"), OrderedDict(x=1), pair(1, 2)]) == [{"a": 2, "b": 1}, {"x": 1}, (1, 2)]
    assert type(there_and_back(Counter())) is dict


def test_a_subclass_of_a_scalar_does_not_cross_as_one() -> None:
    """A class that claims to equal everything."""

    class Number(int):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    with pytest.raises(AssertionError, match="no plain data"):
        encode(Number(1), no_handles)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=10
    )
)
@pytest.mark.slow
def test_any_json_is_a_value_or_a_wire_error(tree: Any) -> None:
    try:
        value = decode(tree, lambda body: ("handle", str(body)))
    except WireError:
        return
    assert repr(there_and_back(value)) == repr(value)


@pytest.mark.parametrize(
    "tree",
    [{}, {"a": 1, "b": 2}, {"set": [[1]]}, {"dict": [1]}, {"int": "x"}, {"int": 1}, {"range": ["0x1", "0x2", "0x0"]},
     {"fraction": ["0x1", "0x0"]}, {"decimal": "x"}, {"date": "today"}, {"float": []}, {"os.system": "true"}, {"bytes": "zz"}],
)  # fmt: skip
def test_malformed_values_are_wire_errors(tree: Any) -> None:
    with pytest.raises(WireError):
        decode(tree, no_handles)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00", struct.pack(">I", 10) + b"short", struct.pack(">I", 2) + b"{{", struct.pack(">I", 2) + b"[]",
     struct.pack(">I", MAX_MESSAGE + 1) + b"x", struct.pack(">I", 100_000) + b"[" * 100_000, b"\xff" * 100],
)  # fmt: skip
def test_whatever_else_arrives_is_a_wire_error(data: bytes) -> None:
    reader, writer = os.pipe()
    sender = threading.Thread(target=lambda: (os.write(writer, data), os.close(writer)))
    sender.start()
    with pytest.raises(WireError):
        Channel(reader, -1).receive()
    os.close(reader)
    sender.join()


def test_messages_arrive_whole_and_in_order() -> None:
    channel, other = channels()
    for number in range(3):
        channel.send({"number": number, "text": "x" * 1000 * number})
    assert [other.receive()["number"] for _ in range(3)] == [0, 1, 2]


def test_a_message_that_is_longer_than_the_pipe_arrives_whole() -> None:
    channel, other = channels()
    text = "x" * 2**20
    sender = threading.Thread(target=lambda: channel.send({"text": text}))
    sender.start()
    assert other.receive() == {"text": text}
    sender.join()


def test_a_message_that_is_too_large_is_not_sent() -> None:
    channel, _ = channels()
    with pytest.raises(WireError, match="more than"):
        channel.send({"text": "x" * MAX_MESSAGE})

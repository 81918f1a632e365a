"""Stand-ins in the tests for the functions and objects of a program.

A `Remote` does everything by asking the program's process. It compares and computes only with other
remotes. It is unequal to plain data, so an object that claims to equal everything equals nothing
that a test expects. It refuses attribute names of a protocol, such as `__array_interface__`.
Otherwise, a library would trust what the program says about the type of an object, or would read
memory at an address that the program chose. The length that it reports is compared with the number
of items that it yields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

BINARY = ("lt", "le", "gt", "ge", "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and_", "or_", "xor")
"""Binary operations between two remotes, by their names in `operator`."""


_NAMES = frozenset(("__name__", "__qualname__"))
"""Names with double underscores that tests may read: they are text and belong to no protocol."""


class Peer(Protocol):
    """An object that can send requests to the program."""

    lengths: dict[int, int]
    counts: dict[int, int]
    """Reported length of each object, and number of items that each object has yielded, by object
    number. Any call that may change an object clears them."""

    def ask(self, operation: str, *arguments: Any) -> Any:
        """Return the program's reply as a value, or raise the exception that it raised."""
        ...


class Remote:
    """Stand-in for an object in the program's process."""

    def __init__(self, peer: Peer, number: int) -> None:
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_number", number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._peer.ask("call", self, list(args), kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__") and name not in _NAMES:
            raise AttributeError(f"the tests cannot read {name} of an object of the program")
        return self._peer.ask("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._peer.ask("setattr", self, name, value)

    def __iter__(self) -> Iterator[Any]:
        return Items(self, self._peer.ask("iter", self))

    def __next__(self) -> Any:
        return self._peer.ask("next", self)

    def __len__(self) -> int:
        lengths = self._peer.lengths
        if self._number not in lengths:
            lengths[self._number] = self._peer.ask("len", self)
            _compare(self._peer, self._number)
        return lengths[self._number]  # type: ignore[no-any-return]

    def __bool__(self) -> bool:
        return self._peer.ask("bool", self) is True

    def __str__(self) -> str:
        return self._peer.ask("str", self)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return self._peer.ask("repr", self)  # type: ignore[no-any-return]

    def __hash__(self) -> int:
        return self._peer.ask("hash", self)  # type: ignore[no-any-return]

    def __contains__(self, item: Any) -> bool:
        return self._peer.ask("contains", self, item) is True

    def __getitem__(self, key: Any) -> Any:
        return self._peer.ask("getitem", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._peer.ask("setitem", self, key, value)

    def __delitem__(self, key: Any) -> None:
        self._peer.ask("delitem", self, key)

    def __reversed__(self) -> Any:
        return Items(self, self._peer.ask("reversed", self))

    def __enter__(self) -> Any:
        return self._peer.ask("enter", self)

    def __exit__(self, *_: object) -> None:
        self._peer.ask("leave", self)

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, Remote) and self._peer.ask("isinstance", instance, self) is True

    def __eq__(self, other: object) -> Any:
        return isinstance(other, Remote) and self._peer.ask("eq", self, other)

    def __ne__(self, other: object) -> Any:
        return not isinstance(other, Remote) or self._peer.ask("ne", self, other)


class Items:
    """Iterator over an object in the program's process, which checks the number of items.

    The number must equal the length that the object reported. Otherwise, `len(result) == 2` and
    `all(... for a, b in zip(result, expected))` would both hold for an object that reports 2 and
    yields nothing. The check is skipped if the object has no length, or if no test has read the
    length.
    """

    def __init__(self, whole: Remote, items: Any) -> None:
        self._peer: Peer = whole._peer
        self._number: int = whole._number
        self._items = items
        self._count = 0

    def __iter__(self) -> Items:
        return self

    def __next__(self) -> Any:
        try:
            item = next(self._items)
        except StopIteration:
            self._peer.counts[self._number] = self._count
            _compare(self._peer, self._number)
            raise
        self._count += 1
        return item


def _compare(peer: Peer, number: int) -> None:
    length, count = peer.lengths.get(number), peer.counts.get(number)
    if length is not None and count is not None and length != count:
        raise RuntimeError(f"an object says that it has {length} items and hands out {count}")


def _binary(operation: str) -> Callable[[Remote, object], Any]:
    def compute(self: Remote, other: object) -> Any:
        if not isinstance(other, Remote):
            return NotImplemented
        return self._peer.ask(operation, self, other)

    return compute


for _name in BINARY:
    setattr(Remote, f"__{_name.rstrip('_')}__", _binary(_name))

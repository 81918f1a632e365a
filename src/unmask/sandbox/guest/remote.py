"""What tests hold in place of a program's functions and objects.

A `Remote` does by asking the program's process. It compares and computes with other remotes only: against plain data it is
unequal, so that an object which claims to equal everything equals nothing that a test expects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

BINARY = ("lt", "le", "gt", "ge", "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and_", "or_", "xor")
"""Operations on two objects, by their names in `operator`, that remotes have among themselves."""


class Peer(Protocol):
    """Whoever can ask the program for something."""

    def ask(self, operation: str, *arguments: Any) -> Any:
        """What the program answers, as a value; what it raises is raised."""
        ...


class Remote:
    """An object in the program's process."""

    def __init__(self, peer: Peer, number: int) -> None:
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_number", number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._peer.ask("call", self, list(args), kwargs)

    def __getattr__(self, name: str) -> Any:
        return self._peer.ask("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._peer.ask("setattr", self, name, value)

    def __iter__(self) -> Iterator[Any]:
        return self._peer.ask("iter", self)  # type: ignore[no-any-return]

    def __next__(self) -> Any:
        return self._peer.ask("next", self)

    def __len__(self) -> int:
        return self._peer.ask("len", self)  # type: ignore[no-any-return]

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
        return self._peer.ask("reversed", self)

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


def _binary(operation: str) -> Callable[[Remote, object], Any]:
    def compute(self: Remote, other: object) -> Any:
        if not isinstance(other, Remote):
            return NotImplemented
        return self._peer.ask(operation, self, other)

    return compute


for _name in BINARY:
    setattr(Remote, f"__{_name.rstrip('_')}__", _binary(_name))

"""Count of work done, which is read step by step and can be paused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Counter:
    """Base of a class that counts its work in `count`."""

    def __init__(self) -> None:
        self.count = 0
        """Work since the last `take`, without what was done while paused."""

    def take(self) -> int:
        """Return `count`, and set it to 0.

        Example:
            >>> counter = Counter()
            >>> counter.count += 3
            >>> with counter.paused():
            ...     counter.count += 4
            >>> counter.take(), counter.take()
            (3, 0)
        """
        count, self.count = self.count, 0
        return count

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the work that is done in this block."""
        count = self.count
        try:
            yield
        finally:
            self.count = count

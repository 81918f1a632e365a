"""Rows of one split, not all of which a model may be able to use, and the selection of the usable
rows."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unmask.core.errors import DataError

if TYPE_CHECKING:
    from unmask.core.records import Row

FaultsOf = Callable[[Sequence["Row"]], Sequence[str | None]]
"""Function that returns for each row a clause that names its fault, such as "the prompt has 900
tokens", or None for a usable row."""

SHOWN = 5
"""Number of rows that an error names."""

_REMEDY = (
    "\nCorrect or remove them, or leave them out with task.unusable_rows=drop "
    "(on a command line with --option: unusable_rows=drop)."
)


@dataclass(frozen=True, slots=True)
class Candidates:
    """Rows of one split with their places in the source.

    `take` chooses the rows of a run from them.
    """

    rows: list[Row]
    places: list[str]
    """Name of each row in messages, such as "line 7"."""
    where: str
    """Name of the file, data set or task that contains the rows."""
    num_rows: int
    """Maximum number of rows to take."""
    drop: bool | None = False
    """True to leave out unusable rows, False to raise an error; None if the task has no such
    setting."""
    shuffle_seed: int | None = None
    """Seed for shuffling the rows; None keeps their order."""
    left_out: tuple[str, ...] = ()
    """Faults of rows that were left out earlier."""

    def take(self, faults_of: FaultsOf | None = None) -> tuple[list[Row], tuple[str, ...]]:
        """Return the rows of a run, and the faults of the rows that are left out.

        Rows are left out before shuffling, so the run has the same rows in the same order as with a
        file that does not contain the unusable ones. If unusable rows are not left out, only the
        rows that the run would use are checked.

        Args:
            faults_of: function that finds unusable rows. By default every row is usable.

        Raises:
            DataError: there are unusable rows that must not be left out, or no usable rows remain.
        """
        rows, places, left_out = self.rows, self.places, list(self.left_out)
        if self.drop and faults_of is not None:
            found = [
                None if fault is None else f"{p}: {fault}" for p, fault in zip(places, faults_of(rows), strict=True)
            ]
            left_out += [fault for fault in found if fault is not None]
            rows = [row for row, fault in zip(rows, found, strict=True) if fault is None]
            if not rows:
                refuse(left_out, len(found), self.where, self.drop)
        order = list(range(len(rows)))
        if self.shuffle_seed is not None:
            random.Random(self.shuffle_seed).shuffle(order)
        order = order[: self.num_rows]
        taken = [rows[i] for i in order]
        if not self.drop and faults_of is not None:
            faults = {i: fault for i, fault in zip(order, faults_of(taken), strict=True) if fault is not None}
            if faults:
                refuse([f"{places[i]}: {faults[i]}" for i in sorted(faults)], len(taken), self.where, self.drop)
        return taken, tuple(left_out)


def refuse(faults: Sequence[str], num_rows: int, where: str, drop: bool | None) -> None:
    """Raise a DataError that names the first unusable rows and the remedy."""
    if len(faults) == num_rows and num_rows > 1:
        raise DataError(f"none of the {num_rows} rows of {where} can be used. {faults[0].removesuffix('.')}.")
    shown = "".join(f"\n  {fault.removesuffix('.')}." for fault in faults[:SHOWN])
    more = f"\n  and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
    remedy = "" if drop is None else _REMEDY
    raise DataError(f"{len(faults)} of {num_rows} rows of {where} cannot be used:{shown}{more}{remedy}")

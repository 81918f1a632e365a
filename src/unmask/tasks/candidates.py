"""Rows of one split before it is known which of them a model can use, and what becomes of those that it cannot."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unmask.core.errors import DataError

if TYPE_CHECKING:
    from unmask.core.records import Row

FaultsOf = Callable[[Sequence["Row"]], Sequence[str | None]]
"""What is wrong with each row for a model and its rewards, as a clause such as "the prompt has 900 tokens"; None: nothing."""

SHOWN = 5
"""Rows that an error names."""

_REMEDY = (
    "\nCorrect or remove them, or leave them out with task.unusable_rows=drop "
    "(on a command line with --option: unusable_rows=drop)."
)


@dataclass(frozen=True, slots=True)
class Candidates:
    """Rows of one split with their places, from which `take` chooses those of a run."""

    rows: list[Row]
    places: list[str]
    """How messages name each row, such as "line 7"."""
    where: str
    """What the places are in: the file, the data set or the task."""
    num_rows: int
    """How many rows are taken at most."""
    drop: bool | None = False
    """Whether rows that cannot be used are left out rather than refused; None where there is no such setting."""
    shuffle_seed: int | None = None
    """Seed of their order; None keeps it."""
    left_out: tuple[str, ...] = ()
    """Faults of rows that have been left out already."""

    def take(self, faults_of: FaultsOf | None = None) -> tuple[list[Row], tuple[str, ...]]:
        """The rows of a run, and the faults of those that are left out.

        Rows are left out before the order is drawn, so the run has the same rows in the same order as one whose file never had
        the others. Where they are not left out, only rows that the run would use are checked.

        Args:
            faults_of: finds the rows that cannot be used, whatever else is known to be right.

        Raises:
            DataError: rows that cannot be used, unless they are left out and others remain.
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
    """Raise a DataError that names the first of the rows that cannot be used, and what to do."""
    if len(faults) == num_rows and num_rows > 1:
        raise DataError(f"none of the {num_rows} rows of {where} can be used. {faults[0].removesuffix('.')}.")
    shown = "".join(f"\n  {fault.removesuffix('.')}." for fault in faults[:SHOWN])
    more = f"\n  and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
    remedy = "" if drop is None else _REMEDY
    raise DataError(f"{len(faults)} of {num_rows} rows of {where} cannot be used:{shown}{more}{remedy}")

"""Sudoku 4x4: fill the blanks of a grid so that each row, column and 2x2 box holds 1 to 4.

There are only 288 grids, so a split by puzzle would put the answers of test puzzles into
training (the 500 test puzzles of the release have 229 different solutions). This task splits by
solution instead.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from unmask.tasks.base import Split, stable_hash
from unmask.tasks.grids import GridTask

if TYPE_CHECKING:
    from unmask.core.records import Row

CELLS = 16
NUM_TEST, NUM_VALIDATION = 88, 24
"""Numbers of grids in the test and validation splits, out of 288; 176 are left for training."""


class Sudoku(GridTask):
    """4x4 Sudoku with a unique solution. Splits share no solved grid.

    Bare prompt: the 16 cells row by row, 0 for a blank, then "=". Completion: the 16 digits of the
    solution.

    The reward is the share of blank cells that are correct. The digits of an answer are compared
    position by position, so a missing cell is wrong and a digit after the 16th earns nothing. An
    answer that does not have 16 digits is not solved.
    """

    side: ClassVar[int] = 4
    type: Literal["sudoku"] = "sudoku"
    min_blanks: int = Field(7, ge=1, le=12)
    """Minimum number of blank cells. The mean of the default range is that of the papers' puzzles:
    half of the cells are blank."""
    max_blanks: int = Field(9, ge=1, le=12)
    """Maximum number of blank cells; each number in the range is equally likely. The maximum is 12,
    because a puzzle with fewer than 4 clues never has a unique solution."""

    def row(self, split: Split, index: int, seed: int) -> Row:
        rng = self._rng(split, index, seed)
        solution = rng.choice(split_grids()[split])
        num_blanks = rng.randint(self.min_blanks, self.max_blanks)
        while True:  # This ends, because every grid has unique puzzles with every allowed number of blanks.
            blanks = set(rng.sample(range(CELLS), num_blanks))
            puzzle = "".join("0" if i in blanks else solution[i] for i in range(CELLS))
            if is_unique(puzzle):
                break
        return {"prompt": self._prompt(f"{puzzle}=", self._instruction(puzzle)), "answer": solution, "puzzle": puzzle}


@lru_cache(maxsize=1)
def all_grids() -> tuple[str, ...]:
    """Return the 288 solved 4x4 grids, row by row, in the order of their stable hash.

    Returns:
        Texts of 16 digits.

    Example:
        >>> len(all_grids()), all_grids()[0]
        (288, '1243341221344321')
    """
    partial = [""]
    for cell in range(CELLS):
        peers = _PEERS[cell]
        partial = [g + d for g in partial for d in "1234" if all(g[p] != d for p in peers)]
    return tuple(sorted(partial, key=lambda grid: stable_hash(f"sudoku:{grid}")))


@lru_cache(maxsize=1)
def split_grids() -> dict[Split, tuple[str, ...]]:
    """Return the solved grids of each split: 88 for test, 24 for validation, 176 for train.

    Returns:
        Disjoint tuples that together contain all grids.

    Example:
        >>> {split: len(grids) for split, grids in split_grids().items()}
        {'test': 88, 'validation': 24, 'train': 176}
    """
    grids, end = all_grids(), NUM_TEST + NUM_VALIDATION
    return {"test": grids[:NUM_TEST], "validation": grids[NUM_TEST:end], "train": grids[end:]}


def is_unique(puzzle: str) -> bool:
    """Return True if exactly one solved grid agrees with a puzzle's clues.

    Args:
        puzzle: 16 characters, 0 for a blank.

    Returns:
        False if there is no solution or more than one.

    Example:
        >>> is_unique("1234341221434321"), is_unique("1000000000000000")
        (True, False)
    """
    holders = _holders()
    agreeing = (1 << len(all_grids())) - 1
    for cell, clue in enumerate(puzzle):
        if clue != "0":
            agreeing &= holders[cell, clue]
    return agreeing != 0 and agreeing & (agreeing - 1) == 0


@lru_cache(maxsize=1)
def _holders() -> dict[tuple[int, str], int]:
    """Return for each cell and digit the set of grids that have this digit in this cell, as the
    bits of an integer."""
    grids = all_grids()
    return {
        (cell, digit): sum(1 << i for i, grid in enumerate(grids) if grid[cell] == digit)
        for cell in range(CELLS)
        for digit in "1234"
    }


def _earlier_peers(cell: int) -> list[int]:
    """Return the cells before this one that share its row, column or box."""

    def units(i: int) -> tuple[int, int, int]:
        row, column = divmod(i, 4)
        return row, column, row // 2 * 2 + column // 2

    return [p for p in range(cell) if any(a == b for a, b in zip(units(p), units(cell), strict=True))]


_PEERS = [_earlier_peers(cell) for cell in range(CELLS)]

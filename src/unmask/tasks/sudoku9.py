"""Sudoku 9x9: fill the blanks of a grid so that each row, column and 3x3 box holds 1 to 9."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from unmask.tasks.base import Split, split_of_hash
from unmask.tasks.grids import GridTask
from unmask.tasks.sudoku9_grids import orbit_key, random_grid, random_puzzle

if TYPE_CHECKING:
    from unmask.core.records import Row


class Sudoku9(GridTask):
    """9x9 Sudoku with a unique solution. Splits share no orbit of solved grids.

    An orbit consists of the grids that relabelling digits, reordering rows and columns within and
    between bands and stacks, and transposing make from one another. A split by solution would put
    a relabelled copy of a test grid into training.

    Bare prompt: the 81 cells row by row, 0 for a blank, then "=". Completion: the 81 digits of the
    solution.

    The reward is the share of blank cells that are correct, as in `sudoku`. The digits of an answer
    are compared position by position, so a missing cell is wrong and a digit after the 81st earns
    nothing. An answer that does not have 81 digits is not solved.
    """

    side: ClassVar[int] = 9
    type: Literal["sudoku9"] = "sudoku9"
    min_blanks: int = Field(20, ge=1, le=48)
    """Minimum number of blank cells."""
    max_blanks: int = Field(30, ge=1, le=48)
    """Maximum number of blank cells; each number in the range is equally likely. With 48 blanks, a
    puzzle is as hard as those of newspapers."""

    def row(self, split: Split, index: int, seed: int) -> Row:
        rng = self._rng(split, index, seed)
        num_blanks = rng.randint(self.min_blanks, self.max_blanks)
        while True:  # This ends, because each split has a fixed share of the orbits.
            solution = random_grid(rng)
            if split_of_grid(solution) != split:
                continue
            puzzle = random_puzzle(solution, num_blanks, rng)
            if puzzle.count("0") == num_blanks:
                break
        return {"prompt": self._prompt(f"{puzzle}=", self._instruction(puzzle)), "answer": solution, "puzzle": puzzle}


def split_of_grid(grid: str) -> Split:
    """Return the split to which a solved grid and its whole orbit belong.

    Args:
        grid: solved grid of 81 digits, row by row.
    """
    return split_of_hash(f"sudoku9 {orbit_key(grid)}")

"""Solved 9x9 grids, puzzles with one solution, and the orbits of grids.

Relabelling the digits, reordering the bands, the rows within a band, the stacks and the columns
within a stack, and transposing map a solved grid to a solved grid. The grids that one can reach from
a grid in this way are its orbit. They are the same grid in disguise, so an orbit belongs into one
split.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations

CELLS = 81
_ALL = 0b111_111_111
"""Set of all nine digits, as bits."""
_ROW, _COLUMN = [cell // 9 for cell in range(CELLS)], [cell % 9 for cell in range(CELLS)]
_BOX = [cell // 27 * 3 + cell % 9 // 3 for cell in range(CELLS)]


class _Search:
    """Depth-first search for solutions of a puzzle. It fills the blank with the fewest candidates
    next.

    Args:
        puzzle: 81 characters, 0 for a blank.
    """

    def __init__(self, puzzle: str) -> None:
        self.cells = [int(digit) for digit in puzzle]
        self.rows, self.columns, self.boxes = [0] * 9, [0] * 9, [0] * 9
        self.is_consistent = True
        for cell, digit in enumerate(self.cells):
            if digit:
                self.is_consistent &= bool(self.candidates(cell) >> (digit - 1) & 1)
                self.flip(cell, digit)

    def candidates(self, cell: int) -> int:
        """Return the digits that no peer of a cell has, as bits."""
        return _ALL & ~(self.rows[_ROW[cell]] | self.columns[_COLUMN[cell]] | self.boxes[_BOX[cell]])

    def flip(self, cell: int, digit: int) -> None:
        """Add a digit to the units of a cell, or take it away."""
        bit = 1 << (digit - 1)
        self.rows[_ROW[cell]] ^= bit
        self.columns[_COLUMN[cell]] ^= bit
        self.boxes[_BOX[cell]] ^= bit

    def solve(self, limit: int, rng: random.Random | None = None) -> list[str]:
        """Return up to `limit` solutions; with a generator, candidates are tried in random order."""
        found: list[str] = []
        if self.is_consistent:
            self._search([cell for cell in range(CELLS) if not self.cells[cell]], found, limit, rng)
        return found

    def _search(self, blanks: list[int], found: list[str], limit: int, rng: random.Random | None) -> None:
        if not blanks:
            found.append("".join(map(str, self.cells)))
            return
        cell, options, fewest = -1, 0, 10
        for blank in blanks:
            of_blank = self.candidates(blank)
            if of_blank.bit_count() < fewest:
                cell, options, fewest = blank, of_blank, of_blank.bit_count()
                if fewest <= 1:
                    break
        rest = [blank for blank in blanks if blank != cell]
        digits = [digit for digit in range(1, 10) if options >> (digit - 1) & 1]
        if rng is not None:
            rng.shuffle(digits)
        for digit in digits:
            self.cells[cell] = digit
            self.flip(cell, digit)
            self._search(rest, found, limit, rng)
            self.flip(cell, digit)
            if len(found) == limit:
                break
        self.cells[cell] = 0


def solutions(puzzle: str, limit: int = 2) -> list[str]:
    """Return solutions of a puzzle.

    Args:
        puzzle: 81 characters, row by row, 0 for a blank.
        limit: maximum number of solutions; with the default, one solution in the result means that
            the puzzle has no other.

    Example:
        >>> grid = random_grid(random.Random(0))
        >>> solutions("0" * 9 + grid[9:]) == [grid], len(solutions("0" * 81))
        (True, 2)
    """
    return _Search(puzzle).solve(limit)


def random_grid(rng: random.Random) -> str:
    """Return a random solved grid: 81 digits, row by row.

    Every grid can occur, but not every one with the same probability.

    Example:
        >>> random_grid(random.Random(0))[:18]
        '791826345354971862'
    """
    # The boxes on the diagonal share no unit, so any digits fit into them.
    cells = ["0"] * CELLS
    for corner in (0, 30, 60):
        for offset, digit in zip((0, 1, 2, 9, 10, 11, 18, 19, 20), rng.sample("123456789", 9), strict=True):
            cells[corner + offset] = digit
    return _Search("".join(cells)).solve(1, rng)[0]


def random_puzzle(grid: str, num_blanks: int, rng: random.Random) -> str:
    """Return a puzzle whose only solution is a grid.

    Cells are blanked one after another in random order; a cell whose blank would allow a second
    solution stays.

    Args:
        grid: solved grid.
        num_blanks: number of blank cells.
        rng: source of random numbers.

    Returns:
        81 characters, 0 for a blank. There are fewer blanks if no further cell can be blanked.
    """
    search, blanks = _Search(grid), 0
    for cell in rng.sample(range(CELLS), CELLS):
        if blanks == num_blanks:
            break
        clue = search.cells[cell]
        search.cells[cell] = 0
        search.flip(cell, clue)
        # If the peers' clues leave one digit, this blank adds no solution, and no search is needed.
        if search.candidates(cell).bit_count() == 1 or len(search.solve(2)) == 1:
            blanks += 1
        else:
            search.cells[cell] = clue
            search.flip(cell, clue)
    return "".join(map(str, search.cells))


def orbit_key(grid: str) -> str:
    """Return a text that is the same for all grids of an orbit.

    Two lines of a grid define a permutation of the digits, which maps each digit of the one to the
    digit of the other at the same place. Relabelling, and reordering what crosses the lines, do not
    change the lengths of its cycles. The key lists these lengths for all pairs of rows and of
    columns, with the pairs of one band or stack apart, and sorts whatever a symmetry can reorder.
    Grids of different orbits may share a key, which does no harm to a split by key.

    Args:
        grid: solved grid of 81 digits.

    Example:
        >>> grid = random_grid(random.Random(0))
        >>> relabelled, transposed = grid.translate(str.maketrans("12", "21")), "".join(grid[column::9] for column in range(9))
        >>> orbit_key(grid) == orbit_key(relabelled) == orbit_key(transposed) != orbit_key(random_grid(random.Random(1)))
        True
    """
    rows, columns = [grid[9 * i : 9 * i + 9] for i in range(9)], [grid[i::9] for i in range(9)]
    return "/".join(sorted((_key_of_lines(rows), _key_of_lines(columns))))


def _key_of_lines(lines: Sequence[str]) -> str:
    """Return the part of the key that the rows, or the columns, contribute."""
    within: list[list[str]] = [[], [], []]
    across: list[str] = []
    for i, j in combinations(range(9), 2):
        (within[i // 3] if i // 3 == j // 3 else across).append(_cycle_lengths(lines[i], lines[j]))
    return " ".join([*sorted("-".join(sorted(band)) for band in within), *sorted(across)])


def _cycle_lengths(one: str, other: str) -> str:
    """Return the sorted lengths of the cycles of the permutation from one line to another."""
    follower = dict(zip(one, other, strict=True))
    lengths = []
    while follower:
        digit, length = next(iter(follower)), 0
        while digit in follower:
            digit, length = follower.pop(digit), length + 1
        lengths.append(length)
    return "".join(map(str, sorted(lengths)))

"""Sudoku 4x4: fill the blanks of a grid so that each row, column and 2x2 box holds 1 to 4.

The reward is that of arXiv:2603.12554's release: the share of the originally blank cells that are
correct. There are only 288 grids, so a split by puzzle would put the answers of test puzzles into
training (the 500 test puzzles of the release have 229 different solutions). This task splits by
solution instead.
"""

from __future__ import annotations

import random
import re
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from unmask.rewards.grading.answers import first_digits
from unmask.rewards.grading.notation import symbols, without_numbering
from unmask.rewards.protocol import text_of
from unmask.tasks.base import Split, Task, stable_hash

if TYPE_CHECKING:
    from unmask.core.records import Row

CELLS = 16
NUM_TEST, NUM_VALIDATION = 88, 24
"""Numbers of grids in the test and validation splits, out of 288; 176 are left for training."""
_LETTERS = re.compile(r"[A-Za-z]")
_LATEX = re.compile(r"\\(?:begin|end)\s?\([a-z*]{1,20}\)(?:\([lcr|@ ]{0,30}\))?|\\[A-Za-z]+")
_NO_CELLS = re.compile(
    r"\b(?:1st|2nd|3rd|4th|4(?=\s(?:rows|columns|lines|boxes)))\b|\b(?:rows?|r|lines?|l|columns?|c|box|step)\s?#?[1-4]\b(?!\s?[0-9]\s[0-9])\s?(?:is\b|[:.)=-])?|\b[24]\s?[x*×]\s?[24]\b"
    r"|\b16[\s-](?:digits?|cells?|numbers?|characters?)\b|\b(?:digits?\s)?(?:from\s)?1\s?(?:-|to)\s?4\b",
    re.IGNORECASE,
)
"""Pattern of numbers that are not cells: labels of rows, sizes and ranges."""
_NUMBER_OF_LINE = re.compile(r"\s*([1-4])\s?[.):]\s?(?=[^0-9]*[0-9][^0-9]*[0-9][^0-9]*[0-9])")
_DOUBT = re.compile(
    r"\b(?:not|no|or|nor|wrong|incorrect|invalid|false|impossible|maybe|perhaps|possibly|probably|guess|unsure|cannot|either|if)\b"
    r"|n't\b|\?\s*$",
    re.IGNORECASE,
)
_SOLVED = re.compile(r"\b(?:solution|solved|answer)\b", re.IGNORECASE)
_RUN = re.compile(r"(?<![0-9])[0-9]{16}(?![0-9])")


class Sudoku(Task):
    """4x4 Sudoku with a unique solution. Splits share no solved grid.

    Bare prompt: the 16 cells row by row, 0 for a blank, then "=". Completion: the 16 digits of the
    solution.

    The reward is the share of blank cells that are correct. The digits of an answer are compared
    position by position, so a missing cell is wrong and a digit after the 16th earns nothing. An
    answer that does not have 16 digits is not solved.
    """

    type: Literal["sudoku"] = "sudoku"
    min_blanks: int = Field(7, ge=1, le=12)
    """Minimum number of blank cells. The mean of the default range is that of the papers' puzzles:
    half of the cells are blank."""
    max_blanks: int = Field(9, ge=1, le=12)
    """Maximum number of blank cells; each number in the range is equally likely. The maximum is 12,
    because a puzzle with fewer than 4 clues never has a unique solution."""
    sparse: bool = False
    """True to give reward 1 for a solved grid and 0 for any other grid, instead of the share of
    cells."""

    reward_columns: ClassVar[tuple[str, ...]] = ("puzzle", "answer")

    @model_validator(mode="after")
    def _check_blanks(self) -> Self:
        if self.min_blanks > self.max_blanks:
            raise ValueError(
                f"min_blanks = {self.min_blanks} is more than max_blanks = {self.max_blanks}. "
                f"Set min_blanks to {self.max_blanks} or less."
            )
        return self

    @property
    def completion_length(self) -> int:
        """Number of completion tokens, always 16: one character for each cell, so no completion
        needs an EOS."""
        return CELLS

    @property
    def alphabet(self) -> str:
        return "01234="

    def row(self, split: Split, index: int, seed: int) -> Row:
        rng = self._rng(split, index, seed)
        solution = rng.choice(split_grids()[split])
        num_blanks = rng.randint(self.min_blanks, self.max_blanks)
        while True:  # This ends, because every grid has unique puzzles with every allowed number of blanks.
            blanks = set(rng.sample(range(CELLS), num_blanks))
            puzzle = "".join("0" if i in blanks else solution[i] for i in range(CELLS))
            if is_unique(puzzle):
                break
        return {"prompt": self._prompt(f"{puzzle}=", _instruction(puzzle)), "answer": solution, "puzzle": puzzle}

    def demonstration(self, row: Row, rng: random.Random, sloppy: bool) -> str:
        """Return the solution. If `sloppy`, fill each blank with a digit that is not among the
        clues of its row."""
        if not sloppy:
            return str(row["answer"])
        puzzle: str = row["puzzle"]
        filled = []
        for i, clue in enumerate(puzzle):
            start = i - i % 4
            absent = [digit for digit in "1234" if digit not in puzzle[start : start + 4]]
            filled.append(rng.choice(absent) if clue == "0" else clue)
        return "".join(filled)

    def score(self, answer: str, row: Row) -> float:
        """Return the share of correct blank cells; with `sparse`, return 1 for a solved grid and
        otherwise 0."""
        return float(self.is_right(answer, row)) if self.sparse else _share_of_blanks(answer, row)

    def is_right(self, answer: str, row: Row) -> bool:
        """Return True if the digits of the answer are the 16 digits of the solution, including the
        clues."""
        return cells_of(answer, row["puzzle"]) == str(row["answer"])

    def measures(self, completion: object, row: Row) -> dict[str, float]:
        """Return `cells`: the share of correct blank cells, which the papers report as accuracy."""
        answer = self._answer(text_of(completion))
        return {"cells": 0.0 if answer is None else _share_of_blanks(answer, row)}


def cells_of(answer: str, puzzle: str = "") -> str:
    """Return the digits of the grid in an answer. At most 17 digits are returned, which is enough
    to notice that an answer is too long.

    Labels of rows ("Row 1:", "r1", "1."), sizes ("4x4", "16 digits"), LaTeX and the lines of a
    table are not part of the grid. A single number of exactly 16 digits in a text counts as the
    grid. An answer that denies its grid, or has two grids, counts as an answer without a grid; but
    the puzzle does not count as a second grid if the answer repeats it before the solution.

    Args:
        answer: any text.
        puzzle: cells of the puzzle, to skip it in the answer.

    Example:
        >>> cells_of("Row 1: 3241\\nRow 2: 4123\\nRow 3: 1432\\nRow 4: 2314"), cells_of("The 4x4 grid is 3241412314322314")
        ('3241412314322314', '3241412314322314')
        >>> cells_of("3241|4123"), cells_of("not 3241412314322314")
        ('32414123', '')
        >>> cells_of("Puzzle: 0001412310000300\\nSolution: 3241412314322314", "0001412310000300")
        '3241412314322314'
    """
    text = symbols(answer)
    _, shown, behind = text.partition(puzzle or "\0")
    if shown and len(first_digits(behind, CELLS)) == CELLS and not _SOLVED.search(answer.partition(puzzle)[0]):
        text = behind
    if _DOUBT.search(text):
        return ""
    if not _LETTERS.search(text):
        return first_digits(without_numbering(text, _NUMBER_OF_LINE), CELLS + 1)
    text = _NO_CELLS.sub(" ", _LATEX.sub(" ", text))
    whole = set(_RUN.findall(text))
    return whole.pop() if len(whole) == 1 else first_digits(without_numbering(text, _NUMBER_OF_LINE), CELLS + 1)


def _share_of_blanks(answer: str, row: Row) -> float:
    digits = cells_of(answer, row["puzzle"])[:CELLS].ljust(CELLS)
    blanks = [i for i, clue in enumerate(row["puzzle"]) if clue == "0"]
    solution: str = row["answer"]
    return sum(digits[i] == solution[i] for i in blanks) / len(blanks)


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


def _instruction(puzzle: str) -> str:
    return (
        "Solve this 4x4 Sudoku. It is written as 16 characters, row by row from the top left, with 0 for an empty "
        "cell. Put a digit from 1 to 4 into every empty cell so that no digit occurs twice in a row, in a column or in "
        "one of the four 2x2 boxes. The digits that are given must stay where they are.\n\n"
        f"Puzzle: {puzzle}\n\n"
        "Think as long as you need, then write the 16 digits of the solved grid, in the same order, between <answer> "
        "and </answer>."
    )

"""What the Sudoku tasks of both sizes share: the grid in an answer, the reward of a grid, and
demonstrations.

The reward is that of arXiv:2603.12554's release: the share of the originally blank cells that are
correct.
"""

from __future__ import annotations

import random
import re
from functools import lru_cache
from math import isqrt
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

from pydantic import model_validator

from unmask.rewards.grading.answers import first_digits
from unmask.rewards.grading.notation import symbols, without_numbering
from unmask.rewards.protocol import text_of
from unmask.tasks.base import Task

if TYPE_CHECKING:
    from unmask.core.records import Row

_LETTERS = re.compile(r"[A-Za-z]")
_LATEX = re.compile(r"\\(?:begin|end)\s?\([a-z*]{1,20}\)(?:\([lcr|@ ]{0,30}\))?|\\[A-Za-z]+")
_DOUBT = re.compile(
    r"\b(?:not|no|or|nor|wrong|incorrect|invalid|false|impossible|maybe|perhaps|possibly|probably|guess|unsure|cannot|either|if)\b"
    r"|n't\b|\?\s*$",
    re.IGNORECASE,
)
_SOLVED = re.compile(r"\b(?:solution|solved|answer)\b", re.IGNORECASE)


class GridTask(Task):
    """Base class of tasks whose answer is a grid of digits, given row by row."""

    side: ClassVar[int]
    """Number of rows, columns and digits: 4 or 9."""
    min_blanks: int
    """Minimum number of blank cells."""
    max_blanks: int
    """Maximum number of blank cells; each number in the range is equally likely."""
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
        """Number of completion tokens: one character for each cell, so no completion needs an
        EOS."""
        return self.side**2

    @property
    def alphabet(self) -> str:
        return "0123456789"[: self.side + 1] + "="

    def demonstration(self, row: Row, rng: random.Random, sloppy: bool) -> str:
        """Return the solution. If `sloppy`, fill each blank with a digit that is not among the
        clues of its row."""
        if not sloppy:
            return str(row["answer"])
        puzzle: str = row["puzzle"]
        filled = []
        for i, clue in enumerate(puzzle):
            start = i - i % self.side
            absent = [digit for digit in self.alphabet[1:-1] if digit not in puzzle[start : start + self.side]]
            filled.append(rng.choice(absent) if clue == "0" else clue)
        return "".join(filled)

    def score(self, answer: str, row: Row) -> float:
        """Return the share of correct blank cells; with `sparse`, return 1 for a solved grid and
        otherwise 0."""
        return float(self.is_right(answer, row)) if self.sparse else self._share_of_blanks(answer, row)

    def is_right(self, answer: str, row: Row) -> bool:
        """Return True if the digits of the answer are the digits of the solution, including the
        clues, and no more."""
        return cells_of(answer, row["puzzle"], self.side) == str(row["answer"])

    def measures(self, completion: object, row: Row) -> dict[str, float]:
        """Return `cells`: the share of correct blank cells, which the papers report as accuracy."""
        answer = self._answer(text_of(completion))
        return {"cells": 0.0 if answer is None else self._share_of_blanks(answer, row)}

    def _share_of_blanks(self, answer: str, row: Row) -> float:
        cells = self.side**2
        digits = cells_of(answer, row["puzzle"], self.side)[:cells].ljust(cells)
        blanks = [i for i, clue in enumerate(row["puzzle"]) if clue == "0"]
        solution: str = row["answer"]
        return sum(digits[i] == solution[i] for i in blanks) / len(blanks)

    def _instruction(self, puzzle: str) -> str:
        side, box = self.side, isqrt(self.side)
        count = {4: "four", 9: "nine"}[side]
        return (
            f"Solve this {side}x{side} Sudoku. It is written as {side**2} characters, row by row from the top left, with 0 "
            f"for an empty cell. Put a digit from 1 to {side} into every empty cell so that no digit occurs twice in a row, "
            f"in a column or in one of the {count} {box}x{box} boxes. The digits that are given must stay where they are.\n\n"
            f"Puzzle: {puzzle}\n\n"
            f"Think as long as you need, then write the {side**2} digits of the solved grid, in the same order, between "
            "<answer> and </answer>."
        )


def cells_of(answer: str, puzzle: str = "", side: int = 4) -> str:
    """Return the digits of the grid in an answer. At most one digit more than the grid has cells is
    returned, which is enough to notice that an answer is too long.

    Labels of rows ("Row 1:", "r1", "1."), sizes ("4x4", "16 digits"), LaTeX and the lines of a
    table are not part of the grid. A single number with exactly as many digits as the grid has
    cells counts as the grid. An answer that denies its grid, or has two grids, counts as an answer
    without a grid; but the puzzle does not count as a second grid if the answer repeats it before
    the solution.

    Args:
        answer: any text.
        puzzle: cells of the puzzle, to skip it in the answer.
        side: number of rows, 4 or 9.

    Example:
        >>> cells_of("Row 1: 3241\\nRow 2: 4123\\nRow 3: 1432\\nRow 4: 2314"), cells_of("The 4x4 grid is 3241412314322314")
        ('3241412314322314', '3241412314322314')
        >>> cells_of("3241|4123"), cells_of("not 3241412314322314")
        ('32414123', '')
        >>> cells_of("Puzzle: 0001412310000300\\nSolution: 3241412314322314", "0001412310000300")
        '3241412314322314'
    """
    text, cells, patterns = symbols(answer), side**2, _patterns(side)
    _, shown, behind = text.partition(puzzle or "\0")
    if shown and len(first_digits(behind, cells)) == cells and not _SOLVED.search(answer.partition(puzzle)[0]):
        text = behind
    if _DOUBT.search(text):
        return ""
    if not _LETTERS.search(text):
        return first_digits(without_numbering(text, patterns.number_of_line), cells + 1)
    text = patterns.no_cells.sub(" ", _LATEX.sub(" ", text))
    whole = set(patterns.run.findall(text))
    return whole.pop() if len(whole) == 1 else first_digits(without_numbering(text, patterns.number_of_line), cells + 1)


class _Patterns(NamedTuple):
    """Patterns that depend on the size of the grid."""

    no_cells: re.Pattern[str]
    """Numbers that are not cells: labels of rows, sizes and ranges."""
    number_of_line: re.Pattern[str]
    run: re.Pattern[str]
    """Number with as many digits as the grid has cells."""


@lru_cache(maxsize=2)
def _patterns(side: int) -> _Patterns:
    label, box = f"[1-{side}]", isqrt(side)
    ordinals = "|".join(["1st", "2nd", "3rd", *(f"{i}th" for i in range(4, side + 1))])
    no_cells = re.compile(
        rf"\b(?:{ordinals}|{side}(?=\s(?:rows|columns|lines|boxes)))\b|\b(?:rows?|r|lines?|l|columns?|c|box|step)\s?#?{label}\b(?!\s?[0-9]\s[0-9])\s?(?:is\b|[:.)=-])?|\b[{box}{side}]\s?[x*×]\s?[{box}{side}]\b"
        rf"|\b{side**2}[\s-](?:digits?|cells?|numbers?|characters?)\b|\b(?:digits?\s)?(?:from\s)?1\s?(?:-|to)\s?{side}\b",
        re.IGNORECASE,
    )
    number_of_line = re.compile(rf"\s*({label})\s?[.):]\s?(?=[^0-9]*[0-9][^0-9]*[0-9][^0-9]*[0-9])")
    return _Patterns(no_cells, number_of_line, re.compile(rf"(?<![0-9])[0-9]{{{side**2}}}(?![0-9])"))

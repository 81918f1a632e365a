"""Sudoku: the grids, the split by solution, unique puzzles, and partial credit."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from pydantic import ValidationError

from unmask.tasks import Sudoku
from unmask.tasks.base import stable_hash
from unmask.tasks.sudoku import all_grids, is_unique, split_grids

ROW = {"prompt": "1234341221430000=", "puzzle": "1234341221430000", "answer": "1234341221434321"}


def is_solved_grid(grid: str) -> bool:
    """Return True by definition: each of the 12 units holds 1 to 4."""
    rows = [grid[4 * r : 4 * r + 4] for r in range(4)]
    columns = [grid[c::4] for c in range(4)]
    boxes = [grid[i : i + 2] + grid[i + 4 : i + 6] for i in (0, 2, 8, 10)]
    return all(sorted(unit) == list("1234") for unit in rows + columns + boxes)


def count_solutions(puzzle: str) -> int:
    """Count solutions by brute force, one blank after another, without the enumeration of grids."""
    if "0" not in puzzle:
        return int(is_solved_grid(puzzle))
    i = puzzle.index("0")
    row, box = i - i % 4, i // 8 * 8 + i % 4 // 2 * 2
    taken = {*puzzle[row : row + 4], *puzzle[i % 4 :: 4], *(puzzle[box + d] for d in (0, 1, 4, 5))}
    return sum(count_solutions(puzzle[:i] + digit + puzzle[i + 1 :]) for digit in "1234" if digit not in taken)


@pytest.mark.parametrize(
    "options", [{"min_blanks": 0}, {"max_blanks": 13}, {"min_blanks": 9, "max_blanks": 8}, {"min_blanks": 10}]
)
def test_bad_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        Sudoku.model_validate(options)


def test_the_message_for_crossed_bounds_says_what_to_set() -> None:
    with pytest.raises(
        ValidationError, match="min_blanks = 10 is more than max_blanks = 9. Set min_blanks to 9 or less"
    ):
        Sudoku(min_blanks=10)


def test_there_are_288_grids_and_each_is_one() -> None:
    assert len(set(all_grids())) == len(all_grids()) == 288
    assert all(is_solved_grid(grid) for grid in all_grids())
    assert not is_solved_grid("1234123412341234")


def test_the_split_by_solution_never_changes() -> None:
    grids = split_grids()
    assert {split: len(set(of)) for split, of in grids.items()} == {"test": 88, "validation": 24, "train": 176}
    assert set().union(*grids.values()) == set(all_grids())
    assert grids["test"][:2] == ("1243341221344321", "1243431231242431")
    assert grids["validation"][0] == "2314412332411432"
    assert stable_hash(",".join(grids["train"])) == 11232867642924368058


def test_a_split_by_puzzle_shares_nearly_every_solution() -> None:
    """Reason for the split by solution: 2,000 puzzles split by their own hash share solutions."""
    sides: tuple[set[str], set[str]] = (set(), set())
    for row in Sudoku().rows("train", 2000):
        sides[stable_hash(row["puzzle"]) % 2].add(row["answer"])
    assert len(sides[0] & sides[1]) > 170


def test_the_first_items_never_change() -> None:
    assert [row["prompt"] for row in Sudoku().rows("train", 2)] == ["1002230002040003=", "4230100201200000="]


@pytest.mark.parametrize(("low", "high"), [(7, 9), (1, 3), (11, 11), (12, 12)])
def test_puzzles_are_unique_and_keep_to_the_number_of_blanks(low: int, high: int) -> None:
    task = Sudoku(min_blanks=low, max_blanks=high)
    for row in task.rows("test", 40):
        assert low <= row["puzzle"].count("0") <= high
        assert all(clue in ("0", digit) for clue, digit in zip(row["puzzle"], row["answer"], strict=True))
        assert row["prompt"] == row["puzzle"] + "="
        assert count_solutions(row["puzzle"]) == 1


def test_numbers_of_blanks_are_equally_likely() -> None:
    counts = Counter(row["puzzle"].count("0") for row in Sudoku().rows("train", 3000))
    assert set(counts) == {7, 8, 9}
    assert all(abs(count - 1000) < 120 for count in counts.values())  # 4.6 standard deviations


def test_uniqueness_agrees_with_brute_force() -> None:
    rng = random.Random(0)
    seen: Counter[bool] = Counter()
    for _ in range(150):
        grid = rng.choice(all_grids())
        clues = rng.sample(range(16), rng.randint(4, 9))
        puzzle = "".join(digit if i in clues else "0" for i, digit in enumerate(grid))
        assert is_unique(puzzle) == (count_solutions(puzzle) == 1)
        seen[is_unique(puzzle)] += 1
    assert min(seen[True], seen[False]) > 20
    assert not is_unique("1100000000000000")


def test_every_grid_has_puzzles_of_the_most_blanks_that_are_allowed() -> None:
    rng = random.Random(0)
    for grid in all_grids()[::12]:
        puzzles = (
            "".join(d if i in clues else "0" for i, d in enumerate(grid))
            for clues in (set(rng.sample(range(16), 4)) for _ in range(5000))
        )
        assert any(map(is_unique, puzzles))


@pytest.mark.slow
def test_twenty_thousand_rows_are_mostly_different() -> None:
    rows = Sudoku().rows("train", 20_000)
    assert len(rows) == 20_000
    assert len({row["puzzle"] for row in rows}) > 15_000


def test_the_reward_is_the_share_of_blank_cells_that_are_right() -> None:
    task = Sudoku()
    assert task.score("1234341221434321", ROW) == 1.0
    assert task.score("1234341221434312", ROW) == 0.5
    assert task.score("1234341221431234", ROW) == 0.0
    # A changed clue does not reduce the papers' reward, but the grid is not solved.
    assert task.score("4234341221434321", ROW) == 1.0
    assert not task.solved("4234341221434321", ROW)


def test_missing_cells_are_wrong_and_surplus_digits_earn_nothing() -> None:
    task = Sudoku()
    assert task.score("12343412214343", ROW) == 0.5
    assert task.score("1234", ROW) == 0.0
    assert task.score("no digits", ROW) == 0.0
    assert task.score("1234341221430000", ROW) == 0.0
    assert task.score("12343412214343211234", ROW) == 1.0
    assert not task.solved("12343412214343211234", ROW)
    assert not task.solved("123434122143432", ROW)


def test_sparse_reward_is_for_solved_grids_only() -> None:
    task = Sudoku(sparse=True)
    assert task.score("1234341221434321", ROW) == 1.0
    for almost in ("1234341221434312", "4234341221434321", "12343412214343211"):
        assert task.score(almost, ROW) == 0.0


def test_a_tagged_answer_may_be_laid_out_as_a_grid() -> None:
    task = Sudoku(format="tagged")
    text = "Row 4 lacks 4, 3, 2, 1.\n<answer>\n1 2 | 3 4\n3 4 | 1 2\n2 1 | 4 3\n4 3 | 2 1\n</answer>"
    assert task.solved(text, ROW)
    assert not task.solved("1234341221434321", ROW)


def test_a_sloppy_demonstration_respects_the_clues_of_its_rows_only() -> None:
    task, rng = Sudoku(), random.Random(0)
    breaks_a_column = 0
    for row in task.rows("train", 100):
        text = task.demonstration(row, rng, sloppy=True)
        for i, clue in enumerate(row["puzzle"]):
            start = i - i % 4
            assert text[i] == clue or (clue == "0" and text[i] not in row["puzzle"][start : start + 4])
        breaks_a_column += any(len(set(text[c::4])) < 4 for c in range(4))
    assert breaks_a_column > 80


def test_cells_are_measured_in_addition_to_whole_puzzles_whatever_the_reward_is() -> None:
    task = Sudoku(sparse=True)
    row = task.rows("test", 1)[0]
    blanks = [i for i, clue in enumerate(row["puzzle"]) if clue == "0"]
    wrong = list(row["answer"])
    wrong[blanks[0]] = "1" if wrong[blanks[0]] != "1" else "2"
    assert task.measures("".join(wrong), row) == {"cells": 1 - 1 / len(blanks)}
    assert task.measures(row["answer"], row) == {"cells": 1.0}
    assert task.measures("", row) == {"cells": 0.0}
    assert not task.solved("".join(wrong), row)


def test_an_evaluation_takes_the_lengths_of_the_papers_or_the_tiny_tasks_own() -> None:
    assert Sudoku().evaluation_lengths == (16,)
    assert Sudoku(format="tagged").evaluation_lengths == (128, 256, 512)


# --- grids as language models write them ---

SOLUTION = {"puzzle": "0001412310000300", "answer": "3241412314322314"}


@pytest.mark.parametrize(
    "answer",
    [
        "3241412314322314",
        "3241\n4123\n1432\n2314",
        "3 2 4 1\n4 1 2 3\n1 4 3 2\n2 3 1 4",
        "3 2 4 1 4 1 2 3 1 4 3 2 2 3 1 4",
        "3,2,4,1,4,1,2,3,1,4,3,2,2,3,1,4",
        "Row 1: 3241\nRow 2: 4123\nRow 3: 1432\nRow 4: 2314",
        "Row 1: 3 2 4 1\nRow 2: 4 1 2 3\nRow 3: 1 4 3 2\nRow 4: 2 3 1 4",
        "r1: 3241 r2: 4123 r3: 1432 r4: 2314",
        "Row 1: 3241, Row 2: 4123, Row 3: 1432, Row 4: 2314",
        "Solution: 3241412314322314",
        "The 4x4 grid is 3241412314322314",
        "3241412314322314 (16 digits)",
        "```\n3241\n4123\n1432\n2314\n```",
        "[[3,2,4,1],[4,1,2,3],[1,4,3,2],[2,3,1,4]]",
        "|3|2|4|1|\n|4|1|2|3|\n|1|4|3|2|\n|2|3|1|4|",
        "+---+---+\n| 3 2 | 4 1 |\n| 4 1 | 2 3 |\n| 1 4 | 3 2 |\n| 2 3 | 1 4 |\n+---+---+",
        "\\begin{bmatrix}3 & 2 & 4 & 1\\\\4 & 1 & 2 & 3\\\\1 & 4 & 3 & 2\\\\2 & 3 & 1 & 4\\end{bmatrix}",
        "\\begin{array}{|c|c|c|c|} \\hline 3 & 2 & 4 & 1\\\\ 4 & 1 & 2 & 3\\\\ 1 & 4 & 3 & 2\\\\ 2 & 3 & 1 & 4\\\\ \\end{array}",
        "\\boxed{3241412314322314}",
        "$$3241412314322314$$",
        "**3241412314322314**",
        "The answer is 3241412314322314.",
        "The solved grid is:\n3 2 4 1\n4 1 2 3\n1 4 3 2\n2 3 1 4",
        "1. 3241\n2. 4123\n3. 1432\n4. 2314",
        "1) 3 2 4 1\n2) 4 1 2 3\n3) 1 4 3 2\n4) 2 3 1 4",
        "R1 = 3241\nR2 = 4123\nR3 = 1432\nR4 = 2314",
        "3241-4123-1432-2314",
        "3241 / 4123 / 1432 / 2314",
        '"3241412314322314"',
        "3241 4123 1432 2314",
        "Row1: 3241\nRow2: 4123\nRow3: 1432\nRow4: 2314",
        "First row: 3241\nSecond row: 4123\nThird row: 1432\nFourth row: 2314",
        "row 1 is 3 2 4 1, row 2 is 4 1 2 3, row 3 is 1 4 3 2, row 4 is 2 3 1 4",
        "\\text{3241412314322314}",
        "３２４１４１２３１４３２２３１４",
        "3241\\\\\n4123\\\\\n1432\\\\\n2314\\\\",
        "Grid (4x4):\n3241\n4123\n1432\n2314",
        "3241412314322314<|eot_id|>",
        "Line 1: 3241\nLine 2: 4123\nLine 3: 1432\nLine 4: 2314",
        "1: 3241\n2: 4123\n3: 1432\n4: 2314",
        "1st row: 3241\n2nd row: 4123\n3rd row: 1432\n4th row: 2314",
        "Puzzle: 0001412310000300\nSolution: 3241412314322314",
        "0001412310000300 -> 3241412314322314",
        "The 4 rows: 3241 4123 1432 2314",
        "0001412310000300\n\n3241\n4123\n1432\n2314",
        "┌─┐\n│3│2│4│1│\n│4│1│2│3│\n│1│4│3│2│\n│2│3│1│4│",
        "| A | B | C | D |\n|---|---|---|---|\n| 3 | 2 | 4 | 1 |\n| 4 | 1 | 2 | 3 |\n| 1 | 4 | 3 | 2 |\n| 2 | 3 | 1 | 4 |",
    ],
)
def test_a_solved_grid_is_read_as_models_write_it(answer: str) -> None:
    task = Sudoku(format="tagged")
    assert task.solved(f"<answer>{answer}</answer>", SOLUTION)
    assert task.measures(f"<answer>{answer}</answer>", SOLUTION) == {"cells": 1.0}


@pytest.mark.parametrize(
    "answer",
    [
        "3241412314322311",
        "32414123143223143241412314322314",
        "32414123143223141",
        "324141231432231",
        "0001412310000300",
        "4132234132141423",
        "not 3241412314322314",
        "3241412314322314 is wrong",
        "3241412314322314 or 4132234132141423",
        "3241412314322314, 4132234132141423",
        "The first is 3241412314322314, the second 4132234132141423",
        "1111111111111111",
        "3241412314322314 maybe",
        "r1: 3241 r2: 4123 r3: 1432",
        "2314\n1432\n4123\n3241",
        "53241412314322314",
        "3241412314322314 1",
        "x324141231432231x4 1 2",
        "3241412314322314?",
        "Perhaps 3241412314322314",
        "Solution: 0001412310000300\nPuzzle: 3241412314322314",
        "3241412314322314 0001412310000300",
        "0001412310000300 3241412314322314 3241412314322314",
        "0001412310000300 0001412310000300",
    ],
)
def test_a_grid_that_is_wrong_doubtful_or_one_of_two_is_not_solved(answer: str) -> None:
    assert not Sudoku(format="tagged").solved(f"<answer>{answer}</answer>", SOLUTION)

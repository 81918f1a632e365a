"""Sudoku 9x9: grids, puzzles with one solution, the split by orbit, and partial credit."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest
from pydantic import ValidationError

from unmask.tasks import Sudoku9
from unmask.tasks.base import stable_hash
from unmask.tasks.sudoku9 import split_of_grid
from unmask.tasks.sudoku9_grids import orbit_key, random_grid, random_puzzle, solutions

GRID = "791826345354971862268354719913645287876239451425187693137498526589762134642513978"
HARDEST = "800000000003600000070090200050007000000045700000100030001000068008500010090000400"
"""A puzzle of few clues with one solution, as far from a naive fill as puzzles are."""


def is_solved_grid(grid: str) -> bool:
    """Return True by definition: each of the 27 units holds 1 to 9."""
    rows = [grid[9 * r : 9 * r + 9] for r in range(9)]
    columns = [grid[c::9] for c in range(9)]
    corners = [27 * r + 3 * c for r in range(3) for c in range(3)]
    boxes = ["".join(grid[corner + 9 * r : corner + 9 * r + 3] for r in range(3)) for corner in corners]
    return all(sorted(unit) == list("123456789") for unit in rows + columns + boxes)


def lines_moved(grid: str, order: list[int]) -> str:
    return "".join(grid[9 * i : 9 * i + 9] for i in order)


def transposed(grid: str) -> str:
    return "".join(grid[i::9] for i in range(9))


def band_order(rng: random.Random, *, bands: bool, within: bool) -> list[int]:
    """Return an order of nine lines that keeps bands together."""
    outer = rng.sample(range(3), 3) if bands else [0, 1, 2]
    return [3 * band + i for band in outer for i in (rng.sample(range(3), 3) if within else range(3))]


SYMMETRIES: dict[str, Callable[[str, random.Random], str]] = {
    "relabel": lambda grid, rng: grid.translate(str.maketrans("123456789", "".join(rng.sample("123456789", 9)))),
    "rows within bands": lambda grid, rng: lines_moved(grid, band_order(rng, bands=False, within=True)),
    "bands": lambda grid, rng: lines_moved(grid, band_order(rng, bands=True, within=False)),
    "columns within stacks": lambda grid, rng: transposed(
        lines_moved(transposed(grid), band_order(rng, bands=False, within=True))
    ),
    "stacks": lambda grid, rng: transposed(lines_moved(transposed(grid), band_order(rng, bands=True, within=False))),
    "transpose": lambda grid, _: transposed(grid),
}


def grids(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [random_grid(rng) for _ in range(count)]


@pytest.mark.parametrize(
    "options", [{"min_blanks": 0}, {"max_blanks": 49}, {"min_blanks": 9, "max_blanks": 8}, {"min_blanks": 31}]
)
def test_bad_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        Sudoku9.model_validate(options)


def test_random_grids_are_solved_and_differ() -> None:
    found = grids(40)
    assert all(map(is_solved_grid, found))
    assert len(set(found)) == 40
    assert grids(3) == found[:3]
    assert not is_solved_grid("123456789" * 9)


def test_solutions_are_those_of_a_known_puzzle() -> None:
    (solution,) = solutions(HARDEST)
    assert is_solved_grid(solution)
    assert all(clue in ("0", digit) for clue, digit in zip(HARDEST, solution, strict=True))
    # Without one clue there are more; with a wrong one, and with two equal clues in a row, none.
    assert len(solutions("0" + HARDEST[1:])) == 2
    other = next(d for d in "123456789" if d not in solution[1] + "8367" and d not in (HARDEST[10], HARDEST[28]))
    assert solutions(HARDEST[0] + other + HARDEST[2:]) == []
    assert solutions("11" + "0" * 79) == []


def test_the_solver_finds_both_grids_of_a_puzzle_with_two() -> None:
    """Two digits in the corners of a rectangle that spans two boxes can be swapped."""
    rng = random.Random(0)
    for grid in grids(200):
        for row, other in ((0, 1), (0, 2), (1, 2)):
            for one in range(9):
                for two in range(one // 3 * 3 + 3, 9):
                    cells = [9 * row + one, 9 * row + two, 9 * other + one, 9 * other + two]
                    a, b, c, d = (grid[cell] for cell in cells)
                    if a == d and b == c:
                        puzzle = "".join("0" if i in cells else digit for i, digit in enumerate(grid))
                        swapped = "".join({a: b, b: a}[x] if i in cells else x for i, x in enumerate(grid))
                        assert sorted(solutions(puzzle, limit=5)) == sorted((grid, swapped))
                        assert random_puzzle(grid, 48, rng) != puzzle
                        return
    raise AssertionError("no grid has such a rectangle")


@pytest.mark.parametrize(("low", "high"), [(4, 8), (20, 30), (48, 48)])
def test_puzzles_have_one_solution_and_keep_to_the_number_of_blanks(low: int, high: int) -> None:
    for row in Sudoku9(min_blanks=low, max_blanks=high).rows("train", 12):
        assert low <= row["puzzle"].count("0") <= high
        assert solutions(row["puzzle"], limit=2) == [row["answer"]]
        assert row["prompt"] == row["puzzle"] + "="


def test_the_first_items_never_change() -> None:
    assert stable_hash(Sudoku9().row("train", 0, 0)["prompt"]) == 6781826384573025093
    assert [split_of_grid(grid) for grid in grids(8)] == [
        "test",
        "validation",
        "train",
        "train",
        "validation",
        "test",
        "train",
        "validation",
    ]


@pytest.mark.parametrize("name", SYMMETRIES)
def test_a_symmetry_keeps_the_orbit_and_the_split(name: str) -> None:
    rng = random.Random(1)
    changed = 0
    for grid in grids(20):
        image = SYMMETRIES[name](grid, rng)
        assert is_solved_grid(image)
        changed += image != grid
        assert orbit_key(image) == orbit_key(grid)
        assert split_of_grid(image) == split_of_grid(grid)
    assert changed >= 15


def test_a_split_by_grid_or_by_relabelled_grid_would_cross_orbits() -> None:
    """Negative control: hashes of what is not invariant put images of a grid into other splits."""

    def relabelled(grid: str) -> str:
        return grid.translate(str.maketrans(grid[:9], "123456789"))

    rng = random.Random(2)
    crossed = {"grid": 0, "relabelled": 0, "orbit": 0}
    for grid in grids(60):
        image = grid
        for change in SYMMETRIES.values():
            image = change(image, rng)
        for name, key in (("grid", str), ("relabelled", relabelled), ("orbit", orbit_key)):
            crossed[name] += stable_hash(key(grid)) % 10 != stable_hash(key(image)) % 10
    assert crossed["orbit"] == 0
    assert crossed["grid"] > 40
    assert crossed["relabelled"] > 40


def test_the_key_tells_orbits_apart() -> None:
    """Negative control: the key is not the same for all grids, nor after a change that is no symmetry."""
    found = grids(150)
    assert len({orbit_key(grid) for grid in found}) > 140
    moved = [lines_moved(grid, [3, 1, 2, 0, *range(4, 9)]) for grid in found[:20]]
    assert sum(orbit_key(a) != orbit_key(b) for a, b in zip(found, moved, strict=False)) >= 19


def test_no_orbit_occurs_in_two_splits() -> None:
    task = Sudoku9(min_blanks=4, max_blanks=8)
    keys = [{orbit_key(row["answer"]) for row in task.rows(split, 40)} for split in ("train", "validation", "test")]
    assert all(len(of_split) > 36 for of_split in keys)
    assert all(a.isdisjoint(b) for a, b in itertools.combinations(keys, 2))


ROW = {"puzzle": "0" * 4 + GRID[4:], "answer": GRID}


def test_the_reward_is_the_share_of_blank_cells_that_are_right() -> None:
    task = Sudoku9()
    assert task.score(GRID, ROW) == 1.0
    assert task.score("7918" + GRID[4:-1] + "5", ROW) == 1.0
    assert not task.solved(GRID[:-1] + "5", ROW)
    assert task.score("7922" + GRID[4:], ROW) == 0.5
    assert task.score("7", ROW) == 0.25
    assert task.score(ROW["puzzle"], ROW) == 0.0
    assert task.score(GRID + "1", ROW) == 1.0
    assert not task.solved(GRID + "1", ROW)
    assert Sudoku9(sparse=True).score("7922" + GRID[4:], ROW) == 0.0
    assert task.measures("7922" + GRID[4:], ROW) == {"cells": 0.5}


ORDINALS = ["1st", "2nd", "3rd", *(f"{i}th" for i in range(4, 10))]
ROWS_OF_GRID = [GRID[i : i + 9] for i in range(0, 81, 9)]


@pytest.mark.parametrize(
    "answer",
    [
        GRID,
        "\n".join(ROWS_OF_GRID),
        "\n".join(" ".join(row) for row in ROWS_OF_GRID),
        "\n".join(f"Row {i}: {row}" for i, row in enumerate(ROWS_OF_GRID, 1)),
        "\n".join(f"{i}. {row}" for i, row in enumerate(ROWS_OF_GRID, 1)),
        "\n".join(f"{name} row: {row}" for name, row in zip(ORDINALS, ROWS_OF_GRID, strict=True)),
        "\n".join("| " + " | ".join(row) + " |" for row in ROWS_OF_GRID),
        f"The 9x9 grid of 81 digits from 1 to 9 is {GRID}.",
        f"Puzzle: {ROW['puzzle']}\nSolution: {GRID}",
    ],
)
def test_a_solved_grid_is_read_as_models_write_it(answer: str) -> None:
    assert Sudoku9(format="tagged").solved(f"<answer>{answer}</answer>", ROW)


@pytest.mark.parametrize(
    "answer", [GRID[:-1], GRID + GRID, f"not {GRID}", f"{GRID}?", f"{GRID} or {GRID[::-1]}", GRID[::-1], ROW["puzzle"]]
)
def test_a_grid_that_is_wrong_doubtful_or_one_of_two_is_not_solved(answer: str) -> None:
    assert not Sudoku9(format="tagged").solved(f"<answer>{answer}</answer>", ROW)


def test_a_sloppy_demonstration_respects_the_clues_of_its_rows_only() -> None:
    task, rng = Sudoku9(), random.Random(0)
    wrong = 0
    for row in task.rows("train", 10):
        text = task.demonstration(row, rng, sloppy=True)
        for i, clue in enumerate(row["puzzle"]):
            start = i - i % 9
            assert text[i] == clue or (clue == "0" and text[i] not in row["puzzle"][start : start + 9])
        wrong += not is_solved_grid(text)
    assert wrong == 10

"""Verdicts of the graders on real completions and written answers, against a careful reader's.

    python -m benchmark.real_outputs --data ../shared/data                     # writes benchmark/results/real_outputs.md
    python -m benchmark.real_outputs --data ../shared/data --task gsm8k --show  # one task, with every difference

The folder holds `llada8b_generations.jsonl`, completions of LLaDA-8B-Instruct, and
`grader_cases.jsonl`, correct and wrong answers in the forms in which models write them. Each line
has a task, the columns that the task compares with, a completion and `right`, the verdict of the
reader. A Sudoku also has `cells`, the share of the blank cells that are correct.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from unmask.core.records import Row
from unmask.tasks import Arithmetic, Countdown, ProgramFromExamples, Sudoku
from unmask.tasks.base import Task
from unmask.tasks.gsm8k import GSM8K
from unmask.tasks.hendrycks_math import Math
from unmask.tasks.program import HIDDEN
from unmask.tasks.sudoku import all_grids

RESULTS = Path(__file__).parent / "results" / "real_outputs.md"
GENERATIONS, CASES = "llada8b_generations.jsonl", "grader_cases.jsonl"


def sudoku_row(line: Row) -> Row:
    """Return the columns of a Sudoku: its puzzle and solution, which the lines of cases lack."""
    puzzle = line["puzzle"]
    solutions = [
        grid for grid in all_grids() if all(clue in ("0", digit) for clue, digit in zip(puzzle, grid, strict=True))
    ]
    return {"puzzle": puzzle, "answer": line.get("answer") or solutions[0]}


def arithmetic_row(line: Row) -> Row:
    """Return the columns of a sum such as 3+4-9: its running results."""
    numbers = [int(part) for part in line["prompt"].replace("+", " +").replace("-", " -").split()]
    return {"running": list(accumulate(numbers))[1:]}


def program_row(line: Row) -> Row:
    """Return the columns of an expression in x: its values at the hidden inputs."""
    return {"hidden": [[x, eval(line["expression"], {"x": x})] for x in HIDDEN]}


TASKS: dict[str, tuple[Task, Callable[[Row], Row]]] = {
    "gsm8k": (GSM8K(), lambda line: {"answer": line["answer"]}),
    "math": (Math(test_source=None), lambda line: {"answer": line["answer"]}),
    "math500": (Math(test_source=None), lambda line: {"answer": line["answer"]}),
    "countdown": (Countdown(format="tagged"), lambda line: {"numbers": line["numbers"], "target": line["target"]}),
    "arithmetic": (Arithmetic(format="tagged"), arithmetic_row),
    "sudoku": (Sudoku(format="tagged"), sudoku_row),
    "program": (ProgramFromExamples(format="tagged"), program_row),
}
"""Task for the lines of each name, and the function that makes its columns from a line."""


def verdicts(lines: Sequence[Row]) -> list[bool]:
    """Return for each completion, all of one task, whether it earns the full reward."""
    task, columns = TASKS[lines[0]["task"]]
    rows = [columns(line) for line in lines]
    if isinstance(task, Sudoku):  # Its reward counts only the blank cells.
        return [task.solved(line["completion"], row) for line, row in zip(lines, rows, strict=True)]
    (reward,) = task.rewards().values()
    given = {name: [row[name] for row in rows] for name in rows[0]}
    scores = reward(prompts=[None] * len(lines), completions=[line["completion"] for line in lines], **given)
    return [score == 1.0 for score in scores]


def cell_differences(lines: Sequence[Row]) -> list[Row]:
    """Return the Sudokus with 16 digits whose share of correct cells differs from the reader's."""
    task, columns = TASKS["sudoku"]
    judged = [line for line in lines if line.get("cells") is not None]
    return [
        line for line in judged if abs(task.measures(line["completion"], columns(line))["cells"] - line["cells"]) > 1e-3
    ]


def read(path: Path) -> dict[str, list[Row]]:
    """Return the lines of a file by task."""
    by_task: dict[str, list[Row]] = {}
    for text in path.read_text(encoding="utf-8").splitlines():
        line: Row = json.loads(text)
        by_task.setdefault(line["task"], []).append(line)
    return by_task


def table(name: str, by_task: dict[str, list[Row]], show: bool) -> str:
    """Return Markdown with a line for each task of a file."""
    lines = [
        "| completions | task | right | right, not paid | wrong | wrong, paid | differ | cells differ |",
        "|---" * 8 + "|",
    ]
    for task, rows in sorted(by_task.items()):
        paid = verdicts(rows)
        denied = [row for row, given in zip(rows, paid, strict=True) if row["right"] and not given]
        overpaid = [row for row, given in zip(rows, paid, strict=True) if not row["right"] and given]
        right = sum(row["right"] for row in rows)
        cells = cell_differences(rows) if task == "sudoku" else []
        lines.append(
            f"| {name} | {task} | {right} | {len(denied)} | {len(rows) - right} | {len(overpaid)} "
            f"| {(len(denied) + len(overpaid)) / len(rows):.2%} | {len(cells) if task == 'sudoku' else ''} |"
        )
        if show:
            print(*(described("not paid", row) for row in denied), sep="\n")
            print(*(described("PAID", row) for row in overpaid), sep="\n")
            print(*(described("cells", row) for row in cells), sep="\n")
    return "\n".join(lines)


def described(what: str, row: Row) -> str:
    """Return a line about a difference: the gold columns and the end of the completion."""
    gold: dict[str, Any] = {
        k: v for k, v in row.items() if k not in ("question", "completion", "kind", "length", "right")
    }
    text = row["completion"].replace("<|endoftext|>", "")
    return f"{what}: {gold} {text[-300:]!r}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help=f"folder of {GENERATIONS} and {CASES}")
    parser.add_argument("--task", help="judge only the lines of this task, and write no file")
    parser.add_argument("--show", action="store_true", help="print every difference")
    arguments = parser.parse_args()
    found = []
    for name, file in (("LLaDA-8B-Instruct", GENERATIONS), ("written cases", CASES)):
        by_task = read(arguments.data / file)
        if arguments.task:
            by_task = {task: rows for task, rows in by_task.items() if task == arguments.task}
        if by_task:
            found.append(table(name, by_task, arguments.show))
    text = "\n\n".join(found)
    if not arguments.task:
        RESULTS.write_text(f"`python -m benchmark.real_outputs --data FOLDER`\n\n{text}\n")
    print(text)

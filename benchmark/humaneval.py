"""HumanEval and MBPP in the sandboxes: `python -m benchmark.humaneval [HUMANEVAL [MBPP]]`.

Correct programs must pass, and programs with one wrong character must fail, all of it quickly. The
files are local ones with the hub's columns, by default those of ../shared/data.
"""

from __future__ import annotations

import ast
import io
import sys
import time
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from unmask.rewards.grading.syntax import parse
from unmask.rewards.sandbox import SandboxConfig, make_sandbox
from unmask.tasks import MBPP, HumanEval

DEFAULT_FILES = ["../shared/data/humaneval_test.jsonl", "../shared/data/mbpp_test.parquet"]
RESULTS = Path(__file__).parent / "results" / "humaneval.md"
SWAPS = {"+": "-", "-": "+", "*": "+", "/": "*", "%": "+", "<": ">", ">": "<", "=": "!", "!": "="} | {
    str(digit): str((digit + 1) % 10) for digit in range(10)
}
"""Replacements of one character of logic in operators and numbers; "==" and "!=" change in their
first character."""

MAX_CHANGES = 12
"""Maximum number of changes to try for a problem."""


def mutations(code: str) -> Iterator[str]:
    """Yield a function's body with one character of an operator, number or text changed."""
    lines = ("def f():\n" + code).splitlines(keepends=True)
    for token in tokenize.generate_tokens(io.StringIO("".join(lines)).readline):
        (row, column), text = token.start, token.string
        if token.type == tokenize.STRING and len(text) > 2 and text[1].isalnum():
            column, swapped = column + 1, chr(ord(text[1]) ^ 1)
        elif token.type in (tokenize.NUMBER, tokenize.OP) and text not in ("=", "->") and text[0] in SWAPS:
            swapped = SWAPS[text[0]]
        else:
            continue
        line = lines[row - 1]
        changed = [*lines[: row - 1], line[:column] + swapped + line[column + 1 :], *lines[row:]]
        if parse("".join(changed)):
            yield "".join(changed[1:])


def canonical(task: HumanEval, rows: Sequence[Any]) -> tuple[Counter[str], float]:
    """Return the statuses of the canonical solutions, and the time in seconds."""
    start = time.monotonic()
    results = make_sandbox(task.sandbox).run([task.job(row["answer"], row) for row in rows])  # type: ignore[misc]
    return Counter(result.status for result in results), time.monotonic() - start


def caught(task: HumanEval, rows: Sequence[Any]) -> tuple[int, int, list[str]]:
    """Return the numbers of problems that can be changed and that fail then, and the others."""
    changeable, found, missed = 0, 0, []
    for row in rows:
        tries = [mutation for mutation, _ in zip(mutations(row["answer"]), range(MAX_CHANGES), strict=False)]
        changeable += bool(tries)
        results = task.results(tries, [row] * len(tries))
        is_caught = any(result is not None and not result.passed and result.is_supported for result in results)
        found += is_caught
        if tries and not is_caught:
            missed.append(row["names"][0])
    return changeable, found, missed


def known_answers(row: Any) -> str | None:
    """Return a program that looks up its results in the row's assertions, or None."""
    cases = []
    for test in row["tests"]:
        match ast.parse(test).body:
            case [
                ast.Assert(
                    test=ast.Compare(left=ast.Call(func=ast.Name(), args=args), ops=[ast.Eq()], comparators=[value])
                )
            ]:
                cases.append(f"({ast.unparse(ast.Tuple(args, ast.Load()))}, {ast.unparse(value)})")
            case _:
                return None
    return (
        f"{row['setup']}\ndef {row['names'][0]}(*args):\n    for known, value in [{', '.join(cases)}]:\n"
        "        if known == args:\n            return value\n"
    )


def mbpp(task: MBPP, rows: Sequence[Any]) -> tuple[Counter[str], Counter[str]]:
    """Return statuses of tests for an empty program, and of rows for one that knows the answers."""
    empty = ["".join(f"def {name}(*args):\n    return None\n" for name in row["names"]) for row in rows]
    of_tests = Counter(v.status for result in task.results(empty, rows) if result for v in result.verdicts)
    known = [(row, code) for row in rows if (code := known_answers(row))]
    results = task.results([code for _, code in known], [row for row, _ in known])
    of_rows = Counter(result.status for result in results if result)
    return of_tests, of_rows


def main(arguments: Sequence[str]) -> None:
    """Measure, print and write the table."""
    files = [*arguments, *DEFAULT_FILES[len(arguments) :]]
    warnings.simplefilter("ignore")
    lines = ["Made by `python -m benchmark.humaneval`.", ""]
    lines += ["| HumanEval, canonical solutions | passed | other | seconds |", "|---|---|---|---|"]
    for backend in ("monty", "bubblewrap", "auto"):
        task = HumanEval(source=files[0], format="bare", sandbox=SandboxConfig(backend=backend))  # type: ignore[arg-type]
        rows = task.rows("test", 10_000)
        counts, seconds = canonical(task, rows)
        other = ", ".join(f"{count} {status}" for status, count in counts.items() if status != "passed") or "none"
        lines.append(f"| {backend} | {counts['passed']} of {len(rows)} | {other} | {seconds:.1f} |")
    task = HumanEval(source=files[0], format="bare", sandbox=SandboxConfig(backend="auto", timeout=1.0))
    changeable, found, missed = caught(task, task.rows("test", 10_000))
    lines += [
        "",
        f"One character of an operator, a number or a text changed, in up to {MAX_CHANGES} ways a problem (`auto`): of "
        f"{changeable} solutions that have one, {found} fail for at least one change. Not caught: {', '.join(missed) or 'none'}.",
        "",
    ]
    task_mbpp = MBPP(source=files[1], test_source=files[1], format="bare", sandbox=SandboxConfig(backend="auto"))
    rows_mbpp = task_mbpp.rows("test", 10_000)
    start = time.monotonic()
    of_tests, of_rows = mbpp(task_mbpp, rows_mbpp)
    seconds = time.monotonic() - start
    lines += [
        f"MBPP, {len(rows_mbpp)} test lists, each run twice (`auto`), {seconds:.1f} s. Single tests, of a program that "
        f"returns None: {_counts(of_tests)}. Rows, of a program that knows their answers: {_counts(of_rows)}.",
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    RESULTS.write_text(text)


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {status}" for status, count in counts.most_common())


if __name__ == "__main__":
    main(sys.argv[1:])

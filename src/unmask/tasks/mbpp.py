"""MBPP (arXiv:2108.07732): short Python problems of one sentence and about three assertions."""

from __future__ import annotations

import ast
import builtins
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from unmask.core.errors import DataError
from unmask.rewards.grading.syntax import free_names, parse
from unmask.tasks.code import CodeTask, code_text
from unmask.tasks.source import is_file

if TYPE_CHECKING:
    from unmask.core.records import Row

_MODULES = {"cmath", "collections", "datetime", "math", "re"}
"""Modules of the standard library that some assertions use without importing them."""


class MBPP(CodeTask):
    """Short problems in which each assertion is a test.

    As in the benchmark, the prompt shows the assertions, because they are the only source of the
    function's name.

    Columns: `text` (`prompt` in the sanitized version of the data set), `test_list`, and optionally
    `code`, `test_setup_code` or `test_imports`.
    """

    type: Literal["mbpp"] = "mbpp"
    source: str = "google-research-datasets/mbpp:full"
    """Training rows: a data set of the hub (its split "train"), or a .parquet, .jsonl or .csv
    file."""
    test_source: str | None = None
    """Test rows; default: the split "test" of a hub source, or a fifth of a file's rows."""

    carves_test: ClassVar[bool] = True

    def sources(self) -> tuple[str, str | None]:
        return self.source, self.test_source or (None if is_file(self.source) else self.source)

    def build(self, raw: Row, place: str) -> Row:
        problem, tests, setup = raw.get("text") or raw.get("prompt"), _texts(raw.get("test_list")), _setup(raw)
        asserted, prepared = parse("\n".join(tests)), parse(setup)
        if not isinstance(problem, str) or not tests or asserted is None or prepared is None:
            raise DataError(
                f'{place} needs a problem in the column "text" (or "prompt") and Python assertions in "test_list". '
                f"It has {str(problem)[:40]!r} and {str(raw.get('test_list'))[:80]!r}."
            )
        # The setup code may use a class that the program defines, such as a tree.
        free = free_names(ast.Module([*prepared.body, *asserted.body], []))
        # One problem defines a function called sum.
        free = free - set(dir(builtins)) or set(_first_call(asserted))
        imports = "".join(f"import {name}\n" for name in sorted(free & _MODULES))
        shown = "\n".join(tests)
        instruction = code_text("assertions").replace("{tests}", shown).replace("{problem}", problem.strip())
        return {
            "prompt": self.prompt(f'"""\n{problem.strip()}\n{shown}\n"""\n', instruction),
            "answer": str(raw.get("code") or ""),
            "question": problem,
            "names": sorted(free - _MODULES),
            "setup": imports + setup,
            "tests": tests,
        }

    def key(self, row: Row) -> str:
        """Return the text of the problem."""
        return str(row["question"])


def _first_call(tree: ast.Module) -> list[str]:
    """Return the name of the function that the first assertion calls, in a list."""
    calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return [function.id for function in calls if isinstance(function, ast.Name)][:1]


def _texts(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list | tuple) else []


def _setup(raw: Row) -> str:
    return "\n".join([*_texts(raw.get("test_imports")), str(raw.get("test_setup_code") or "")])

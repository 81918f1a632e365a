"""HumanEval (arXiv:2107.03374): complete a Python function. All 164 problems are for test."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, ClassVar, Literal

from unmask.core.errors import DataError
from unmask.rewards.grading.extract import code_in, continued, is_indented
from unmask.rewards.grading.syntax import MAX_CODE, defined_names, parse, returns
from unmask.rewards.sandbox import SandboxJob
from unmask.tasks.code import CodeTask, code_text
from unmask.tasks.maths import text_column

if TYPE_CHECKING:
    from unmask.core.records import Row


class HumanEval(CodeTask):
    """Functions to complete from their signature and docstring, which are the bare prompt.

    All assertions in the benchmark's function `check` count as one test, so that `solved` is the
    benchmark's pass@1. There are no training rows.

    Columns: `prompt`, `entry_point`, `test`, and `canonical_solution`.
    """

    type: Literal["humaneval"] = "humaneval"
    source: str = "openai/openai_humaneval"
    """Test rows: a data set of the hub, or a .parquet, .jsonl or .csv file."""

    reward_columns: ClassVar[tuple[str, ...]] = ("tests", "names", "setup", "prelude", "start")

    def sources(self) -> tuple[None, str]:
        return None, self.source

    def build(self, raw: Row, place: str) -> Row:
        start, name = text_column(raw, "prompt", place), text_column(raw, "entry_point", place)
        tree = parse(start)
        if tree is None or name not in defined_names(tree):
            raise DataError(f'{place}: the column "prompt" holds {start[:60]!r}, not the beginning of {name!r}.')
        # The imports and helpers before the function belong to the problem, and the tests use them
        # too.
        before = [node for node in tree.body if not (isinstance(node, ast.FunctionDef) and node.name == name)]
        prelude = ast.unparse(ast.Module(before, [])) + "\n"
        return {
            "prompt": self.prompt(start, code_text("complete").replace("{problem}", start.strip())),
            "answer": str(raw.get("canonical_solution") or ""),
            "start": start,
            "prelude": prelude,
            "names": [name],
            "setup": f"{prelude}\n{text_column(raw, 'test', place)}",
            "tests": [f"check({name})"],
        }

    def key(self, row: Row) -> str:
        """Return the beginning of the function, which identifies the problem."""
        return str(row["start"])

    def job(self, answer: str, row: Row) -> SandboxJob | None:
        """Return the whole function after the problem's imports and helpers.

        If the answer does not define the function, it counts as a continuation of the prompt.
        """
        code = code_in(answer, row["names"])
        if not code.strip() or len(code) > MAX_CODE:
            return None
        tree = parse(code)
        if tree is not None and row["names"][0] in defined_names(tree) and not returns(tree):
            program = row["prelude"] + code
        else:
            # A fence in a continuation of the prompt comes after the function.
            rest = answer if is_indented(answer) else code
            program = continued(row["start"], rest, is_exact=self.format == "bare")
        return self.tested(program, row)

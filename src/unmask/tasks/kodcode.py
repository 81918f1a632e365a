"""KodCode (arXiv:2503.02951): synthetic coding problems, on which arXiv:2603.12554 trains."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, ClassVar, Literal

from unmask.rewards.grading.syntax import parse
from unmask.rewards.sandbox import SandboxConfig
from unmask.tasks.code import CodeTask, code_text
from unmask.tasks.maths import text_column

if TYPE_CHECKING:
    from unmask.core.records import Row

_TESTED_MODULE = "solution"


class KodCode(CodeTask):
    """Synthetic coding problems. Each test function of a problem's pytest file is one test.

    Problems without a test that Python can parse are left out. The prompt contains the names that
    the tests import from `solution`, because an answer with other names fails the tests. The
    released code renames the function of the answer instead.

    Columns: `question`, `test`, and `solution`.
    """

    type: Literal["kodcode"] = "kodcode"
    source: str = "KodCode/KodCode-Light-RL-10K"
    """Training rows: a data set of the hub (its split "train"), or a .parquet, .jsonl or .csv
    file."""
    test_source: str | None = None
    """Test rows; default: a fifth of the rows of `source`."""
    sandbox: SandboxConfig = SandboxConfig(backend="auto")
    """Sandbox in which programs run. Pytest files need more of Python than monty (a restricted
    Python interpreter) supports, so the default is `auto`."""

    carves_test: ClassVar[bool] = True

    def sources(self) -> tuple[str, str | None]:
        return self.source, self.test_source

    def build(self, raw: Row, place: str) -> Row | None:
        question, tree = text_column(raw, "question", place).strip(), parse(text_column(raw, "test", place))
        if tree is None or not (tests := _test_calls(tree)):
            return None
        names = _imported(tree)
        setup = [node for node in tree.body if not _is_of_solution(node)]
        instruction = code_text("write").replace("{names}", ", ".join(names) or "what it asks for")
        return {
            "prompt": self.prompt(
                f'"""\n{question}\nDefine: {", ".join(names)}\n"""\n', instruction.replace("{problem}", question)
            ),
            "answer": str(raw.get("solution") or ""),
            "question": question,
            "names": names,
            "setup": ast.unparse(ast.Module(setup, [])),
            "tests": tests,
        }

    def key(self, row: Row) -> str:
        """Return the question."""
        return str(row["question"])


def _is_of_solution(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == _TESTED_MODULE


def _imported(tree: ast.Module) -> list[str]:
    """Return the names that a pytest file imports from `solution`."""
    found = (node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == _TESTED_MODULE)
    return sorted({alias.name for node in found for alias in node.names} - {"*"})


def _test_calls(tree: ast.Module) -> list[str]:
    """Return a statement that runs each test of a pytest file. Tests are functions, which may be
    parametrized, and methods."""
    calls: list[str] = []
    for node in tree.body:
        match node:
            case ast.FunctionDef(name=name, decorator_list=marks) if name.startswith("test"):
                # The sandbox's `run_test` handles pytest's marks. Monty supports neither `run_test`
                # nor marks.
                calls.append(f"run_test({name})" if marks else f"{name}()")
            case ast.ClassDef(name=name, bases=bases, body=body) if name.startswith("Test") or bases:
                methods = [n.name for n in body if isinstance(n, ast.FunctionDef) and n.name.startswith("test")]
                calls += [f"{name}({m!r}).debug()" if bases else f"{name}().{m}()" for m in methods]
    return calls

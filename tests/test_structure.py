"""The package has few entries, and test modules are independent of each other: what two of them share lives in
`tests/helpers` or in a fixture."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.helpers.longest import LONGEST
from tests.helpers.paths import ROOT

FILES = sorted((ROOT / "tests").rglob("*.py"))

MOST_ENTRIES = 15
"""Maximum number of files and folders at the top of the package."""
LONGEST_FILE = 400
"""Maximum number of lines of a file of the package."""
LONGEST_FUNCTION = 60
"""Maximum number of lines of a function, besides its docstring."""


def test_the_top_of_the_package_fits_one_glance() -> None:
    entries = {path.name for path in (ROOT / "src" / "unmask").iterdir()} - {"__pycache__"}
    assert len(entries) <= MOST_ENTRIES, sorted(entries)


def long_functions(source: str) -> list[str]:
    """Return the names of the functions of a file that are too long."""
    return [
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and _lines(node) - (_lines(node.body[0]) if ast.get_docstring(node) else 0) > LONGEST_FUNCTION
    ]


def _lines(node: ast.stmt) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def test_files_and_functions_of_the_package_are_short() -> None:
    sources = {file: file.read_text(encoding="utf-8") for file in (ROOT / "src" / "unmask").rglob("*.py")}
    assert {
        file.name: source.count("\n") for file, source in sources.items() if source.count("\n") > LONGEST_FILE
    } == {}
    assert {file.name: found for file, source in sources.items() if (found := long_functions(source))} == {}


def test_a_long_function_is_reported_and_a_long_docstring_is_not() -> None:
    lines = "".join(f"        x = {i}\n" for i in range(LONGEST_FUNCTION - 2))
    text = '''        """One.\n\n        Two.\n        """\n'''
    short, long = (
        f"    def f(self):\n{text}{lines}        return x\n",
        f"    def g(self):\n{lines}        return x\n\n        y = 2\n",
    )
    assert long_functions(f"class A:\n{short}\n{long}") == ["g"]


def imports_of_tests(source: str) -> list[str]:
    """Return the names that a file imports from the tests, except from their helpers."""
    names = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=aliases):
                names += [alias.name for alias in aliases]
            case ast.ImportFrom(module=module, names=aliases, level=level):
                names += [f"{'tests.' * bool(level)}{module or ''}.{alias.name}" for alias in aliases]
    return [name for name in names if name.startswith("tests.") and not name.startswith("tests.helpers.")]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT / "tests")))
@pytest.mark.slow
def test_no_test_module_imports_another(file: Path) -> None:
    assert imports_of_tests(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("from tests.trainer.test_loop import run", ["tests.trainer.test_loop.run"]),
        ("def f():\n    import tests.conftest", ["tests.conftest"]),
        ("from .test_loop import run", ["tests.test_loop.run"]),
        ("from tests.helpers.runs import metrics\nfrom tests.helpers import toy\nimport torch", []),
    ],
)
def test_an_import_of_a_test_module_is_reported(source: str, names: list[str]) -> None:
    assert imports_of_tests(source) == names


def test_the_files_that_start_first_are_there() -> None:
    assert [name for name in LONGEST if not (ROOT / name).is_file()] == []

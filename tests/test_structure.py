"""The package has few entries, and test modules are independent of each other: what two of them share lives in
`tests/helpers` or in a fixture."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

FILES = sorted((ROOT / "tests").rglob("*.py"))

MOST_ENTRIES = 15
"""Maximum number of files and folders at the top of the package."""


def test_the_top_of_the_package_fits_one_glance() -> None:
    entries = {path.name for path in (ROOT / "src" / "unmask").iterdir()} - {"__pycache__"}
    assert len(entries) <= MOST_ENTRIES, sorted(entries)


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

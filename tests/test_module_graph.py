"""The graph of the package's parts has no cycle and few arrows, and the script that prints it counts correctly."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from benchmark.module_graph import cycle_of, graph_of, lines_of_code, table

MOST_ARROWS = 109
"""Largest number of arrows between the parts of the package."""


@pytest.mark.slow
def test_the_parts_of_the_package_have_no_cycle_and_few_arrows() -> None:
    graph = graph_of()
    assert cycle_of(graph) == []
    assert 0 < sum(map(len, graph.values())) <= MOST_ARROWS


def write(folder: Path, **sources: str) -> Path:
    """Write a small package of one-line modules."""
    for name, source in sources.items():
        (folder / f"{name}.py").write_text(source)
    return folder


def test_every_kind_of_import_is_an_arrow(tmp_path: Path) -> None:
    package = write(
        tmp_path,
        __init__="from . import a",
        a="import unmask.b\nfrom unmask.b import x",
        b="def f():\n    from .c import y",
        c="from unmask import __version__\nimport math",
        d="importlib.import_module('unmask.a')\nfrom unmask import Trainer",
    )
    assert graph_of(package) == {
        "__init__": Counter(a=1),
        "a": Counter(b=2),
        "b": Counter(c=1),
        "c": Counter(),
        "d": Counter(a=1, __init__=1),
    }
    assert table(package).splitlines()[-1] == "5 parts, 9 lines of code, 5 arrows, no cycle"


def test_a_cycle_is_reported(tmp_path: Path) -> None:
    package = write(tmp_path, __init__="", a="from unmask import b", b="from unmask.c import x", c="import unmask.a")
    assert set(cycle_of(graph_of(package))) == {"a", "b", "c"}
    assert "a cycle: " in table(package)


def test_a_line_of_code_is_no_blank_line_comment_or_docstring() -> None:
    source = (
        '"""One\ntwo."""\n\n# Three\nx = (\n    1\n)\n"""Four."""\n\n\ndef f():\n    """Five."""\n    return """\n"""\n'
    )
    assert lines_of_code(source) == 3 + 1 + 2

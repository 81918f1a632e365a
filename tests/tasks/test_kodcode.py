"""KodCode: pytest files as tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unmask.core.errors import ConfigError, DataError
from unmask.rewards.sandbox import SandboxConfig, make_sandbox
from unmask.tasks import KodCode

ROW = {
    "question": "Write Stack with push and pop; pop of an empty one raises IndexError. And double.",
    "solution": (
        "class Stack:\n    def __init__(self):\n        self.items = []\n    def push(self, x):\n        self.items.append(x)\n"
        "    def pop(self):\n        return self.items.pop()\ndef double(x):\n    return 2 * x\n"
    ),
    "test": """
import pytest
from solution import Stack, double

def test_order():
    s = Stack()
    s.push(1)
    s.push(2)
    assert s.pop() == 2 and s.pop() == 1

def test_empty():
    with pytest.raises(IndexError):
        Stack().pop()

@pytest.mark.parametrize('x, y', [(1, 2), (0.5, pytest.approx(1.0))])
def test_double(x, y):
    assert double(x) == y

class TestMore:
    def test_zero(self):
        assert double(0) == 0
""",
}


def task_of(tmp_path: Path, *rows: dict[str, Any]) -> KodCode:
    try:
        make_sandbox(SandboxConfig(backend="bubblewrap"))
    except ConfigError as error:
        pytest.skip(str(error))
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return KodCode(source=str(file), test_source=str(file))


@pytest.mark.slow
def test_each_test_function_counts(tmp_path: Path) -> None:
    task = task_of(tmp_path, ROW)
    row = task.rows("test", 1)[0]
    assert row["tests"] == ["test_order()", "test_empty()", "run_test(test_double)", "TestMore().test_zero()"]
    assert row["names"] == ["Stack", "double"]
    assert task.score(ROW["solution"], row) == 1.0
    assert task.score(ROW["solution"].replace("2 * x", "x"), row) == 0.75
    assert task.score(ROW["solution"].replace("self.items.pop()", "self.items.pop(0)"), row) == 0.75
    assert task.score("def double(x):\n    return 2 * x", row) == 0.5


def test_the_names_that_the_tests_want_stand_in_the_prompt(tmp_path: Path) -> None:
    prompt = str(task_of(tmp_path, ROW).rows("test", 1)[0]["prompt"])
    assert "Stack, double" in prompt
    assert ROW["question"] in prompt


def test_unittest_classes_are_run_too(tmp_path: Path) -> None:
    test = """
import unittest
from solution import double

class TestDouble(unittest.TestCase):
    def setUp(self):
        self.x = 2

    def test_two(self):
        self.assertEqual(double(self.x), 4)
"""
    task = task_of(tmp_path, ROW | {"test": test})
    row = task.rows("test", 1)[0]
    assert task.score(ROW["solution"], row) == 1.0
    assert task.score("def double(x):\n    return 5", row) == 0.0


def test_problems_without_tests_are_left_out(tmp_path: Path) -> None:
    task = task_of(tmp_path, ROW, ROW | {"test": "print(1)"}, ROW | {"test": "def test_x(:"})
    assert len(task.rows("test", 10)) == 1
    assert task.provenance()["test"]["num_unusable"] == 2


def test_a_lacking_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match='"question"'):
        task_of(tmp_path, {"test": "def test_x(): pass"}).rows("test", 1)

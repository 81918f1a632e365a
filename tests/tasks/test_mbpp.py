"""MBPP: rows in both of its forms, splits, and the real test lists if they are available."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unmask.core.errors import ConfigError, DataError
from unmask.rewards.sandbox import SandboxConfig
from unmask.tasks import MBPP

REAL = Path("../shared/data/mbpp_test.parquet")
FULL = {
    "text": "Write a function to double.",
    "code": "def double(x):\n    return x * 2",
    "test_list": ["assert double(1) == 2", "assert math.isclose(double(0.5), 1.0)"],
    "test_setup_code": "",
}
SANITIZED = {
    "prompt": "Write a function to double.",
    "code": "def double(x):\n    return x * 2",
    "test_list": ["assert double(1) == ONE + ONE"],
    "test_imports": ["import math", "ONE = 1"],
}


def task_of(tmp_path: Path, *rows: dict[str, Any], **options: Any) -> MBPP:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return MBPP(source=str(file), test_source=str(file), **options)


@pytest.mark.parametrize("raw", [FULL, SANITIZED])
def test_the_reference_passes_in_both_forms_and_another_does_not(tmp_path: Path, raw: dict[str, Any]) -> None:
    task = task_of(tmp_path, raw)
    row = task.rows("test", 1)[0]
    assert row["names"] == ["double"]
    assert task.solved(raw["code"], row)
    assert not task.solved("def double(x):\n    return x * 3", row)


def test_the_prompt_shows_the_assertions(tmp_path: Path) -> None:
    for form in ("bare", "plain", "tagged"):
        prompt = str(task_of(tmp_path, FULL, format=form).rows("test", 1)[0]["prompt"])
        assert "assert double(1) == 2" in prompt
        assert FULL["text"] in prompt


def test_a_function_may_be_called_like_a_builtin(tmp_path: Path) -> None:
    task = task_of(tmp_path, FULL | {"test_list": ["assert sum(10, 15) == 6"]})
    row = task.rows("test", 1)[0]
    assert row["names"] == ["sum"]
    assert task.solved("def sum(a, b):\n    return 6", row)
    assert not task.solved("def total(a, b):\n    return 6", row)


def test_a_setup_may_build_its_data_from_a_class_of_the_program(tmp_path: Path) -> None:
    """Problem 367 of the hub's rows does this."""
    raw = {
        "text": "Write a function for the height of a tree.",
        "code": "class Node:\n    def __init__(self, x):\n        self.x, self.left = x, None\n\n"
        "def height(node):\n    return 1 + height(node.left) if node else 0\n",
        "test_setup_code": "root = Node(1)\nroot.left = Node(2)",
        "test_list": ["assert height(root) == 2"],
    }
    try:
        task = task_of(tmp_path, raw, sandbox=SandboxConfig(backend="bubblewrap"))
        row = task.rows("test", 1)[0]
        assert row["names"] == ["Node", "height"]
        assert task.solved(raw["code"], row)
    except ConfigError as error:
        pytest.skip(str(error))
    assert not task.solved(str(raw["code"]).replace("1 + ", "2 + "), row)


@pytest.mark.parametrize(
    "change", [{"text": None}, {"test_list": []}, {"test_list": "assert"}, {"test_list": ["assert f("]}]
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(DataError, match='(?s)rows.jsonl cannot be used:.*line 1 .*"test_list"'):
        task_of(tmp_path, FULL | change).rows("test", 1)


def test_a_file_alone_is_split_and_no_problem_is_in_two_splits(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(FULL | {"text": f"Problem {i}."}) for i in range(200)))
    task = MBPP(source=str(file))
    splits = {s: {row["question"] for row in task.rows(s, 1000)} for s in ("train", "validation", "test")}  # type: ignore[arg-type]
    assert sum(map(len, splits.values())) == len(set().union(*splits.values())) == 200
    assert 110 < len(splits["train"]) < 170
    assert 8 < len(splits["validation"]) < 40


def test_rows_without_reference_programs_can_be_trained_on_but_not_learnt_from(tmp_path: Path) -> None:
    import random

    task = task_of(tmp_path, FULL | {"code": None}, format="bare")
    row = task.rows("test", 1)[0]
    assert task.completion_length == 256
    assert set(row["prompt"]) <= set(task.alphabet)
    with pytest.raises(DataError, match="no reference programs"):
        task.demonstration(row, random.Random(0), sloppy=False)
    assert task_of(tmp_path, FULL, format="bare").completion_length == 1 + len(str(FULL["code"]))


@pytest.fixture(scope="module")
def real() -> MBPP:
    if not REAL.is_file():
        pytest.skip(f"the benchmark's rows are not at {REAL}")
    return MBPP(
        source=str(REAL),
        test_source=str(REAL),
        format="bare",
        sandbox=SandboxConfig(backend="monty", timeout=20.0, total_timeout=60.0, batch_timeout=600.0),
    )


@pytest.mark.slow
def test_all_500_test_lists_parse_and_run(real: MBPP) -> None:
    rows = real.rows("test", 1000)
    assert len(rows) == 500
    programs = ["".join(f"def {name}(*args):\n    return 'nothing'\n" for name in row["names"]) for row in rows]
    results = real.results(programs, rows)
    assert not any(result is None or result.passed for result in results)
    # Every assertion was reached: a wrong value fails it, or has a type that it cannot use.
    statuses = [verdict.status for result in results if result for verdict in result.verdicts]
    assert len(statuses) == sum(len(row["tests"]) for row in rows)
    assert statuses.count("failed") > 0.98 * len(statuses)
    # Three rows have a number as the message of an assertion, which monty cannot raise.
    assert set(statuses) == {"failed", "unsupported"}
    assert statuses.count("unsupported") == 6


def test_right_values_pass(real: MBPP) -> None:
    row = next(row for row in real.rows("test", 1000) if row["names"] == ["remove_Occ"])
    right = "def remove_Occ(s, ch):\n    i, j = s.find(ch), s.rfind(ch)\n    return s[:i] + s[i + 1 : j] + s[j + 1 :]\n"
    assert real.solved(right, row)
    assert not real.solved(right.replace("i + 1", "i + 2"), row)

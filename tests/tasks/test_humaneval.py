"""HumanEval: its rows as jobs, and the benchmark's own solutions if its rows are available."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unmask.core.errors import DataError
from unmask.rewards.sandbox import SandboxConfig, SandboxJob
from unmask.tasks import HumanEval

REAL = Path("../shared/data/humaneval_test.jsonl")
ROW = {
    "task_id": "Mine/0",
    "prompt": 'import math\n\ndef half(x):\n    return x / 2\n\n\ndef area(r):\n    """ Half a circle. """\n',
    "entry_point": "area",
    "canonical_solution": "    return half(math.pi * r ** 2)\n",
    "test": "def check(candidate):\n    assert half(candidate(2)) == math.pi\n    assert candidate(0) == 0\n",
}


def task_of(tmp_path: Path, *rows: dict[str, Any], **options: Any) -> HumanEval:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return HumanEval(source=str(file), **options)


def test_the_prompt_is_the_functions_beginning_or_an_instruction_with_it(tmp_path: Path) -> None:
    bare = task_of(tmp_path, ROW, format="bare").rows("test", 1)[0]
    assert bare["prompt"] == ROW["prompt"]
    (message,) = task_of(tmp_path, ROW).rows("test", 1)[0]["prompt"]
    assert message["role"] == "user"
    assert str(ROW["prompt"]).strip() in message["content"]
    assert "<answer>" in message["content"]
    assert task_of(tmp_path, ROW, format="plain").rows("test", 1)[0]["prompt"] == message["content"]


@pytest.mark.parametrize(
    "answer",
    [
        "    return half(math.pi * r ** 2)\n",
        "def area(r):\n    return half(math.pi * r ** 2)",
        "```python\ndef area(r):\n    return half(math.pi * r ** 2)\n```",
        "```python\nimport math\ndef half(x):\n    return 0.5 * x\ndef area(r):\n    return half(math.pi * r ** 2)\n```",
    ],
)
def test_an_answer_continues_the_prompt_or_writes_the_function_whole(tmp_path: Path, answer: str) -> None:
    task = task_of(tmp_path, ROW, format="bare")
    assert task.solved(answer, task.rows("test", 1)[0])


@pytest.mark.parametrize(
    "answer",
    [
        "<answer>\n    return half(math.pi * r ** 2)\n</answer>",
        " Sure!\n```python\ndef area(r):\n    return half(math.pi * r ** 2)```",
        "```python\nreturn half(math.pi * r ** 2)\n```",
        "<answer>\n    whole = math.pi * r ** 2\n    result = half(whole)\n    return result\n</answer>",
        "<answer>\n    area = 0\n    for _ in range(1):\n        area = half(math.pi * r ** 2)\n\n    return area\n</answer>",
        "Here it is:\n\ndef area(r):\n    return half(math.pi * r ** 2)\n\nThat's all.",
    ],
)
def test_a_right_answer_is_not_lost_to_its_wrapping(tmp_path: Path, answer: str) -> None:
    task = task_of(tmp_path, ROW)
    assert task.solved(answer, task.rows("test", 1)[0])


def test_helpers_of_the_problem_that_the_tests_use_are_the_problems_own(tmp_path: Path) -> None:
    """In the benchmark itself, an answer may redefine helpers that the tests use."""
    task = task_of(tmp_path, ROW, format="bare")
    forged = "def half(x):\n    return 3.141592653589793\ndef area(r):\n    return 0"
    assert not task.solved(forged, task.rows("test", 1)[0])


def test_there_is_nothing_to_train_on(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        with pytest.raises(DataError, match="only test rows"):
            task_of(tmp_path, ROW).rows(split, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"prompt": "def f("}, {"entry_point": "a b"}, {"test": None}, {"prompt": 3}])
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"1 of 1 rows of .*rows.jsonl cannot be used:\n  line 1[ :]"):
        task_of(tmp_path, ROW | change).rows("test", 1)


@pytest.fixture(scope="module")
def real() -> HumanEval:
    if not REAL.is_file():
        pytest.skip(f"the benchmark's rows are not at {REAL}")
    return HumanEval(
        source=str(REAL),
        format="bare",
        sandbox=SandboxConfig(backend="monty", timeout=20.0, total_timeout=60.0, batch_timeout=600.0),
    )


@pytest.mark.slow
def test_the_canonical_solutions_pass_or_are_unsupported_in_monty(real: HumanEval) -> None:
    rows = real.rows("test", 1000)
    results = real.results([row["answer"] for row in rows], rows)
    assert len(rows) == 164
    passed = sum(result is not None and result.passed for result in results)
    assert passed >= 162
    assert all(result is not None and (result.passed or result.status == "unsupported") for result in results)


@pytest.mark.slow
def test_solutions_with_an_operator_changed_fail(real: HumanEval) -> None:
    changed = [(row, row["answer"].replace(" < ", " > ")) for row in real.rows("test", 1000) if " < " in row["answer"]]
    results = real.results([answer for _, answer in changed], [row for row, _ in changed])
    assert len(changed) >= 20
    assert not any(result is not None and result.passed for result in results)


@pytest.mark.slow
def test_a_solution_of_another_problem_fails(real: HumanEval) -> None:
    rows = real.rows("test", 40)
    results = real.results([other["start"] + other["answer"] for other in rows[1:]], rows[:-1])
    assert not any(result is not None and result.passed for result in results)


def test_the_program_is_never_run_here(real: HumanEval) -> None:
    job = real.job("    raise SystemExit\n", real.rows("test", 1)[0])
    assert isinstance(job, SandboxJob)
    assert job.names == (real.rows("test", 1)[0]["names"][0],)

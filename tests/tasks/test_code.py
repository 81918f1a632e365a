"""Common behaviour of tasks with programs: extraction of the program, names, and the reward."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.core.errors import DataError
from unmask.rewards.grading.syntax import MAX_CODE, defined_names, free_names, parse
from unmask.rewards.sandbox import SandboxConfig
from unmask.tasks import MBPP


@pytest.mark.parametrize(
    "code", ["def f(:", "\x00", "(" * 100_000, "-" * 60_000 + "1", "x" * (MAX_CODE + 1), "\ud800", "f = 1 +"]
)
def test_a_text_that_is_not_python_has_no_tree(code: str) -> None:
    assert parse(code) is None


def test_names_that_a_module_defines_and_takes_from_elsewhere() -> None:
    tree = parse(
        "import a.b, c as d\nfrom e import g as h\ni, (j, k) = 1, (2, 3)\nl: int = 4\nclass M: n = 1\n"
        "def o(p, *q, r=1, **s):\n    t = u(p)\n    return [v for v in t]\ntry: w\nexcept X as y: y\nassert z(len(i))"
    )
    assert tree
    assert defined_names(tree) == {"a", "d", "h", "i", "j", "k", "l", "M", "o"}
    assert free_names(tree) == {"int", "u", "w", "X", "z", "len"}


@pytest.fixture
def task(tmp_path: Path) -> MBPP:
    row = {
        "text": "Add one.",
        "test_list": ["assert f(1) == 2", "assert f(2) == 3", "assert f(-1) == 0", "assert f(5) == 6"],
    }
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row | {"code": "def f(x):\n    return x + 1\n"}))
    return MBPP(source=str(file), test_source=str(file), sandbox=SandboxConfig(timeout=0.5))


def reward(task: MBPP, *texts: object) -> list[tuple[float, str]]:
    """Return the reward and its reason for each text."""
    row = task.rows("test", 1)[0]
    columns = {name: [row[name]] * len(texts) for name in row if name != "prompt"}
    given = task.rewards()["mbpp"]([row["prompt"]] * len(texts), list(texts), **columns)
    return [(float(score), score.reason) for score in given]  # type: ignore[union-attr, arg-type]


@pytest.mark.slow
def test_the_reward_is_the_share_of_tests_passed_and_comes_with_a_reason(task: MBPP) -> None:
    right, some = (
        "def f(x):\n    return x + 1",
        "def f(x):\n    return 2 if x == 1 else 6 if x == 5 else 0 if x < 0 else 9",
    )
    assert reward(task, right, some, "def f(x):\n    return 99", "def f(x):\n    return x + 'a'") == [
        (1.0, ""),
        (0.75, "failed"),
        (0.0, "failed"),
        (0.0, "error"),
    ]
    assert reward(task, "import string\ndef f(x):\n    return string.x", "def f(x):\n    while 1: pass") == [
        (0.0, "unsupported"),
        (0.0, "timed_out"),
    ]


def test_the_program_may_stand_in_an_answer_tag_in_a_fence_or_bare(task: MBPP) -> None:
    program = "def f(x):\n    return x + 1"
    fenced = f"```python\n{program}\n```"
    texts = [
        program,
        fenced,
        f"I think.\n<answer>\n{fenced}\n</answer> Done.",
        f"<answer>{program}</answer>",
        f"So:\n{fenced}",
    ]
    assert reward(task, *texts) == [(1.0, "")] * len(texts)
    assert reward(task, f"{fenced}\n<answer>pass</answer>") == [(0.0, "error")]


@pytest.mark.parametrize("text", ["", "   \n", None, 5, ["a"], "```python\n```", "x" * (MAX_CODE + 1)])
def test_no_program_is_unparsed(task: MBPP, text: object) -> None:
    assert reward(task, text) == [(0.0, "unparsed")]
    assert not task.solved(text, task.rows("test", 1)[0])  # type: ignore[arg-type]


@given(st.text(max_size=300) | st.binary(max_size=100).map(lambda b: b.decode("utf-8", "surrogateescape")))
@settings(max_examples=100, deadline=None)
@pytest.mark.slow
def test_any_text_scores_in_bounds_and_raises_nothing(text: str) -> None:
    from unmask.tasks.program import ProgramFromExamples

    row = ProgramFromExamples().rows("test", 1)[0]
    for tagged in (text, f"<answer>{text}</answer>"):
        assert 0.0 <= ProgramFromExamples(format="tagged").score(tagged, row) <= 1.0


def test_a_program_is_run_once_for_reward_and_verdict_unless_there_was_no_time(
    task: MBPP, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unmask.rewards.sandbox import Result, Sandbox, SandboxJob, Verdict
    from unmask.rewards.sandbox.base import NOT_BEGUN

    seen: list[SandboxJob] = []

    class Counting(Sandbox):
        def verdicts(self, job: SandboxJob, end: float) -> list[Verdict]:
            seen.append(job)
            return [Verdict("timed_out", NOT_BEGUN if "late" in job.code else "")] * len(job.tests)

    monkeypatch.setattr("unmask.tasks.code.make_sandbox", Counting)
    row = task.rows("test", 1)[0]
    assert reward(task, "once = 1", "once = 1") == [(0.0, "timed_out")] * 2
    assert not task.solved("once = 1", row)
    assert len(seen) == 1
    assert not task.solved("late = 1", row)
    assert not task.solved("late = 1", row)
    assert len(seen) == 3
    assert isinstance(task.results(["once = 1"], [row])[0], Result)


@pytest.mark.slow
def test_a_correct_program_among_many_that_hang_is_judged_or_left_out(tmp_path: Path) -> None:
    """A program that never started has no result; 0 would teach that it is wrong."""
    row = {"text": "Add one.", "test_list": ["assert f(1) == 2"], "code": "def f(x):\n    return x + 1\n"}
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row))
    limits = SandboxConfig(timeout=0.3, batch_timeout=0.6, workers=1)
    task = MBPP(source=str(file), test_source=str(file), sandbox=limits)
    (row,) = task.rows("test", 1)
    programs = [f"def f(x):\n    while {i}: pass" for i in range(1, 24)] + ["def f(x):\n    return x + 1"]
    columns = {name: [row[name]] * len(programs) for name in row if name != "prompt"}
    scores = task.rewards()["mbpp"]([row["prompt"]] * len(programs), programs, **columns)
    assert scores[-1] in (1.0, None)
    assert scores[0] == 0.0
    assert None in scores


def test_solved_is_all_tests_passed(task: MBPP) -> None:
    row = task.rows("test", 1)[0]
    assert task.solved("def f(x):\n    return x + 1", row)
    assert not task.solved("def f(x):\n    return 2 if x == 1 else x + 1 if x > 0 else 9", row)


def test_a_lacking_column_is_named(task: MBPP) -> None:
    with pytest.raises(DataError, match='reads the column "names"'):
        task.rewards()["mbpp"](["p"], ["c"], tests=[["1"]])


def test_a_demonstration_is_solved_in_every_format(task: MBPP) -> None:
    import random

    for form in ("bare", "plain", "tagged"):
        formed = task.model_copy(update={"format": form})
        row = formed.rows("test", 1)[0]
        assert formed.solved(formed.demonstration(row, random.Random(0), sloppy=False), row), form

"""MATH and MATH500: rows that lack an answer, rewards by algebra, and all gold answers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from benchmark.grading import ANY_TASK, EXPRESSIONS, full_scores, source, wrong_scores
from benchmark.latex_variants import OTHER, SAME
from benchmark.wrong_answers import MATH as WRONG
from tests.helpers.math_answers import RIGHT, pairs
from tests.helpers.math_answers import WRONG as OTHERS
from tests.helpers.messages import raises
from tests.helpers.paths import SHARED
from unmask.core.errors import DataError
from unmask.rewards.grading import verifier
from unmask.rewards.protocol import reasons_of
from unmask.rewards.workers import Workers
from unmask.tasks.hendrycks_math import Math, Math500

pytest.importorskip("math_verify")

DATA = SHARED / "data"
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="the benchmark rows are not beside the repository, in ../shared/data"
)

RAW: list[dict[str, Any]] = [
    {"problem": f"Simplify $\\sqrt{{{i * i * 2}}}$.", "answer": f"{i}\\sqrt{{2}}"} for i in range(2, 42)
]


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_rows_without_an_answer_are_left_out_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [*RAW, {"problem": "p", "answer": None}, {"problem": "q", "answer": " "}])
    task = Math(source=path, test_source=None)
    assert len(task._load("train")) == len(RAW)
    assert task.provenance()["train"]["num_rows"] == len(RAW) + 2
    assert task.provenance()["train"]["num_unusable"] == 2
    with pytest.raises(DataError, match=f"^none of the 1 rows of {tmp_path}/none.jsonl can be used.$"):
        Math(source=write(tmp_path / "none.jsonl", [{"problem": "p", "answer": ""}]), test_source=None).rows("train", 1)
    with raises(DataError, "line 1", '"answer"', "problem"):
        Math(source=write(tmp_path / "other.jsonl", [{"problem": "p"}]), test_source=None).rows("train", 1)


def test_a_solution_is_the_demonstration_and_its_box_is_the_default_answer(tmp_path: Path) -> None:
    rows = [{"problem": "$1+1$?", "solution": "It is $\\boxed{\\frac{4}{2}}$."}]
    task = Math(source=write(tmp_path / "rows.jsonl", rows), test_source=None)
    (row,) = task._load("train")
    assert row["answer"] == r"\frac{4}{2}"
    text = task.demonstration(row, random.Random(0), sloppy=False)
    assert text == "It is $\\boxed{\\frac{4}{2}}$.\n<answer>\\boxed{\\frac{4}{2}}</answer>"
    assert task.solved(text, row)


def test_math500_is_the_same_test_and_nothing_to_train_on(tmp_path: Path) -> None:
    path = write(tmp_path / "test.jsonl", RAW)
    task = Math500(test_source=path)
    assert task.rows("test", 99) == Math(source=path, test_source=path).rows("test", 99)
    assert list(task.provenance()) == ["test"]
    with raises(DataError, '"math500"', "train", "another task"):
        task.rows("train", 1)
    assert set("".join(row["answer"] for row in RAW)) <= set(task.alphabet)


def test_equal_expressions_score_one_and_the_rest_none_with_the_reason() -> None:
    task = Math(test_source=None)
    (reward,) = task.rewards().values()
    texts = [
        r"<answer>\boxed{\sqrt{8}}</answer>",
        r"So $\boxed{2\sqrt{2}}$.",
        r"<answer>2^{3/2}</answer>",
        r"<answer>\sqrt{6}</answer>",
        r"2\sqrt{2}",
    ]
    scores = reward([None] * 5, texts, answer=[r"2\sqrt{2}"] * 5)
    assert scores == [1.0, 1.0, 1.0, 0.0, 0.0]
    assert [getattr(score, "reason", None) for score in scores] == [None] * 4 + ["unparsed"]
    row = {"answer": r"2\sqrt{2}"}
    assert [task.solved(text, row) for text in texts] == [True, True, True, False, False]
    assert reasons_of(reward) == ("unparsed", "timeout")


def rewards_of(answers: list[tuple[str, str]], wrap: str) -> list[float]:
    (reward,) = Math(test_source=None).rewards().values()
    texts = [wrap.replace("ANSWER", answer) for _, answer in answers]
    return [float(score or 0) for score in reward([None] * len(texts), texts, answer=[gold for gold, _ in answers])]


@pytest.mark.parametrize(
    "wrap", ["<answer>\\boxed{ANSWER}</answer>", "<answer>ANSWER</answer>", "So it is $\\boxed{ANSWER}$."]
)
@pytest.mark.parametrize(("table", "score"), [(RIGHT, 1.0), (OTHERS, 0.0)])
@pytest.mark.slow
def test_right_answers_in_other_forms_are_paid_and_wrong_ones_not(table: str, score: float, wrap: str) -> None:
    answers = pairs(table)
    assert len(answers) > 100
    scores = rewards_of(answers, wrap)
    assert [pair for pair, given in zip(answers, scores, strict=True) if given != score] == []


GOLDS = [
    *(
        r"\frac{14}{3}",
        r"2\sqrt{5}",
        r"\sqrt{51}",
        "9",
        "-3",
        r"\frac{\pi}{4}",
        "(8,-2)",
        r"(-\infty, 2) \cup (3, \infty)",
    ),
    *("p - q", "R^2 - r^2", "x^2 + 2x + 1", r"76^\circ", "1 + 2i", "[0, 1)", r"\{1, 2\}", "3, 5, 8", "2516_8", "x = 5"),
    *(
        r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}",
        r"\text{Evelyn}",
        r"\text{(B)}",
        r"1 \pm \sqrt{19}",
        "10,080",
        "y = 2x + 3",
    ),
]


@pytest.mark.parametrize(("table", "score"), [(SAME, 1.0), (OTHER, 0.0)])
@pytest.mark.slow
def test_variants_of_right_expressions_are_paid_if_they_say_the_same(table: dict[str, Any], score: float) -> None:
    made = [(name, gold, rewrite(gold)) for name, rewrite in table.items() for gold in GOLDS]
    found = [(name, gold, text) for name, gold, text in made if text is not None]
    assert len(found) > 200
    scores = rewards_of([(gold, text) for _, gold, text in found], "<answer>ANSWER</answer>")
    assert [case for case, given in zip(found, scores, strict=True) if given != score] == []


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Use a pool with a short time limit, so that the hostile answers do not take long."""
    pool = Workers("unmask.rewards.grading.algebra:check", 2, timeout=0.5, memory=verifier.MEMORY)
    monkeypatch.setattr(verifier, "_workers", lambda _: pool)
    monkeypatch.setattr(verifier, "_verdicts", {})
    yield
    pool.close()


@pytest.mark.usefixtures("quick")
@pytest.mark.slow
def test_none_of_the_wrong_answers_scores_and_the_endless_ones_are_timeouts() -> None:
    assert len(WRONG) >= 60
    results = wrong_scores(Math(test_source=None), WRONG)
    assert [(w, score) for w, score, _ in results if score != 0.0] == []
    assert "timeout" in {reason for w, _, reason in results if w.kind == "hostile"}


@needs_data
@pytest.mark.slow
def test_every_gold_answer_of_math500_scores_one_as_a_model_would_write_it() -> None:
    task = Math(source=source(DATA, "math_train"), test_source=source(DATA, "math500_test"))
    rows = task._load("test")
    assert len(rows) == 500
    assert {name: full_scores(task, rows, wrap) for name, wrap in (ANY_TASK | EXPRESSIONS).items()} == dict.fromkeys(
        ANY_TASK | EXPRESSIONS, 500
    )


@needs_data
@pytest.mark.slow
def test_four_training_rows_of_math_have_no_answer_and_the_others_score_one() -> None:
    task = Math(source=source(DATA, "math_train"), test_source=None)
    rows = task._load("train")
    assert len(rows) == 7470
    assert task.provenance()["train"]["num_unusable"] == 4
    assert full_scores(task, rows, ANY_TASK["boxed in the tag"]) == 7470


def test_an_answer_may_be_a_number_and_an_empty_problem_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"problem": f"{i}?", "answer": i} for i in range(20)])
    row = Math(source=path, test_source=None).rows("train", 1)[0]
    assert row["answer"] == row["question"].rstrip("?")
    path = write(tmp_path / "empty.jsonl", [{"problem": " ", "answer": 1}, {"problem": "1?", "answer": 1}])
    with pytest.raises(DataError, match=r'^1 of 2 rows .*\n  line 1 has no text in the column "problem"'):
        Math(source=path, test_source=None).rows("train", 1)

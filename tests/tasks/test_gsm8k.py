"""GSM8K: its rows, its rewards, and all of its gold answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark.answer_variants import other, same
from benchmark.grading import ANY_TASK, NUMBERS, full_scores, source, wrong_scores
from benchmark.wrong_answers import GSM8K as WRONG
from tests.helpers.paths import SHARED
from tests.helpers.rows import files, write
from unmask.core.errors import DataError
from unmask.tasks.gsm8k import GSM8K

DATA = SHARED / "data"
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="the benchmark rows are not beside the repository, in ../shared/data"
)


def scores(task: GSM8K, gold: str, *texts: str) -> list[float]:
    (reward,) = task.rewards().values()
    return reward([None] * len(texts), list(texts), answer=[gold] * len(texts))


def test_a_row_is_the_problem_its_working_and_its_number(tmp_path: Path) -> None:
    (row,) = (
        row for row in GSM8K(**files(tmp_path), format="bare").rows("test", 99) if row["question"].startswith("64")
    )
    assert row == {
        "prompt": "64 bags of 64 nuts?\n",
        "question": "64 bags of 64 nuts?",
        "working": "There are 64 * 64 = 4,096.",
        "answer": "4,096",
    }


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q"}, 'line 1 has no text in the column "answer". Its columns: question.'),
        ({"answer": "#### 1"}, 'line 1 has no text in the column "question". Its columns: answer.'),
        (
            {"question": "q", "answer": "1"},
            'line 1: the column "answer" ends in \'1\', not in "#### " and a number.',
        ),
        ({"question": "q", "answer": "#### one"}, "line 1: the column \"answer\" ends in 'one', not in"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_with_the_reason(tmp_path: Path, row: dict[str, str], message: str) -> None:
    path = write(tmp_path / "rows.jsonl", [row])
    with pytest.raises(DataError) as caught:
        GSM8K(source=path).rows("train", 1)
    assert str(caught.value).startswith(f"1 of 1 rows of {path} cannot be used:\n  {message}")


def test_right_numbers_score_one_and_the_rest_none_with_the_reason() -> None:
    found = scores(GSM8K(), "1,000", "<answer>1000.0</answer>", "<answer>999</answer>", "<answer>many</answer>", "1000")
    assert found == [1.0, 0.0, 0.0, 0.0]
    assert [getattr(score, "reason", None) for score in found] == [None, None, "unparsed", "unparsed"]
    assert scores(GSM8K(format="bare"), "18", "18", " 18\n", "\\boxed{18}", "17") == [1.0, 1.0, 1.0, 0.0]


@pytest.mark.slow
def test_none_of_the_wrong_answers_scores() -> None:
    assert len(WRONG) >= 60
    assert [(w, score) for w, score, _ in wrong_scores(GSM8K(), WRONG) if score != 0.0] == []


@needs_data
@pytest.mark.parametrize(("part", "count"), [("train", 7473), ("test", 1319)])
@pytest.mark.slow
def test_every_gold_answer_scores_one_as_a_model_would_write_it(part: str, count: int) -> None:
    task = GSM8K(source=source(DATA, "gsm8k_train"), test_source=source(DATA, "gsm8k_test"))
    rows = task._load(part)
    assert len(rows) == count
    for name in ("boxed in a sentence, no tag", "in the tag, on a line of its own"):
        assert full_scores(task, rows, ANY_TASK[name]) == count
    for wrap in NUMBERS.values():
        assert full_scores(task, rows[::10], wrap) == len(rows[::10])


@pytest.mark.slow
def test_every_way_to_write_the_right_number_is_paid_and_no_way_to_write_another() -> None:
    task = GSM8K()
    (reward,) = task.rewards().values()
    for number in ("5", "18", "60", "1000", "250", "12"):
        for texts, score in ((same(number), 1.0), (other(number), 0.0)):
            assert len(texts) > 150
            completions = [f"So that is it.\n<answer>{text}</answer>" for text in texts]
            scores = reward([None] * len(texts), completions, answer=[number] * len(texts))
            assert [text for text, given in zip(texts, scores, strict=True) if given != score] == [], number


@pytest.mark.parametrize(
    ("gold", "answer", "is_right"),
    [
        ("60", "5 dozen", True),
        ("5000", "5 thousands", True),
        ("5000", "5K", True),
        ("5000000", "5 million dollars", True),
        ("12", "twelve eggs", True),
        ("12", "12 or twelve", True),
        ("12", "12 or thirteen", False),
        ("1200", "one thousand two hundred", True),
        ("2.5", "2 and a half", True),
        ("2.5", "two and a half", True),
        ("0.5", "one half", True),
        ("50", "one half", False),
        ("-3", "negative 3", True),
        ("-3", "a loss of 3", True),
        ("-3", "\\text{-}3", True),
        ("-3", "﹣3", True),
        ("3", "minus 3", False),
        ("1000", "1 000", True),
        ("1000", "1\u2009000", True),
        ("1000", "1.0e3", True),
        ("1000", "1.000,00", False),
        ("18", "１８", True),
        ("60", "59.\\overline{9}", True),
        ("60", "59.9999999", False),
        ("2", "2:00 pm", True),
        ("2", "2:30 pm", False),
        ("60", "60 a.m.", False),
        ("2", "Juice box C is 2 dollars more than juice box B.", True),
        ("0.75", "75%", True),
        ("1.5", "150%", True),
        ("0.75", "75", False),
        ("75", "0.75", False),
        ("3", "300%", False),
        ("2", "2(2)", False),
        ("5", "five (5)", True),
        ("5", "5 (6)", False),
    ],
)
def test_words_and_signs_change_a_number_as_they_do_for_a_reader(gold: str, answer: str, is_right: bool) -> None:
    assert GSM8K().solved(f"<answer>{answer}</answer>", {"answer": gold}) == is_right

"""GSM8K: prompts, splits, provenance, and all of its gold answers; the same machinery serves MATH."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from benchmark.grading import ANY_TASK, NUMBERS, full_scores, source, wrong_scores
from benchmark.wrong_answers import GSM8K as WRONG
from unmask.errors import ConfigError, DataError
from unmask.tasks import TASKS
from unmask.tasks.base import stable_hash
from unmask.tasks.gsm8k import GSM8K
from unmask.tasks.source import content_hash

DATA = Path(__file__).parents[2] / ".." / "shared" / "data"
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="the benchmark rows are not beside the repository, in ../shared/data"
)

RAW = [
    {
        "question": f" {i} bags of {i} nuts?",
        "answer": f"There are {i} * {i} = <<{i}*{i}={i * i}>>{i * i:,}.\n#### {i * i:,}",
    }
    for i in range(1, 81)
]


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """The options of a task on two files: 60 rows to train on, 20 to test."""
    return {
        "source": write(tmp_path / "train.jsonl", RAW[:60]),
        "test_source": write(tmp_path / "test.jsonl", RAW[60:]),
    }


def scores(task: GSM8K, gold: str, *texts: str) -> list[float]:
    (reward,) = task.rewards().values()
    return reward([None] * len(texts), list(texts), answer=[gold] * len(texts))


# --- rows ---


def test_a_row_is_the_problem_its_working_and_its_number(files: dict[str, str]) -> None:
    (row,) = (row for row in GSM8K(**files, format="bare").rows("test", 99) if row["question"].startswith("64"))
    assert row == {
        "prompt": "64 bags of 64 nuts?\n",
        "question": "64 bags of 64 nuts?",
        "working": "There are 64 * 64 = 4,096.",
        "answer": "4,096",
    }


def test_validation_is_a_tenth_of_training_by_a_stable_hash_of_the_problem_and_never_of_test(
    files: dict[str, str],
) -> None:
    task = GSM8K(**files)
    shares = {split: {row["question"] for row in task.rows(split, 99)} for split in ("train", "validation", "test")}
    problems = [raw["question"].strip() for raw in RAW]
    assert shares["test"] == set(problems[60:])
    assert shares["validation"] == {q for q in problems[:60] if stable_hash(q) % 10 == 0}
    assert shares["train"] == set(problems[:60]) - shares["validation"]
    # Of the wording of the prompt the split knows nothing.
    bare = GSM8K(**files, format="bare")
    assert {row["question"] for row in bare.rows("validation", 99)} == shares["validation"]


def test_a_training_row_that_is_a_test_row_too_is_left_out(tmp_path: Path, files: dict[str, str]) -> None:
    task = GSM8K(source=write(tmp_path / "both.jsonl", RAW), test_source=files["test_source"])
    kept = [row["question"] for split in ("train", "validation") for row in task.rows(split, 99)]
    assert sorted(kept) == sorted(raw["question"].strip() for raw in RAW[:60])


def test_a_file_has_no_test_rows_of_its_own(files: dict[str, str]) -> None:
    task = GSM8K(source=files["source"])
    assert len(task.rows("train", 99)) + len(task.rows("validation", 99)) == 60
    with pytest.raises(
        DataError, match="has no test rows beside .*train.jsonl. Set task.test_source, or use validation"
    ):
        task.rows("test", 1)
    with pytest.raises(DataError, match="unknown split"):
        task.rows("dev", 1)  # type: ignore[arg-type]


def test_a_hub_set_brings_its_own_test_split() -> None:
    assert GSM8K().sources() == ("openai/gsm8k:main", "openai/gsm8k:main")
    assert GSM8K(revision="abc")._revision("test") == "abc"
    assert GSM8K(test_source="owner/other", revision="abc")._revision("test") is None


def test_provenance_names_sources_hashes_and_counts(files: dict[str, str]) -> None:
    assert GSM8K(**files).provenance() == {
        "train": {
            "source": files["source"],
            "revision": None,
            "sha256": content_hash(RAW[:60]),
            "num_rows": 60,
            "num_unusable": 0,
        },
        "test": {
            "source": files["test_source"],
            "revision": None,
            "sha256": content_hash(RAW[60:]),
            "num_rows": 20,
            "num_unusable": 0,
        },
    }
    assert TASKS["sudoku"].model_validate({}).provenance() == {}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q"}, 'row 1 of {} has no text in the column "answer". Its columns: question.'),
        ({"answer": "#### 1"}, 'row 1 of {} has no text in the column "question". Its columns: answer.'),
        (
            {"question": "q", "answer": "1"},
            'row 1 of {}: the column "answer" ends in \'1\', not in "#### " and a number.',
        ),
        ({"question": "q", "answer": "#### one"}, "row 1 of {}: the column \"answer\" ends in 'one', not in"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_with_the_reason(tmp_path: Path, row: dict[str, str], message: str) -> None:
    path = write(tmp_path / "rows.jsonl", [row])
    with pytest.raises(DataError) as caught:
        GSM8K(source=path).rows("train", 1)
    assert str(caught.value).startswith(message.format(path))


# --- prompts ---


def test_a_prompt_is_one_user_message_unless_asked_otherwise(files: dict[str, str]) -> None:
    (message,) = GSM8K(**files).prompt("Why?")
    assert message["role"] == "user"
    assert message["content"].endswith("\n\nWhy?")
    assert "<answer>" in message["content"]
    system, user = GSM8K(**files, instruction_role="system").prompt("Why?")
    assert (system["role"], user) == ("system", {"role": "user", "content": "Why?"})
    assert message["content"] == f"{system['content']}\n\nWhy?"


def test_worked_examples_are_turns_that_answer_as_asked(files: dict[str, str]) -> None:
    for instruction in ("answer", "boxed", "reasoning"):
        task = GSM8K(**files, num_shots=2, instruction=instruction)
        messages = task.prompt("Why?")
        assert [message["role"] for message in messages] == ["user", "assistant", "user", "assistant", "user"]
        assert messages[-1]["content"] == "Why?"
        # The examples are graded as a completion would be.
        assert scores(task, "22", messages[1]["content"]) == [1.0]
    assert messages[1]["content"].startswith("<reasoning>\n")


def test_a_plain_prompt_says_the_same_as_text(files: dict[str, str]) -> None:
    text = GSM8K(**files, format="plain", num_shots=1).prompt("Why?")
    messages = GSM8K(**files, num_shots=1).prompt("Why?")
    assert isinstance(text, str)
    assert text.endswith("\n\nProblem: Why?\nSolution:")
    assert messages[1]["content"] in text


def test_training_and_evaluation_share_the_prompt(files: dict[str, str]) -> None:
    task = GSM8K(**files)
    rows = task.rows("train", 3) + task.rows("validation", 3) + task.rows("test", 3)
    assert [row["prompt"] for row in rows] == [task.prompt(row["question"]) for row in rows]


def test_an_instruction_may_be_a_file_of_ones_own(tmp_path: Path, files: dict[str, str]) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("Just answer in <answer> tags.\n")
    assert GSM8K(**files, instruction=str(mine)).prompt("Why?") == [
        {"role": "user", "content": "Just answer in <answer> tags.\n\nWhy?"}
    ]
    with pytest.raises(
        ConfigError, match='^instruction "polite" is none of answer, boxed, reasoning, nor a .txt file.$'
    ):
        GSM8K(instruction="polite")
    with pytest.raises(ConfigError, match="cannot be read"):
        GSM8K(instruction="none/there.txt")


def test_demonstrations_are_right_and_sloppy_ones_a_number_of_the_problem(files: dict[str, str]) -> None:
    rng = random.Random(0)
    for form in ("bare", "plain", "tagged"):
        task = GSM8K(**files, format=form)
        rows = task.rows("train", 20)
        assert all(task.solved(task.demonstration(row, rng, sloppy=False), row) for row in rows)
        sloppy = [task.demonstration(row, rng, sloppy=True) for row in rows]
        assert sum(task.solved(text, row) for text, row in zip(sloppy, rows, strict=True)) <= 1  # 1 * 1 is 1
        assert all(text.isdigit() == (form == "bare") for text in sloppy)


def test_length_and_alphabet_cover_every_row(files: dict[str, str]) -> None:
    task = GSM8K(**files, format="bare")
    assert task.completion_length == len("6,400") + 1
    texts = [row["prompt"] + row["answer"] for split in ("train", "validation", "test") for row in task.rows(split, 99)]
    assert set("".join(texts)) <= set(task.alphabet)
    assert task.alphabet == "".join(sorted(set(task.alphabet)))


# --- rewards ---


def test_right_numbers_score_one_and_the_rest_none_with_the_reason() -> None:
    found = scores(GSM8K(), "1,000", "<answer>1000.0</answer>", "<answer>999</answer>", "<answer>many</answer>", "1000")
    assert found == [1.0, 0.0, 0.0, 0.0]
    assert [getattr(score, "reason", None) for score in found] == [None, None, "unparsed", "unparsed"]
    assert scores(GSM8K(format="bare"), "18", "18", " 18\n", "\\boxed{18}", "17") == [1.0, 1.0, 1.0, 0.0]


def test_none_of_the_wrong_answers_scores() -> None:
    assert len(WRONG) >= 60
    assert [(w, score) for w, score, _ in wrong_scores(GSM8K(), WRONG) if score != 0.0] == []


@needs_data
@pytest.mark.parametrize(("part", "count"), [("train", 7473), ("test", 1319)])
def test_every_gold_answer_scores_one_as_a_model_would_write_it(part: str, count: int) -> None:
    task = GSM8K(source=source(DATA, "gsm8k_train"), test_source=source(DATA, "gsm8k_test"))
    rows = task._load(part)
    assert len(rows) == count
    for name in ("boxed in a sentence, no tag", "in the tag, on a line of its own"):
        assert full_scores(task, rows, ANY_TASK[name]) == count
    for wrap in NUMBERS.values():
        assert full_scores(task, rows[::10], wrap) == len(rows[::10])

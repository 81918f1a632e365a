"""Rows of one's own: files, columns, splits that share no prompt, and what is wrong with a file."""

from __future__ import annotations

import csv
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unmask.errors import DataError
from unmask.tasks import TASKS, Dataset
from unmask.tasks.base import stable_hash

ROWS = [{"prompt": f"{i}+{i}=", "answer": str(2 * i), "level": i % 3} for i in range(100)]

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`write(rows, name)`: a file of these rows, in the format that its name asks for."""

    def _write(rows: list[Any], name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        if name.endswith(".csv"):
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return _write


def prompts(task: Dataset, split: Any, num_rows: int = 1000, seed: int = 0) -> list[str]:
    return [row["prompt"] for row in task.rows(split, num_rows, seed)]


def refusal(task: Dataset, split: Any = "train") -> str:
    with pytest.raises(DataError) as caught:
        task.rows(split, 10)
    return str(caught.value)


def test_the_task_is_in_the_table() -> None:
    assert TASKS["dataset"] is Dataset


# --- what is read ---


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_rows_come_with_all_their_columns(write: Write, name: str) -> None:
    (row,) = (row for row in Dataset(path=write(ROWS, name)).rows("train", 1000) if row["prompt"] == "5+5=")
    assert row == {"prompt": "5+5=", "answer": "10", "level": "2" if name.endswith("csv") else 2}


def test_a_byte_order_mark_and_blank_lines_are_no_matter(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\ufeff" + "\n\n".join(json.dumps(row) for row in ROWS) + "\n\n", encoding="utf-8")
    task = Dataset(path=str(path))
    assert sum(len(prompts(task, split)) for split in ("train", "validation", "test")) == 100


def test_columns_of_other_names_are_found_and_keep_their_own(write: Write) -> None:
    rows = [{"question": f"q{i}", "solution": f"s{i}", "prompt": "not this", "answer": "nor this"} for i in range(50)]
    task = Dataset(path=write(rows), prompt_column="question", answer_column="solution")
    row = task.rows("train", 1)[0]
    number = row["question"][1:]
    assert (row["prompt"], row["answer"]) == (f"q{number}", f"s{number}")
    assert (row["question"], row["solution"]) == (f"q{number}", f"s{number}")


def test_chat_messages_are_prompts_too(write: Write) -> None:
    rows = [{"prompt": [{"role": "user", "content": f"{i}?"}], "answer": "x"} for i in range(50)]
    task = Dataset(path=write(rows), format="tagged")
    row = task.rows("train", 1)[0]
    assert row["prompt"][0]["content"].endswith("?")
    assert task.solved("so <answer> x </answer>", row)
    assert not task.solved("x", row)


def test_length_and_alphabet_cover_every_split(write: Write) -> None:
    test = [{"prompt": "é", "answer": "longest answer"}]
    task = Dataset(path=write(ROWS), test_path=write(test, "test.jsonl"))
    assert task.completion_length == len("longest answer") + 1
    assert set(task.alphabet) == set("0123456789+=é" + "longest answer")
    assert task.alphabet == "".join(sorted(task.alphabet))
    assert Dataset(path=write([{"prompt": f"{i}"} for i in range(20)], "bare.jsonl")).completion_length == 1


# --- splits ---


def test_splits_are_a_partition_by_a_stable_hash_of_the_prompt(write: Write) -> None:
    task = Dataset(path=write(ROWS))
    shares = {split: set(prompts(task, split)) for split in ("train", "validation", "test")}
    tenths = {row["prompt"]: stable_hash(row["prompt"]) % 10 for row in ROWS}
    assert shares["validation"] == {p for p, tenth in tenths.items() if tenth == 0}
    assert shares["test"] == {p for p, tenth in tenths.items() if tenth in (1, 2)}
    assert shares["train"] == {p for p, tenth in tenths.items() if tenth > 2}


def test_rows_of_one_prompt_stay_together(write: Write) -> None:
    task = Dataset(path=write(ROWS + [row | {"answer": "another"} for row in ROWS]))
    shares = [prompts(task, split) for split in ("train", "validation", "test")]
    assert sum(map(len, shares)) == 200
    assert sum(len(set(share)) for share in shares) == 100


def test_a_test_file_is_the_test_split_and_its_prompts_leave_the_training_rows(write: Write) -> None:
    held_out = [row | {"answer": "changed"} for row in ROWS[:30]]
    task = Dataset(path=write(ROWS), test_path=write(held_out, "test.jsonl"))
    test = prompts(task, "test")
    assert sorted(test) == sorted(row["prompt"] for row in held_out)
    rest = prompts(task, "train") + prompts(task, "validation")
    assert sorted(rest) == sorted(row["prompt"] for row in ROWS[30:])


def test_a_seed_shuffles_and_fewer_rows_are_a_prefix(write: Write) -> None:
    task = Dataset(path=write(ROWS))
    rows = task.rows("train", 40, seed=3)
    assert rows == task.rows("train", 40, seed=3)
    assert rows[:7] == task.rows("train", 7, seed=3)
    assert task.row("train", 6, seed=3) == rows[6]
    assert rows != task.rows("train", 40, seed=4)
    assert sorted(prompts(task, "train", seed=3)) == sorted(prompts(task, "train", seed=4))


# --- what an answer is worth ---


def test_the_right_answer_is_worth_one(write: Write) -> None:
    task = Dataset(path=write(ROWS))
    row = {"prompt": "5+5=", "answer": 10}
    assert [task.solved(text, row) for text in ("10", " 10\n", "1", "", "010")] == [True, True, False, False, False]
    (reward,) = task.rewards().values()
    assert reward(["5+5="] * 3, ["10", "11", ""], answer=[10] * 3) == [1.0, 0.0, 0.0]
    assert task.demonstration(row, random.Random(0), sloppy=True) == "10"


def test_without_answers_nothing_is_solved_and_no_reward_is_brought(write: Write) -> None:
    task = Dataset(path=write([{"prompt": str(i)} for i in range(50)]))
    row = task.rows("train", 1)[0]
    assert not task.solved("None", row)
    assert not task.solved("None", row | {"answer": None})
    assert task.rewards() == {}
    with pytest.raises(DataError, match='has no column "answer" to learn from. Set task.answer_column.$'):
        task.demonstration(row, random.Random(0), sloppy=False)


# --- what is wrong with a file ---


def test_a_missing_column_is_named_with_those_that_are_there(write: Write) -> None:
    path = write([{"question": "1", "answer": "2"}] * 5)
    assert refusal(Dataset(path=path)) == (
        f'row 1 of {path} has no text or messages in the column "prompt". Its columns: question, answer. '
        "Set task.prompt_column to one of them (on the command line --option prompt_column=NAME)."
    )


def test_the_one_row_that_lacks_its_prompt_is_named(write: Write) -> None:
    path = write([*ROWS[:3], {"answer": "2"}, *ROWS[4:]])
    assert refusal(Dataset(path=path)).startswith(f'row 4 of {path} has no text or messages in the column "prompt".')
    path = write([{"prompt": 5}])
    assert refusal(Dataset(path=path)).startswith(f'row 1 of {path} has no text or messages in the column "prompt".')


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.jsonl", None, "there is no file {}."),
        ("rows.json", "[]", "{} must be a .jsonl, .csv, .parquet file."),
        ("rows.jsonl", "", "{} holds no rows."),
        ("rows.csv", "prompt,answer\n", "{} holds no rows."),
        ("rows.jsonl", '{"prompt": "1"}\n{"prompt": ', "line 2 of {} is no JSON: Expecting value"),
        (
            "rows.jsonl",
            '{"prompt": "1"}\n[1, 2]\n',
            "row 2 of {} is '[1, 2]'; each line must be an object with columns.",
        ),
        ("rows.csv", "prompt,answer\n1,2,3\n", "row 1 of {} has more fields than the header. Quote those that hold a"),
        ("rows.jsonl", b'{"prompt": "\xff"}', "{} is not in UTF-8 ('utf-8' codec can't decode byte 0xff"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_reason(
    tmp_path: Path, name: str, content: str | bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert re.match(re.escape(message.format(path)), refusal(Dataset(path=str(path))))


def test_a_split_that_is_left_empty_is_named_with_what_to_do(write: Write) -> None:
    path = write([row for row in ROWS if stable_hash(row["prompt"]) % 10 > 2][:4])
    task = Dataset(path=path)
    remedy = "Add rows, or set task.test_path."
    assert refusal(task, "test") == f"none of the 4 rows of {path} falls into the test split. {remedy}"
    assert refusal(task, "validation") == f"none of the 4 rows of {path} falls into the validation split. Add rows."


def test_an_answer_column_that_was_named_must_be_there(write: Write) -> None:
    # Also where another column has the name that is the default.
    task = Dataset(path=write([{"prompt": "1", "answer": "2"}]), answer_column="solution")
    assert 'has no column "solution". Its columns: prompt, answer. Set task.answer_column' in refusal(task)

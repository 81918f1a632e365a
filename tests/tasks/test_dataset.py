"""Your own rows: files, columns, splits that share no prompt, and errors in a file."""

from __future__ import annotations

import copy
import csv
import json
import pickle
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.messages import raises
from unmask.core.errors import DataError
from unmask.tasks import TASKS, Dataset
from unmask.tasks.base import stable_hash
from unmask.tasks.dataset import answer_of

ROWS = [{"prompt": f"{i}+{i}=", "answer": str(2 * i), "level": i % 3} for i in range(100)]

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function: `write(rows, name)` writes a file in the format of its extension."""

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


# --- formats ---


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


# --- rewards ---


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
    with raises(DataError, '"answer"', "task.answer_column"):
        task.demonstration(row, random.Random(0), sloppy=False)


# --- rows that cannot be used ---


def test_a_missing_column_is_named_with_those_that_are_there(write: Write) -> None:
    path = write([{"question": "1", "answer": "2"}] * 5)
    assert refusal(Dataset(path=path)) == (
        f'none of the 5 rows of {path} can be used. line 1 has no column "prompt". Its columns: question, answer. '
        "Set task.prompt_column to one of them (on the command line --option prompt_column=NAME)."
    )


CONTENTS = [
    (None, "the prompt is missing"),
    (7, "the prompt is neither text nor a list of chat messages, but '7' (int)"),
    ("", "the prompt is empty"),
    (" \n", "the prompt is empty"),
    ("a\0b", "the prompt holds a NUL character"),
    ([], "the prompt is an empty list of chat messages"),
    (["hello"], 'message 1 of the prompt is \'hello\' (str), not an object with "role" and "content"'),
    ([{"content": "x"}], 'message 1 of the prompt has no "role", such as "user"'),
    ([{"role": "user"}], 'message 1 of the prompt has no text under "content"'),
    ([{"role": "user", "content": ""}], "message 1 of the prompt is empty"),
    (
        [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "x"}]}],
        "message 2 of the prompt has a list of parts as its content; join their texts into one string",
    ),
    (
        json.dumps([{"role": "user", "content": "x"}]),
        "the prompt is a list of chat messages written as text; use .jsonl or .parquet, which can hold lists",
    ),
    ("half \ud83d", 'the column "prompt" holds half a surrogate pair'),
    (json.loads("[" * 200 + "]" * 200), 'the column "prompt" is nested more than 100 levels deep'),
]


@pytest.mark.parametrize(("prompt", "fault"), CONTENTS, ids=str)
def test_a_row_that_cannot_be_used_is_named_by_its_line(write: Write, prompt: Any, fault: str) -> None:
    path = write([*ROWS[:3], {"prompt": prompt, "answer": "2"}, *ROWS[3:]])
    message = refusal(Dataset(path=path))
    assert message.startswith(f"1 of 101 rows of {path} cannot be used:\n  line 4: {fault}")
    assert "task.unusable_rows=drop" in message


def test_several_rows_are_named_at_once_and_the_rest_counted(write: Write) -> None:
    path = write([*ROWS, *({"prompt": prompt, "answer": "2"} for prompt, _ in CONTENTS)])
    lines = refusal(Dataset(path=path)).splitlines()
    assert lines[0] == f"{len(CONTENTS)} of {100 + len(CONTENTS)} rows of {path} cannot be used:"
    assert [line.split(":")[0] for line in lines[1:6]] == [f"  line {n}" for n in range(101, 106)]
    assert lines[6] == f"  and {len(CONTENTS) - 5} more"


def test_rows_that_are_dropped_leave_the_others_as_if_they_had_never_been_there(write: Write) -> None:
    bad = [{"prompt": prompt, "answer": "2"} for prompt, _ in CONTENTS]
    mixed = Dataset(path=write([*ROWS[:50], *bad, *ROWS[50:]], "mixed.jsonl"), unusable_rows="drop")
    clean = Dataset(path=write(ROWS, "clean.jsonl"))
    for split in ("train", "validation", "test"):
        assert mixed.rows(split, 1000, seed=3) == clean.rows(split, 1000, seed=3)  # type: ignore[arg-type]
        rows, left_out = mixed.candidates(split, 1000).take()  # type: ignore[arg-type]
        assert len(left_out) == len(bad)
    facts = mixed.provenance()["train"]
    assert (facts["num_rows"], facts["num_unusable"]) == (100 + len(bad), len(bad))


def test_dropping_every_row_is_refused_with_the_reason(write: Write) -> None:
    path = write([{"prompt": "", "answer": "1"}] * 3)
    message = refusal(Dataset(path=path, unusable_rows="drop"))
    assert message == f"none of the 3 rows of {path} can be used. line 1: the prompt is empty."


def test_a_prompt_that_a_models_rows_find_too_long_is_named_or_dropped(write: Write) -> None:
    def too_long(rows: Any) -> list[str | None]:
        return ["the prompt is too long" if len(row["prompt"]) > 20 else None for row in rows]

    rows = [*ROWS[:5], {"prompt": "y" * 21, "answer": "1"}, *ROWS[5:]]
    options = {"path": write(rows, "long.jsonl"), "test_path": write(ROWS[:5], "test.jsonl")}
    with pytest.raises(
        DataError, match=r"^1 of \d+ rows of .*long.jsonl cannot be used:\n  line 6: the prompt is too long"
    ):
        Dataset(**options).candidates("train", 1000).take(too_long)
    kept, left_out = Dataset(**options, unusable_rows="drop").candidates("train", 10, seed=2).take(too_long)
    clean = Dataset(path=write(ROWS, "clean.jsonl"), test_path=options["test_path"])
    assert kept == clean.rows("train", 10, seed=2)
    assert left_out == ("line 6: the prompt is too long",)


def test_rows_that_a_run_would_not_use_are_not_checked_unless_they_are_dropped(write: Write) -> None:
    seen: list[int] = []

    def count(rows: Any) -> list[str | None]:
        seen.append(len(rows))
        return [None] * len(rows)

    options = {"path": write(ROWS), "test_path": write(ROWS[:5], "test.jsonl")}
    Dataset(**options).candidates("train", 10).take(count)
    Dataset(**options, unusable_rows="drop").candidates("train", 10).take(count)
    assert seen[0] == 10
    assert seen[1] > 80


def test_half_a_surrogate_pair_is_found_in_names_and_values_of_every_column_of_its_row_alone(write: Write) -> None:
    broken: list[dict[str, Any]] = [{"\udc00": 1}, {"note": {"a": ["\ud83d"]}}, {"note": {"\ud83d": 1}}]
    path = write([*ROWS, *({"prompt": "1", "answer": "1"} | extra for extra in broken)])
    lines = refusal(Dataset(path=path)).splitlines()
    assert [line.split(": the column ")[0] for line in lines[1:4]] == ["  line 101", "  line 102", "  line 103"]
    assert len(Dataset(path=path, unusable_rows="drop").rows("train", 1000)) == len(
        Dataset(path=write(ROWS, "clean.jsonl")).rows("train", 1000)
    )


def test_a_column_may_be_called_self(write: Write) -> None:
    task = Dataset(path=write([row | {"self": 1, "class": 2} for row in ROWS]))
    row = task.rows("train", 1)[0]
    columns = {name: [value] for name, value in row.items() if name != "prompt"}
    assert task.rewards()["dataset"](prompts=[row["prompt"]], completions=[row["answer"]], **columns) == [1.0]


# --- types ---

ANSWERS = [42, 0.5, True, "x", -3]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.tsv", "rows.json", "rows.parquet", "memory"])
@pytest.mark.slow
def test_an_answer_is_the_same_text_from_every_kind_of_file(tmp_path: Path, name: str) -> None:
    for answer in ANSWERS:
        rows = [{"prompt": f"{i}?", "answer": answer, "solution": answer} for i in range(30)]
        path: Any = tmp_path / name
        if name == "memory":
            path = rows
        elif name == "rows.parquet":
            pyarrow = pytest.importorskip("pyarrow")
            from pyarrow import parquet

            parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        elif name in ("rows.csv", "rows.tsv"):
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if name == "rows.tsv" else ",")
                writer.writeheader()
                writer.writerows(rows)
        else:
            path.write_text(json.dumps(rows) if name == "rows.json" else "".join(json.dumps(r) + "\n" for r in rows))
        for column in ("answer", "solution"):
            row = Dataset(path=path, answer_column=column).rows("train", 1)[0]
            assert (row["answer"], row[column]) == (str(answer), str(answer))
            assert isinstance(row["answer"], str)


def test_comparing_an_answer_with_a_number_is_refused_and_with_text_is_not() -> None:
    answer = answer_of(42)
    assert answer == "42"
    assert answer != "43"
    assert answer != None  # noqa: E711
    assert {answer: 1}["42"] == 1
    assert float(answer) == 42
    for compare in (lambda: answer == 42, lambda: answer != 42.0, lambda: answer in [42]):
        with pytest.raises(TypeError, match="the answer '42' is text and never equals the number 42"):
            compare()
    assert pickle.loads(pickle.dumps(answer)) == "42"
    assert type(copy.deepcopy([answer])[0]) is type(answer)


def test_numbers_in_other_columns_keep_the_types_of_the_file(write: Write) -> None:
    row = Dataset(path=write([{"prompt": f"{i}", "answer": 1, "level": 3} for i in range(20)])).rows("train", 1)[0]
    assert row["level"] == 3


def test_columns_that_some_rows_lack_are_none_there(write: Write) -> None:
    rows = [{"prompt": f"{i}"} | ({"answer": i} if i % 2 else {"level": 1}) for i in range(40)]
    found = Dataset(path=write(rows)).rows("train", 40)
    assert all(set(row) == {"prompt", "answer", "level"} for row in found)
    assert {row["answer"] is None for row in found} == {True, False}


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (None, 'the column "answer" is empty'),
        (" ", 'the column "answer" is empty'),
        (float("nan"), 'the column "answer" is empty'),
        (["4", "four"], 'the column "answer" holds a list, and no completion equals that'),
        ({"value": 4}, 'the column "answer" holds an object, and no completion equals that'),
        ("4", None),
        (0, None),
    ],
)
def test_an_answer_that_no_completion_can_equal_is_a_fault(write: Write, answer: Any, fault: str | None) -> None:
    task = Dataset(path=write([{"prompt": str(i), "answer": answer} for i in range(20)]))
    found = task.fault_of_answer(task.rows("train", 1)[0])
    assert found is None if fault is None else str(found).startswith(fault)


# --- errors in a file ---


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.jsonl", None, "there is no file {}."),
        ("rows.xlsx", "[]", "{} cannot be read: its name must end in .jsonl"),
        ("rows.jsonl", "", "{} holds no rows."),
        ("rows.csv", "prompt,answer\n", "{} holds no rows."),
        ("rows.jsonl", '{"prompt": "1"}\n{"prompt": ', "{}: 1 of 2 lines cannot be read: line 2: Expecting value"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_reason(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    assert re.match(re.escape(message.format(path)), refusal(Dataset(path=str(path))))


def test_an_empty_split_is_an_error_with_the_remedy(write: Write) -> None:
    path = write([row for row in ROWS if stable_hash(row["prompt"]) % 10 > 2][:4])
    task = Dataset(path=path)
    remedy = "Add rows, or set task.test_path."
    assert refusal(task, "test") == f"none of the 4 rows of {path} belongs to the test split. {remedy}"
    assert refusal(task, "validation") == f"none of the 4 rows of {path} belongs to the validation split. Add rows."


def test_a_named_answer_column_must_exist(write: Write) -> None:
    # This also holds if another column has the default name.
    task = Dataset(path=write([{"prompt": "1", "answer": "2"}]), answer_column="solution")
    assert 'has no column "solution". Its columns: prompt, answer. Set task.answer_column' in refusal(task)

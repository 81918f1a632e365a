"""Rows given in Python: accepted and rejected values, and how a run keeps them."""

from __future__ import annotations

import datetime
import decimal
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.messages import raises
from unmask.core.errors import ConfigError, DataError
from unmask.recipes.load import load_recipe, validate
from unmask.tasks import Dataset
from unmask.tasks.memory import plain_rows
from unmask.tasks.source import as_source, content_hash, read_table

ROWS: list[dict[str, Any]] = [{"prompt": f"{i}?", "answer": i, "level": i / 2} for i in range(40)]
TEXTS = [row | {"answer": str(row["answer"])} for row in ROWS]


def found(rows: Any) -> list[dict[str, Any]]:
    task = Dataset(path=rows, test_path=[{"prompt": "other"}])
    taken = [row for split in ("train", "validation") for row in task.rows(split, 100)]  # type: ignore[arg-type]
    return sorted(taken, key=lambda row: int(row["answer"]))


def columns() -> dict[str, list[Any]]:
    return {name: [row[name] for row in ROWS] for name in ROWS[0]}


def test_lists_tuples_generators_and_columns_are_rows() -> None:
    for rows in (ROWS, tuple(ROWS), iter(ROWS), columns()):
        assert found(rows) == TEXTS


@pytest.mark.slow
def test_datasets_data_frames_and_tables_are_rows() -> None:
    datasets = pytest.importorskip("datasets")
    pandas = pytest.importorskip("pandas")
    pyarrow = pytest.importorskip("pyarrow")
    assert found(datasets.Dataset.from_list(ROWS)) == TEXTS
    assert found(pandas.DataFrame(ROWS)) == TEXTS
    assert found(pyarrow.Table.from_pylist(ROWS)) == TEXTS
    reordered = pandas.DataFrame(ROWS).sort_values("answer", ascending=False)
    assert [row["answer"] for row in plain_rows(reordered)] == list(range(39, -1, -1))


def test_a_dataset_dict_brings_its_test_split() -> None:
    datasets = pytest.importorskip("datasets")
    both = datasets.DatasetDict(
        train=datasets.Dataset.from_list(ROWS), test=datasets.Dataset.from_list([{"prompt": "x", "answer": 1}])
    )
    task = Dataset(path=both)  # type: ignore[arg-type]
    assert [row["prompt"] for row in task.rows("test", 10)] == ["x"]
    assert len(task.rows("train", 100)) + len(task.rows("validation", 100)) == 40
    with pytest.raises(
        DataError, match='has no split "train"; it has dev. Give one of them, as in path=data\\["dev"\\]'
    ):
        Dataset(path=datasets.DatasetDict(dev=both["train"]))  # type: ignore[arg-type]


def test_missing_values_of_a_frame_are_none_and_values_of_numpy_are_plain() -> None:
    numpy = pytest.importorskip("numpy")
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {"prompt": ["a", "b"], "level": [1.5, None], "when": [pandas.Timestamp("2026-01-02"), None]}
    )
    assert plain_rows(frame) == [
        {"prompt": "a", "level": 1.5, "when": "2026-01-02 00:00:00"},
        {"prompt": "b", "level": None, "when": None},
    ]
    values = {"a": numpy.int64(3), "b": numpy.bool_(True), "c": numpy.array([[1, 2]]), "d": numpy.str_("x")}
    (row,) = plain_rows([values])
    assert row == {"a": 3, "b": True, "c": [[1, 2]], "d": "x"}
    assert [type(value) for value in row.values()] == [int, bool, list, str]


def test_accepted_values_survive_a_round_trip_through_json() -> None:
    messages = [{"role": "user", "content": "é"}]
    rows = [{"prompt": messages, 1: (1, 2), "d": datetime.date(2026, 1, 2), "e": decimal.Decimal("1.50")}]
    taken = plain_rows(rows)
    assert taken == [{"prompt": messages, "1": [1, 2], "d": "2026-01-02", "e": "1.50"}]
    assert json.loads(json.dumps(taken)) == taken


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "the list of rows holds no rows"),
        ({}, "the dict of rows must map names of columns to lists of one length"),
        ({"prompt": ["a"], "answer": ["b", "c"]}, "the dict of rows must map .*its keys: prompt, answer"),
        ({"prompt": "a"}, "the dict of rows must map "),
        (["a", "b"], "row 1 of the list is 'a'; each row must be a dict of columns"),
        ([{"prompt": "a"}, None], "row 2 of the list is 'None'"),
        ([{"prompt": "a", "image": b"x"}], 'row 1 of the list, column "image": a value of the type bytes cannot be'),
        (
            [{"prompt": "a", "f": [object()]}],
            'row 1 of the list, column "f": a value of the type object cannot be written',
        ),
        (7, "rows cannot be taken from a value of the type int. Give the path of a file"),
        (b"rows.jsonl", "rows cannot be taken from a value of the type bytes"),
    ],
)
def test_what_cannot_be_taken_is_refused_with_the_place(rows: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"^{message}"):
        Dataset(path=rows)


def test_two_columns_of_one_name_and_endless_data_are_refused() -> None:
    datasets = pytest.importorskip("datasets")
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame([["a", "b", "c"]], columns=["prompt", "answer", "answer"])
    with pytest.raises(DataError, match='^the DataFrame has 2 columns called "answer"'):
        Dataset(path=frame)
    with raises(DataError, "IterableDataset", "list(data.take(NUMBER))"):
        Dataset(path=datasets.Dataset.from_list(ROWS).to_iterable_dataset())  # type: ignore[arg-type]


def test_a_path_may_be_a_path_object_and_none_stays_missing(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert found(path) == TEXTS
    with pytest.raises(ConfigError, match="task.path"):
        load_recipe("sudoku-tiny", ["task.type=dataset", "task.path=null"])


def test_equal_rows_have_one_name_and_the_hash_of_the_same_rows_in_a_file(tmp_path: Path) -> None:
    name = as_source(ROWS)
    assert name == as_source(iter(ROWS))
    assert name != as_source(ROWS[1:])
    assert read_table(str(name), "train").sha256 == content_hash(ROWS)
    assert read_table(str(name), "train").place(2) == "row 3"


def test_a_fault_of_a_row_names_it_among_the_rows_given() -> None:
    with pytest.raises(
        DataError, match="^1 of 41 rows of the data given in Python cannot be used:\n  row 41: the prompt is empty"
    ):
        found([*ROWS, {"prompt": "", "answer": 1}])


@pytest.mark.slow
def test_a_kept_task_reads_its_rows_before_and_after_they_are_written_and_in_another_process(tmp_path: Path) -> None:
    task = Dataset(path=ROWS, test_path=ROWS[:5])  # type: ignore[arg-type]
    kept = task.kept_in(tmp_path)
    path = Path(kept.path)
    assert path.parent == tmp_path / "rows"
    assert kept.rows("train", 100) == task.rows("train", 100)
    kept.write_rows(tmp_path)
    assert len(list(path.parent.iterdir())) == 2
    assert kept.kept_in(tmp_path) is kept
    script = (
        "import sys; from unmask.tasks import Dataset; from unmask.tasks.source import read_table\n"
        "print(read_table(sys.argv[1], 'train').sha256)\n"
        "Dataset(path=sys.argv[2]).rows('train', 1)"
    )
    other = subprocess.run(
        [sys.executable, "-c", script, str(path), task.path], capture_output=True, text=True, check=False
    )
    assert other.stdout.strip() == content_hash(ROWS)
    assert "stands for rows that were given in Python in another process" in other.stderr


def test_a_recipe_takes_rows_in_place_of_a_path() -> None:
    recipe = load_recipe("sudoku-tiny")
    tree = recipe.model_dump() | {"task": {"type": "dataset", "path": ROWS}}
    again = validate(type(recipe), tree)
    assert again.task.rows("train", 1)[0]["prompt"].endswith("?")
    assert validate(type(recipe), again.model_dump(mode="json")) == again

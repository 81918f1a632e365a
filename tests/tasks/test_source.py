"""Rows from files and from the hub's reader, their hash, and errors in a source."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from unmask.core.errors import ConfigError, DataError
from unmask.tasks.source import content_hash, read_table

ROWS: list[dict[str, Any]] = [{"question": f"{i} + é?", "answer": f"work\n#### {i}"} for i in range(5)]


def read_rows(source: str, split: str, revision: str | None = None) -> tuple[list[dict[str, Any]], str]:
    """Return the rows of a source and their hash."""
    table = read_table(source, split, revision)
    return table.rows, table.sha256


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    """Write a file of these rows in the format of its extension."""
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_the_same_rows_have_one_hash_in_every_format(tmp_path: Path, suffix: str) -> None:
    rows, digest = read_rows(write(tmp_path / f"rows{suffix}", ROWS), "train")
    assert rows == ROWS
    lines = [json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n" for row in ROWS]
    assert digest == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_another_value_another_order_and_another_column_are_another_hash() -> None:
    changed = [{**ROWS[0], "answer": "#### 1"}, *ROWS[1:]]
    wider = [row | {"level": 1} for row in ROWS]
    hashes = [content_hash(rows) for rows in (ROWS, changed, ROWS[::-1], ROWS[:4], wider)]
    assert len(set(hashes)) == 5
    assert content_hash([{"a": "\ud800"}]) != content_hash([{"a": "?"}])


def test_a_file_that_changed_is_read_again_and_rows_are_the_callers_own(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write(path, ROWS)
    rows, before = read_rows(str(path), "train")
    rows[0]["answer"] = "mine"
    assert read_rows(str(path), "train") == (ROWS, before)
    write(path, ROWS[:4])
    os.utime(path, ns=(1, 1))
    assert read_rows(str(path), "train") == (ROWS[:4], content_hash(ROWS[:4]))


def test_lists_in_a_column_survive_parquet_and_jsonl(tmp_path: Path) -> None:
    rows = [{"text": "t", "test_list": ["assert f(1) == 2", "assert f(2) == 3"]}]
    assert read_rows(write(tmp_path / "a.jsonl", rows), "test") == read_rows(
        write(tmp_path / "a.parquet", rows), "test"
    )


def test_a_folder_is_read_as_the_hub_would_be_with_its_splits(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    write(tmp_path / "train.jsonl", ROWS)
    write(tmp_path / "test.jsonl", ROWS[:2])
    assert read_rows(str(tmp_path), "train") == (ROWS, content_hash(ROWS))
    assert read_rows(str(tmp_path), "test") == (ROWS[:2], content_hash(ROWS[:2]))


def test_a_hub_name_its_configuration_split_and_revision_reach_the_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked: list[Any] = []

    def load_dataset(*arguments: Any, **keywords: Any) -> Any:
        asked.append((arguments, keywords))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for _ in range(2):
        assert read_rows("owner/set:main", "test", "abc123") == (ROWS, content_hash(ROWS))
    assert read_rows("owner/other-1.5", "train")[0] == ROWS
    assert asked == [
        (("owner/set", "main"), {"split": "test", "revision": "abc123"}),
        (("owner/other-1.5", None), {"split": "train", "revision": None}),
    ]


def test_an_error_of_the_hub_is_reported_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def load_dataset(*_: Any, **__: Any) -> Any:
        raise ConnectionError("Couldn't reach 'owner/gone' on the Hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError) as caught:
        read_rows("owner/gone", "train")
    assert str(caught.value).startswith(
        "owner/gone, split \"train\", cannot be read: Couldn't reach 'owner/gone' on the Hub. No local file has this name"
    )


@pytest.mark.parametrize(("package", "source"), [("datasets", "owner/missing"), ("pyarrow", "rows.parquet")])
def test_a_missing_package_is_reported_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, source: str
) -> None:
    if source.endswith("parquet"):
        source = str(tmp_path / source)
        Path(source).touch()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=r'pip install "unmask\[data\]"'):
        read_rows(source, "train")


def test_a_revision_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="^revision = main: .* is not a data set of the hub"):
        read_rows(write(tmp_path / "rows.jsonl", ROWS), "train", "main")


def test_a_home_directory_is_written_as_in_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "rows.jsonl", ROWS)
    assert read_rows("~/rows.jsonl", "train")[0] == ROWS


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for name in ("none.jsonl", "none.CSV.gz", "x" * 300 + ".jsonl"):
        with pytest.raises(DataError, match="^there is no file "):
            read_rows(str(tmp_path / name), "train")

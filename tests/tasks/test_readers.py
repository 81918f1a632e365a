"""Data files in every format, as other tools write them, and errors with their place."""

from __future__ import annotations

import csv
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from unmask.core.errors import DataError
from unmask.tasks.readers import read_file
from unmask.tasks.source import content_hash, read_table

ROWS = [{"prompt": f"{i} + é?", "answer": f"{i}"} for i in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
COMMAS = "prompt,answer\n" + "".join(f"{row['prompt']},{row['answer']}\n" for row in ROWS)


def at(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_table(str(path), "train")
    return str(caught.value).replace(str(path), "FILE")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", LINES),
        ("rows.JSONL", LINES),
        ("rows.ndjson", LINES),
        ("rows.jsonl", "\ufeff" + LINES.replace("\n", "\r\n\r\n")),
        ("rows.jsonl", LINES.encode("utf-16")),
        ("rows.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)),
        ("rows.json", json.dumps(ROWS)),
        ("rows.JSON", json.dumps(ROWS, indent=2).encode("utf-8-sig")),
        ("rows.json", json.dumps({"rows": ROWS})),
        ("rows.json", LINES),
        ("rows.json", json.dumps({name: [row[name] for row in ROWS] for name in ("prompt", "answer")})),
        ("rows.json", json.dumps({n: {str(i): row[n] for i, row in enumerate(ROWS)} for n in ("prompt", "answer")})),
        ("rows.csv", COMMAS),
        ("rows.CSV", COMMAS),
        ("rows.Csv.GZ", gzip.compress(COMMAS.encode(), mtime=0)),
        ("rows.csv", "\ufeff" + COMMAS.replace("\n", "\r\n")),
        ("rows.csv", COMMAS.encode("utf-16")),
        ("rows.csv", COMMAS.replace(",", ";")),
        ("rows.csv", "sep=;\r\n" + COMMAS.replace(",", ";")),
        ("rows.csv", COMMAS.replace(",", "\t")),
        ("rows.csv", COMMAS.replace(",", "|")),
        ("rows.csv", COMMAS.replace("prompt,answer", " prompt , answer").replace("\n", ",\n")),
        ("rows.csv", COMMAS.replace("\n", "\n\n") + ",\n,\n"),
        ("rows.csv", "".join(f"{i - 1 if i else ''},{line}\n" for i, line in enumerate(COMMAS.splitlines()))),
        ("rows.tsv", COMMAS.replace(",", "\t")),
        ("rows.TSV.gz", gzip.compress(COMMAS.replace(",", "\t").encode(), mtime=0)),
    ],
    ids=str,
)
def test_the_same_rows_are_read_from_every_layout(tmp_path: Path, name: str, content: str | bytes) -> None:
    table = read_table(str(at(tmp_path, name, content)), "train")
    assert table.rows == ROWS
    assert table.sha256 == content_hash(ROWS)


def test_rows_are_placed_by_line_in_text_and_by_row_elsewhere(tmp_path: Path) -> None:
    spread = at(tmp_path, "rows.jsonl", LINES.replace("\n", "\n\n"))
    assert [read_table(str(spread), "train").place(i) for i in range(3)] == ["line 1", "line 3", "line 5"]
    quoted = at(tmp_path, "rows.csv", 'prompt,answer\n"a\nb\nc",1\nd,2\n')
    assert [read_table(str(quoted), "train").place(i) for i in range(2)] == ["line 2", "line 5"]
    named = at(tmp_path, "named.csv", "sep=;\nprompt;answer\na;1\n")
    assert read_table(str(named), "train").place(0) == "line 3"
    assert read_table(str(at(tmp_path, "rows.json", json.dumps(ROWS))), "train").place(2) == "row 3"


def test_a_comma_in_the_header_is_the_separator_whatever_else_stands_there(tmp_path: Path) -> None:
    path = at(tmp_path, "rows.csv", 'prompt,"a;b"\n1;2,3|4\n')
    assert read_table(str(path), "train").rows == [{"prompt": "1;2", "a;b": "3|4"}]
    single = at(tmp_path, "single.csv", "prompt\nwhat;is|it\n")
    assert read_table(str(single), "train").rows == [{"prompt": "what;is|it"}]


def test_long_cells_are_read_and_the_limit_of_other_readers_stays(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    path = at(tmp_path, "rows.csv", "prompt,answer\n" + "x" * 1_000_000 + ",1\n")
    assert len(read_table(str(path), "train").rows[0]["prompt"]) == 1_000_000
    assert csv.field_size_limit() == limit


def test_nested_values_numbers_and_missing_keys_are_kept(tmp_path: Path) -> None:
    row = {"prompt": [{"role": "user", "content": "x"}], "level": 3, "share": 0.5, "tests": ["a", None], "ok": True}
    path = at(tmp_path, "rows.jsonl", json.dumps(row) + '\n{"prompt": "y"}\n')
    assert read_table(str(path), "train").rows == [row, {"prompt": "y"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "rows.xlsx",
            b"PK",
            "FILE cannot be read: its name must end in .jsonl, .json, .csv, .tsv or .parquet .* Export",
        ),
        ("rows.csv.zst", b"(", "FILE cannot be read: its name must end in .* Unpack it first"),
        ("rows.txt", "x", "FILE cannot be read: its name must end in .* or rename the file"),
        ("rows.jsonl.gz", LINES, "FILE cannot be read: Not a gzipped file"),
        ("rows.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)[:-9], "FILE cannot be read: "),
        ("rows.jsonl", "", "FILE holds no rows."),
        ("rows.json", "", "FILE holds no rows."),
        ("rows.json", "[]", "FILE holds no rows."),
        ("rows.csv", "", "FILE holds no rows."),
        ("rows.csv", "prompt,answer\n\n", "FILE holds no rows."),
        (
            "rows.csv",
            "a,b\n1,2,3\n4,5\n6\n",
            "FILE: the header has 2 fields, but line 2 has 3; line 4 has 1. Fields are",
        ),
        ("rows.tsv", "a\tb\n1\n", "FILE: the header has 2 fields, but line 2 has 1. Fields are separated by a tab."),
        ("rows.csv", "a,b\n" + "1\n" * 9, "FILE: .* line 2 has 1; line 3 has 1; line 4 has 1; and 6 more. "),
        ("rows.csv", 'a,b\n"1,2\n3,4\n', "FILE cannot be read from line 2 on: unexpected end of data. A field"),
        ("rows.csv", 'a,b\n"1"0,2\n', "FILE cannot be read from line 2 on: ',' expected after '\"'. A field"),
        (
            "rows.csv",
            "answer,prompt, answer\n1,2,3\n",
            'FILE has 2 columns called "answer". Rename or remove all but one.',
        ),
        ("rows.csv", "prompt\n" + "a\0b\n", "FILE holds a NUL byte in line 2, which no text file has."),
        ("rows.csv", COMMAS.encode("utf-16-le"), "FILE .*UTF-16"),
        ("rows.csv", COMMAS.encode("cp1252"), r"FILE is not in UTF-8 \(line 2, byte 0xe9\); it may be in Windows-1252"),
        (
            "rows.jsonl",
            LINES.encode("latin-1") + "é".encode("latin-1"),
            "FILE is not in UTF-8 .* iconv -f WINDOWS-1252 ",
        ),
        ("rows.jsonl", '{"a": 1}\n{"a": \n{"a": 2}\n{\n', "FILE: 2 of 4 lines cannot be read: line 2: .*; line 4: "),
        ("rows.jsonl", "[" * 100_000, "FILE.* "),
        ("rows.jsonl", json.dumps(ROWS, indent=1), "FILE holds a JSON list, not one JSON object in each line. Rename"),
        (
            "rows.jsonl",
            '{"a": 1}\n[1, 2]\n7\n',
            r"FILE: each line must be a JSON object .*line 2 is '\[1, 2\]'; line 3 is '7'",
        ),
        ("rows.json", '[{"a": 1}, 2]', "FILE: each row must be a JSON object with columns, but row 2 is '2'."),
        ("rows.json", '{"a": [1], "b": [1, 2]}', "FILE must hold a list of objects, or an object of columns"),
        ("rows.json", '"text"', "FILE must hold a list of objects"),
        ("rows.json", '{"a": [1', "FILE cannot be read as JSON: "),
        ("rows.json", "[" * 100_000, "FILE cannot be read as JSON: "),
        (
            "rows.jsonl",
            '{"answer": 1, "answer": 2}\n',
            'FILE: 1 of 1 lines cannot be read: line 1: the key "answer" occurs 2',
        ),
        (
            "rows.json",
            '[{"a": {"b": 1, "b": 2}}]',
            'FILE cannot be read as JSON: the key "b" occurs 2 times in one object',
        ),
        ("rows.jsonl", '{"a": ' + "9" * 5000 + "}\n", "FILE: 1 of 1 lines cannot be read: line 1: Exceeds the limit"),
        ("rows.parquet", "PAR1 but no more", "FILE cannot be read as parquet: "),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_place_and_a_remedy(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    assert re.match(message, refusal(at(tmp_path, name, content)))


def test_two_parquet_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table([["a"], ["b"]], names=["answer", "answer"]), path)
    assert refusal(path) == 'FILE has 2 columns called "answer". Rename or remove all but one.'


def test_a_folder_and_an_unreadable_file_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.mkdir()
    with pytest.raises(DataError, match="cannot be read: "):
        read_file(path)


def test_numbers_that_json_does_not_know_are_read_as_python_reads_them(tmp_path: Path) -> None:
    path = at(tmp_path, "rows.jsonl", '{"prompt": "x", "level": NaN, "limit": Infinity}\n')
    (row,) = read_table(str(path), "train").rows
    level: Any = row["level"]
    assert level != level
    assert row["limit"] == float("inf")

"""Readers of data files: csv, tsv, json, jsonl and parquet, as rows with their line or row numbers.

Every error names the file, the place in the file and the remedy. Rows are returned as they are in
the file; the task decides later whether it can use them.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from unmask.core.errors import ConfigError, DataError, reason

SHOWN = 3
"""Number of faults of one kind that a message names."""

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    # The byte order mark of UTF-32 starts with that of UTF-16, so it is checked first.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SEPARATOR_LINE = re.compile(r"sep=(.)\r?\n", re.IGNORECASE)
"""First line with which Excel names the separator of a CSV file."""


class Contents(NamedTuple):
    """Rows of a file, with their line or row numbers."""

    rows: list[Any]
    numbers: list[int]
    """Line or row number of each row in the file, counted from 1."""
    unit: str
    """Unit of the numbers: "line" or "row"."""


def ending_of(path: Path) -> str:
    """Return the file name extension that selects the reader: lower case, without a final .gz.

    Example:
        >>> [ending_of(Path(name)) for name in ("rows.CSV", "rows.jsonl.gz", "rows.xlsx", "rows")]
        ['.csv', '.jsonl', '.xlsx', '']
    """
    return (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()


def read_file(path: Path) -> Contents:
    """Return the rows of a file. The file name extension selects the reader.

    Raises:
        DataError: the file cannot be read in this format.
        ConfigError: the file is in parquet format and pyarrow is not installed.
    """
    ending = ending_of(path)
    if ending not in READERS:
        raise DataError(f"{path} cannot be read: its name must end in {NAMED_ENDINGS}. {_advice(path)}")
    try:
        content = path.read_bytes()
        if path.suffix.lower() == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {reason(error)}.") from error
    return READERS[ending](content, path)


def check_columns(names: Sequence[str], place: str) -> None:
    """Reject a table in which two columns have the same name.

    Raises:
        DataError: two columns have the same name; the message names it.
    """
    for name in names:
        if names.count(name) > 1:
            raise DataError(f'{place} has {names.count(name)} columns called "{name}". Rename or remove all but one.')


def several(faults: Sequence[str]) -> str:
    """Return a text with the first few faults and the number of further faults."""
    more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
    return "; ".join(faults[:SHOWN]) + more


def _advice(path: Path) -> str:
    if path.suffix.lower() in (".xlsx", ".xls", ".ods"):
        return "Export the sheet as CSV."
    if path.suffix.lower() in (".zip", ".zst", ".bz2", ".xz", ".7z", ".tar"):
        return "Unpack it first; only .gz is unpacked here."
    return "Save the rows in one of these formats, or rename the file if it already is in one."


def _decoded(content: bytes, path: Path) -> str:
    """Return the text of a file in UTF-8, or in the encoding of its byte order mark."""
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        if b"\0" in content[:1000]:
            guess, name = "UTF-16 without a byte order mark", "UTF-16"
        else:
            guess, name = "Windows-1252 or Latin-1, as Excel saves CSV files", "WINDOWS-1252"
        raise DataError(
            f"{path} is not in UTF-8 (line {line}, byte 0x{content[error.start]:02x}); it may be in {guess}. "
            f"Save it as UTF-8, for example with: iconv -f {name} -t UTF-8 {path} > NEW"
        ) from error
    if "\0" in text:
        raise DataError(
            f"{path} holds a NUL byte in line {text.count(chr(10), 0, text.index(chr(0))) + 1}, which no text file has. If it is "
            f"in UTF-16, save it as UTF-8, for example with: iconv -f UTF-16 -t UTF-8 {path} > NEW"
        )
    return text


def _read_csv(content: bytes, path: Path) -> Contents:
    text = _decoded(content, path)
    named = _SEPARATOR_LINE.match(text)
    delimiter = named[1] if named else _delimiter_of(text)
    return _table(text[named.end() :] if named else text, path, delimiter, first_line=2 if named else 1)


def _read_tsv(content: bytes, path: Path) -> Contents:
    return _table(_decoded(content, path), path, "\t", first_line=1)


def _delimiter_of(text: str) -> str:
    """Return the separator of a csv file: the first of , ; tab | in its header."""
    header = re.sub(r'"[^"]*"', "", text.lstrip("\r\n").partition("\n")[0])
    return next((sign for sign in ",;\t|" if sign in header), ",")


def _table(text: str, path: Path, delimiter: str, first_line: int) -> Contents:
    """Return a table with a header.

    Empty lines are skipped, and columns without a name are left out.
    """
    lines = list(_records(text, path, delimiter, first_line))
    if not lines:
        return Contents([], [], "line")
    header = [name.strip() for name in lines[0][1]]
    check_columns([name for name in header if name], str(path))
    ragged = [f"line {number} has {len(fields)}" for number, fields in lines[1:] if len(fields) != len(header)]
    if ragged:
        sign = {"\t": "a tab"}.get(delimiter, f'"{delimiter}"')
        raise DataError(
            f"{path}: the header has {len(header)} fields, but {several(ragged)}. Fields are separated by {sign}. Put fields "
            "that contain it in double quotes, and leave no field out."
        )
    rows = [{name: field for name, field in zip(header, fields, strict=True) if name} for _, fields in lines[1:]]
    return Contents(rows, [number for number, _ in lines[1:]], "line")


def _records(text: str, path: Path, delimiter: str, first_line: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the fields of each record with the number of the line where it begins."""
    # In strict mode, a quote that is never closed does not absorb the rest of the file.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = first_line
    with _long_fields():
        try:
            for fields in reader:
                if any(field.strip() for field in fields):
                    yield line, fields
                line = first_line + reader.line_num
        except csv.Error as error:
            raise DataError(
                f"{path} cannot be read from line {line} on: {error}. A field that contains a double quote must stand in "
                "double quotes, with each quote inside doubled; look for one that is not closed."
            ) from error


@contextmanager
def _long_fields() -> Iterator[None]:
    """Allow fields of any length; Python's limit is 128 kB."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _read_jsonl(content: bytes, path: Path) -> Contents:
    return _json_lines(_decoded(content, path), path)


def _json_lines(text: str, path: Path) -> Contents:
    rows: list[Any] = []
    numbers: list[int] = []
    faults: list[str] = []
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        if not line.strip():
            continue
        try:
            rows.append(_parsed(line))
            numbers.append(number)
        except (ValueError, RecursionError) as error:
            faults.append(f"line {number}: {reason(error)}")
    if faults:
        if text.lstrip().startswith("[") and not rows:
            raise DataError(f"{path} holds a JSON list, not one JSON object in each line. Rename it to end in .json.")
        raise DataError(
            f"{path}: {len(faults)} of {len(faults) + len(rows)} lines cannot be read: {several(faults)}. Each line must be one "
            "JSON object."
        )
    _check_objects(rows, numbers, "line", path)
    return Contents(rows, numbers, "line")


def _read_json(content: bytes, path: Path) -> Contents:
    """Read a list of objects, an object of columns, an object with one list, or JSON lines."""
    text = _decoded(content, path)
    if not text.strip():
        return Contents([], [], "row")
    try:
        tree = _parsed(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            # Files with one object in each line are often called .json.
            return _json_lines(text, path)
        raise DataError(f"{path} cannot be read as JSON: {error}.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON: {reason(error)}.") from error
    rows = _rows_of(tree)
    if rows is None:
        raise DataError(
            f"{path} must hold a list of objects, or an object of columns that are lists of equal length. It holds "
            f"{str(tree)[:60]!r}."
        )
    numbers = list(range(1, len(rows) + 1))
    _check_objects(rows, numbers, "row", path)
    return Contents(rows, numbers, "row")


def _rows_of(tree: Any) -> list[Any] | None:
    """Return the rows of any layout of a .json file; None for an unknown layout."""
    if isinstance(tree, list):
        return tree
    if not isinstance(tree, dict) or not tree:
        return None
    columns = list(tree.values())
    if len(columns) == 1 and isinstance(columns[0], list) and all(isinstance(item, dict) for item in columns[0]):
        return list(columns[0])
    if all(isinstance(column, list) for column in columns):
        return rows_of_columns(tree)
    if all(isinstance(column, dict) and column.keys() == columns[0].keys() for column in columns):
        # pandas writes each column as an object that maps the index to the value.
        return rows_of_columns({name: list(column.values()) for name, column in tree.items()})
    # A file with a single object in one line counts as JSON lines with one row.
    return [tree]


def rows_of_columns(columns: dict[str, list[Any]]) -> list[dict[str, Any]] | None:
    """Return the rows of a table that is given by its columns; None if their lengths differ."""
    if len({len(values) for values in columns.values()}) != 1:
        return None
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _parsed(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_without_duplicates)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f'the key "{twice}" occurs {names.count(twice)} times in one object')
    return found


def _check_objects(rows: Iterable[Any], numbers: Iterable[int], unit: str, path: Path) -> None:
    faults = [
        f"{unit} {number} is {str(row)[:40]!r}"
        for number, row in zip(numbers, rows, strict=True)
        if not isinstance(row, dict)
    ]
    if faults:
        raise DataError(f"{path}: each {unit} must be a JSON object with columns, but {several(faults)}.")


def _read_parquet(content: bytes, path: Path) -> Contents:
    try:
        from pyarrow import ArrowException, BufferReader, parquet
    except ImportError:
        raise ConfigError(
            f'{path} needs pyarrow: pip install "unmask[data]". A .jsonl or .csv file does not.'
        ) from None
    try:
        check_columns(parquet.read_schema(BufferReader(content)).names, str(path))
        table = parquet.read_table(BufferReader(content))
        rows: list[Any] = table.to_pylist()
    except ArrowException as error:
        raise DataError(f"{path} cannot be read as parquet: {reason(error)}.") from error
    return Contents(rows, list(range(1, len(rows) + 1)), "row")


READERS: dict[str, Callable[[bytes, Path], Contents]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}
"""Reader of each file name extension."""

NAMED_ENDINGS = ".jsonl, .json, .csv, .tsv or .parquet (each with .gz or without)"

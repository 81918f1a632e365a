"""Sources of rows: a data set of the Hugging Face hub, a local file, or rows given in Python.

A content hash identifies the rows of a run. It does not depend on the file format: the same rows in
parquet and jsonl have the same hash.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from unmask.core.errors import ConfigError, DataError, no_file, reason
from unmask.tasks.memory import PREFIX, is_in_memory, is_table, plain_rows, remember, rows_in_memory
from unmask.tasks.readers import NAMED_ENDINGS, READERS, ending_of, read_file

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(?::[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of a source with their places in it."""

    rows: list[dict[str, Any]]
    """Rows with the source's own columns; from a csv or tsv file, all values are text."""
    sha256: str
    """The `content_hash` of the rows."""
    numbers: list[int]
    unit: str

    def place(self, index: int) -> str:
        """Return the name of a row in messages, such as "line 7"."""
        return f"{self.unit} {self.numbers[index]}"


def read_table(source: str, split: str, revision: str | None = None) -> Table:
    """Return the rows of a source; the caller may change the dicts.

    Args:
        source: a file with an extension in `READERS`, all of whose rows belong to one split; a data
            set of the hub as `owner/name` or `owner/name:config`, or a local folder, which the
            package `datasets` reads; or the name of rows from `as_source`.
        split: split of a hub data set; a file is read whole.
        revision: branch, tag or commit of a hub data set; default: the newest. A file has no
            revision, because its hash identifies it.

    Raises:
        DataError: the file or data set does not exist or cannot be read.
        ConfigError: a required package is not installed, or a revision was given for a file.
    """
    if revision is not None and is_file(source):
        raise ConfigError(
            f"revision = {revision}: {source} is not a data set of the hub, so it has no revisions. Leave it out; the content "
            "hash is recorded anyway."
        )
    if is_in_memory(source):
        table = _in_memory(source)
    elif is_file(source):
        path = Path(source).expanduser()
        table = _file(path, _stamp(path))
    else:
        table = _hub(source, split, revision)
    return replace(table, rows=[dict(row) for row in table.rows])


def as_source(value: object) -> object:
    """Return the name of a source: a path or name is returned unchanged, and rows from Python get a
    new name.

    Raises:
        DataError: the value is neither a path or name nor rows.

    Example:
        >>> as_source("rows.jsonl"), as_source([{"prompt": "1+1="}])
        ('rows.jsonl', 'memory:80aa52059d02d3a2')
    """
    if not is_table(value):
        return str(value) if isinstance(value, Path) else value
    rows = plain_rows(value)
    return remember(PREFIX + content_hash(rows)[:16], rows)


def is_file(source: str) -> bool:
    """Return True if a source is read as a file, even if it is missing, and not as a data set.

    Example:
        >>> [is_file(source) for source in ("rows.CSV", "owner/name.parquet", "owner/name", "owner/name:config", "name")]
        [True, True, False, False, True]
    """
    path = Path(source).expanduser()
    # `Path.is_dir` would raise for a name that is too long.
    is_there = os.path.isfile(path)
    return not os.path.isdir(path) and (ending_of(path) in READERS or is_there or not _HUB_NAME.fullmatch(source))


def content_hash(rows: Iterable[dict[str, Any]]) -> str:
    """Return the SHA-256 of the rows in their order. Each row is hashed as a line of UTF-8 JSON
    with sorted keys.

    Args:
        rows: rows to hash; values that JSON does not support are converted to text.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> content_hash([{"b": 1, "a": "é"}])[:16]
        '2f8b31e48ae7ba32'
        >>> content_hash([{"a": "é", "b": 1}]) == content_hash([{"b": 1, "a": "é"}])
        True
    """
    digest = hashlib.sha256()
    for row in rows:
        try:
            line = json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
        except (RecursionError, TypeError) as error:
            raise DataError(f"the row {str(row)[:60]!r} cannot be written as JSON: {reason(error)}.") from error
        # JSON allows a lone surrogate, which UTF-8 cannot encode by default.
        digest.update(line.encode(errors="surrogatepass") + b"\n")
    return digest.hexdigest()


def _stamp(path: Path) -> tuple[int, int]:
    """Return a stamp that changes when the file changes, so that an unchanged file is parsed
    once."""
    if os.path.isdir(path):
        raise DataError(f"{path} is a folder. Name a file in it that ends in {NAMED_ENDINGS}.")
    if not os.path.isfile(path):
        raise DataError(no_file(path))
    status = path.stat()
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=8)
def _file(path: Path, _stamp: tuple[int, int]) -> Table:
    rows, numbers, unit = read_file(path)
    return _table(rows, numbers, unit, str(path))


@lru_cache(maxsize=8)
def _in_memory(source: str) -> Table:
    rows = rows_in_memory(source)
    return _table(rows, list(range(1, len(rows) + 1)), "row", "the list")


@lru_cache(maxsize=8)
def _hub(source: str, split: str, revision: str | None) -> Table:
    try:
        from datasets import load_dataset
    except ImportError:
        raise ConfigError(
            f'{source} is a data set of the hub, which needs the package datasets: pip install "unmask[data]". '
            "A local file with the same columns also works."
        ) from None
    name, _, config = (source, "", "") if Path(source).is_dir() else source.partition(":")
    try:
        rows = load_dataset(name, config or None, split=split, revision=revision).to_list()
    except Exception as error:  # The network, the hub's files and their readers may raise any exception.
        raise DataError(
            f'{source}, split "{split}", cannot be read: {reason(error).rstrip(".")}. No local file has this name either. Give a '
            f"data set of the hub as owner/name or owner/name:config, or a file that ends in {NAMED_ENDINGS}."
        ) from error
    return _table(rows, list(range(1, len(rows) + 1)), "row", f'{source}, split "{split}",')


def _table(rows: list[Any], numbers: list[int], unit: str, place: str) -> Table:
    if not rows:
        raise DataError(f"{place} holds no rows.")
    return Table(rows, content_hash(rows), numbers, unit)


Source = Annotated[str, BeforeValidator(as_source)]
"""Type of a setting that names a source, for which Python also accepts the rows themselves."""

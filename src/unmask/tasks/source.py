"""Where rows come from: a data set of the Hugging Face hub, or a local file in the hub's own columns, with a content hash.

The hash says which rows a run saw, whatever file they came from: the same rows as parquet and as jsonl have one hash.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from unmask.errors import ConfigError, DataError

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(?::[\w.-]+)?")


def read_rows(source: str, split: str, revision: str | None = None) -> tuple[list[dict[str, Any]], str]:
    """The rows of a source, and a hash of their content.

    Args:
        source: a .parquet, .jsonl or .csv file, which is one split whole; or a data set of the hub as `owner/name` or
            `owner/name:config`, read by the package `datasets`. A local folder is read like the hub.
        split: which split of a hub data set; of a file, all is taken.
        revision: branch, tag or commit of a hub data set; default its newest. A file has none: its hash stands for it.

    Returns:
        A dict for each row, with the source's own columns (all text, where it is a csv); and `content_hash` of them.

    Raises:
        DataError: no such file or data set, or one that cannot be read.
        ConfigError: a package that reads it is not installed, or a revision was given for a file.
    """
    if not is_file(source):
        rows, digest = _hub(source, split, revision)
    else:
        path = Path(source)
        if revision is not None:
            raise ConfigError(
                f"revision = {revision}: {source} is a local file and has none. Leave it out; the content hash is kept anyway."
            )
        rows, digest = _file(path, _stamp(path))
    return [dict(row) for row in rows], digest


def is_file(source: str) -> bool:
    """Whether a source is read as a file, there or not, rather than as a data set of the hub or a folder like one.

    Example:
        >>> [is_file(source) for source in ("rows.jsonl", "owner/name.parquet", "owner/name", "owner/name:config", "name")]
        [True, True, False, False, True]
    """
    path = Path(source)
    return not path.is_dir() and (path.suffix in READERS or path.is_file() or not _HUB_NAME.fullmatch(source))


def content_hash(rows: Iterable[dict[str, Any]]) -> str:
    """SHA-256 over the rows in order, each as a line of JSON with sorted keys and no spaces, in UTF-8.

    Args:
        rows: values that JSON does not know count as their text.

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
        line = json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
        # A lone surrogate is legal in JSON and has no UTF-8 of its own.
        digest.update(line.encode(errors="surrogatepass") + b"\n")
    return digest.hexdigest()


def _stamp(path: Path) -> tuple[int, int]:
    """What changes when the file does, so that an unchanged one is parsed once."""
    if not path.is_file():
        raise DataError(f"there is no file {path}.")
    if path.suffix not in READERS:
        raise DataError(f"{path} must be a {', '.join(READERS)} file.")
    status = path.stat()
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=8)
def _file(path: Path, _stamp: tuple[int, int]) -> tuple[list[dict[str, Any]], str]:
    try:
        rows = READERS[path.suffix](path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not in UTF-8 ({error}). Save it as UTF-8.") from error
    except (csv.Error, OSError) as error:
        raise DataError(f"{path} cannot be read as {path.suffix[1:]}: {error}.") from error
    return _with_hash(rows, str(path))


@lru_cache(maxsize=8)
def _hub(source: str, split: str, revision: str | None) -> tuple[list[dict[str, Any]], str]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise ConfigError(
            f'{source} is a data set of the hub, which needs a package more: pip install "unmask[data]". '
            "A local .parquet, .jsonl or .csv file with its columns does as well."
        ) from None
    name, _, config = (source, "", "") if Path(source).is_dir() else source.partition(":")
    try:
        rows = load_dataset(name, config or None, split=split, revision=revision).to_list()
    except Exception as error:  # whatever the network, the hub's files and their readers raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f'{source}, split "{split}", cannot be read: {reason} There is no such file here either: '
            "give a data set of the hub as owner/name or owner/name:config, or a .parquet, .jsonl or .csv file."
        ) from error
    return _with_hash(rows, f'{source}, split "{split}",')


def _with_hash(rows: list[Any], place: str) -> tuple[list[dict[str, Any]], str]:
    if not rows:
        raise DataError(f"{place} holds no rows.")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(f"row {number} of {place} is {str(row)[:40]!r}; each line must be an object with columns.")
        if None in row:
            raise DataError(f"row {number} of {place} has more fields than the header. Quote those that hold a comma.")
    return rows, content_hash(rows)


def _read_parquet(path: Path) -> list[Any]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ConfigError(
            f'{path} needs a package more: pip install "unmask[data]". A .jsonl or .csv file does not.'
        ) from None
    try:
        rows: list[Any] = parquet.read_table(path).to_pylist()
    except ArrowException as error:
        raise DataError(f"{path} cannot be read as parquet: {error}.") from error
    return rows


def _read_jsonl(path: Path) -> list[Any]:
    with path.open(encoding="utf-8-sig") as file:
        return [_parse(line, f"line {n} of {path}") for n, line in enumerate(file, start=1) if line.strip()]


def _read_csv(path: Path) -> list[Any]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows, start=1):
        if None in row.values():
            missing = ", ".join(name for name, value in row.items() if value is None)
            raise DataError(f"row {number} of {path} has fewer fields than the header: {missing} is missing.")
    return rows


def _parse(line: str, place: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place} is no JSON: {error}.") from error


READERS: dict[str, Callable[[Path], list[Any]]] = {
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
"""How a local file is read, by its suffix."""

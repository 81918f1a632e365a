"""Rows given in Python: a list of dicts, a `datasets.Dataset`, a data frame or a dict of columns.

Such rows get the name `memory:HASH` from the hash of their content. The name can be used in place
of a file's path. A run writes the rows to a .jsonl file in its folder and uses the path of this
file instead, so that another process can resume the run.
"""

from __future__ import annotations

import datetime
import decimal
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from unmask.core.errors import DataError
from unmask.runs.atomic import replaced_whole
from unmask.tasks.readers import check_columns, rows_of_columns

PREFIX = "memory:"

_ROWS: dict[str, list[dict[str, Any]]] = {}
"""Rows by their names. The same rows may have several names."""


def is_in_memory(source: str) -> bool:
    """Return True if a source names rows that were passed in Python, in this process or another
    one."""
    return source.startswith(PREFIX) or source in _ROWS


def rows_in_memory(source: str) -> list[dict[str, Any]]:
    """Return the rows that have this name.

    Raises:
        DataError: the rows were given in another process.
    """
    if source not in _ROWS:
        raise DataError(
            f"{source} stands for rows that were given in Python in another process and are not available here. Write them to "
            "a .jsonl or .parquet file and give its path, or give the rows in Python again. A training run keeps its rows in "
            "the folder rows/ of its run folder."
        )
    return _ROWS[source]


def shown(source: str) -> str:
    """Return the name by which messages refer to a source."""
    return "the data given in Python" if source in _ROWS else source


def remember(name: str, rows: list[dict[str, Any]]) -> str:
    """Make rows available under a name for the lifetime of the process."""
    _ROWS.setdefault(name, rows)
    return name


def is_table(value: object) -> bool:
    """Return True if a value consists of rows rather than the path of a file."""
    return not isinstance(value, str | Path | None)


def plain_rows(value: Any) -> list[dict[str, Any]]:
    """Return rows as dicts that survive a round trip through JSON unchanged.

    Args:
        value: a list of dicts, a dict of columns, a `datasets.Dataset`, a pandas or polars data
            frame, or a pyarrow table.

    Raises:
        DataError: the value has another type, has no rows, or has values that JSON cannot hold.
    """
    kind = type(value).__name__
    if hasattr(value, "columns") and not isinstance(value, Mapping):
        check_columns([str(name) for name in getattr(value, "column_names", value.columns)], f"the {kind}")
    rows = _listed(value, kind)
    if not rows:
        raise DataError(f"the {kind} of rows holds no rows.")
    is_frame = type(value).__module__.partition(".")[0] == "pandas"
    found: list[dict[str, Any]] = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise DataError(f"row {number} of the {kind} is {str(row)[:40]!r}; each row must be a dict of columns.")
        found.append({})
        for name, item in row.items():
            try:
                found[-1][str(name)] = _plain(item, is_frame)
            except TypeError as error:
                raise DataError(
                    f'row {number} of the {kind}, column "{name}": {error}. Remove the column, or turn it into text.'
                ) from error
    return found


def _listed(value: Any, kind: str) -> Sequence[Any]:
    if kind == "IterableDataset":
        raise DataError("an IterableDataset has no known length. Give list(data.take(NUMBER)), or a Dataset.")
    for method in ("to_list", "to_pylist", "to_dicts"):
        if hasattr(value, method):
            return list(getattr(value, method)())
    if hasattr(value, "to_dict"):
        return list(value.to_dict(orient="records"))
    if isinstance(value, Mapping):
        columns = {str(name): list(column) for name, column in value.items() if _is_listed(column)}
        rows = rows_of_columns(columns) if len(columns) == len(value) and value else None
        if rows is None:
            raise DataError(
                f"the {kind} of rows must map names of columns to lists of one length; its keys: {', '.join(map(str, value))}."
            )
        return rows
    if isinstance(value, Iterable) and not isinstance(value, bytes):
        return list(value)
    raise DataError(
        f"rows cannot be taken from a value of the type {kind}. Give the path of a file, a data set of the hub, a list of "
        "dicts, a datasets.Dataset or a data frame."
    )


def _is_listed(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _plain(value: Any, is_frame: bool) -> Any:
    """Return a value after a round trip through JSON.

    NaN, NaT and NA of a pandas frame are missing values.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real) and not isinstance(value, decimal.Decimal):
        number = float(value)
        return None if is_frame and math.isnan(number) else number
    if isinstance(value, Mapping):
        return {str(key): _plain(item, is_frame) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, is_frame) for item in value]
    if is_frame and type(value).__name__ in ("NaTType", "NAType"):
        return None
    if isinstance(value, datetime.date | datetime.time | decimal.Decimal):
        return str(value)
    if hasattr(value, "tolist"):
        # The value is an array or scalar of numpy, or a tensor.
        return _plain(value.tolist(), is_frame)
    raise TypeError(f"a value of the type {type(value).__name__} cannot be written as JSON")


def write_jsonl(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write rows from `plain_rows`; reading the file returns them unchanged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_whole(path) as aside, aside.open("w", encoding="utf-8") as file:
        # Non-ASCII text is escaped, so that an unpaired surrogate can be written. The check of the
        # rows refuses it later.
        file.writelines(json.dumps(row) + "\n" for row in rows)

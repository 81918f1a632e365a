"""Base class of tasks that read their rows from the hub or from files, and split them by a stable
hash."""

from __future__ import annotations

import json
import random
from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self, get_args

from pydantic import Field

from unmask.core.errors import DataError, unknown_name
from unmask.core.prompts import fault_of_prompt
from unmask.tasks.base import Split, Task, stable_hash
from unmask.tasks.candidates import Candidates, refuse
from unmask.tasks.memory import PREFIX, remember, rows_in_memory, shown, write_jsonl
from unmask.tasks.source import Table, read_table

if TYPE_CHECKING:
    from unmask.core.records import Row


class Loaded(NamedTuple):
    """Items that a task makes from the rows of one source."""

    items: list[tuple[Row, str]]
    """Usable items with their places, such as "line 7"."""
    num_rows: int
    """Number of rows of the source."""
    faults: tuple[str, ...]
    """Faults of the rows that are left out."""


class SourcedTask(Task):
    """Base class of tasks that read their rows from a file or a data set. A subclass names the
    sources and makes an item from a row.

    A tenth of the training rows, by a stable hash of `key`, is the validation split. Validation
    rows never come from the test rows. A training row with the same key as a test row is left out.
    """

    revision: str | None = Field(None, min_length=1)
    """Branch, tag or commit of the hub's training rows; default: the newest revision. A content
    hash is recorded in any case."""
    test_revision: str | None = Field(None, min_length=1)
    """Branch, tag or commit of the test rows; default: `revision`, if both come from the same data
    set."""
    unusable_rows: Literal["error", "drop"] = "error"
    """Treatment of rows that cannot be used, because the prompt is missing or malformed, columns
    are missing or wrong, or prompt and completion together are too long for the model.

    `error` stops the run before the first step with a message that names them. `drop` leaves them
    out and reports their number; it replaces TRL's max_prompt_length."""

    carves_test: ClassVar[bool] = False
    """True if a fifth of the training rows becomes the test split when there are no separate test
    rows."""

    @abstractmethod
    def sources(self) -> tuple[str | None, str | None]:
        """Return the source of the training rows and that of the test rows, as `read_table` accepts
        them; None in place of a source that the task does not have."""

    @abstractmethod
    def build(self, raw: Row, place: str) -> Row | None:
        """Return an item for a row of the source; None if the row must be left out.

        Args:
            raw: row with the source's own columns.
            place: name of the row with which a message begins, such as "line 3".

        Raises:
            DataError: a column is missing or has a wrong value.
        """

    def key(self, row: Row) -> str:
        """Return the text that identifies an item across splits. Items with equal keys count as the
        same item."""
        return str(row["prompt"])

    @property
    def completion_length(self) -> int:
        """Number of characters of the longest demonstration, plus 1 for EOS."""
        return 1 + max(map(len, self._demonstrations()))

    @property
    def alphabet(self) -> str:
        """All characters of the prompts and demonstrations of all splits."""
        prompts = (str(row["prompt"]) for row in self._all())
        return "".join(sorted({c for texts in (prompts, self._demonstrations()) for text in texts for c in text}))

    def rows(self, split: Split, num_rows: int, seed: int = 0) -> list[Row]:
        """Return the first rows of a split, shuffled by `seed`; fewer if there are no more."""
        return self.candidates(split, num_rows, seed).take()[0]

    def candidates(self, split: Split, num_rows: int, seed: int = 0) -> Candidates:
        """Return all rows of a split with their places; `take` shuffles and chooses them."""
        if split not in get_args(Split):
            raise DataError(unknown_name("split", split, get_args(Split)))
        items, source, faults = self._read(split)
        rows, places = [row for row, _ in items], [place for _, place in items]
        return Candidates(rows, places, source, num_rows, self.unusable_rows == "drop", seed, faults)

    def row(self, split: Split, index: int, seed: int) -> Row:
        """Return one row of a split."""
        return self.rows(split, index + 1, seed)[index]

    def provenance(self) -> dict[str, Any]:
        """Return the origin of the rows, and the number of training rows that also occur in the
        test split.

        The origin consists of the source, the revision, the content hash, the number of rows and
        the number of unusable rows.
        """
        facts: dict[str, Any] = {}
        for name, source in zip(("train", "test"), self.sources(), strict=True):
            if source is not None:
                loaded, digest = self._loaded(name), self._table(name).sha256
                facts[name] = {
                    "source": source,
                    "revision": self._revision(name),
                    "sha256": digest,
                    "num_rows": loaded.num_rows,
                    "num_unusable": loaded.num_rows - len(loaded.items),
                }
        if len(facts) == 2:
            foreign = {self.key(row) for row in self._load("test")}
            facts["train"]["num_in_test"] = sum(self.key(row) in foreign for row in self._load("train"))
        return facts

    def kept_in(self, folder: Path) -> Self:
        """Return a copy of the task that reads files in a run folder instead of rows that were
        passed as Python objects.

        The rows can be read under their new names immediately; `write_rows` writes the files.
        """
        names = {
            field: str(folder / "rows" / f"{source.removeprefix(PREFIX)}.jsonl")
            for field in type(self).model_fields
            if isinstance(source := getattr(self, field), str) and source.startswith(PREFIX)
        }
        for field, path in names.items():
            remember(path, rows_in_memory(getattr(self, field)))
        return self.model_copy(update=names) if names else self

    def write_rows(self, folder: Path) -> None:
        """Write the files that the task returned by `kept_in` reads. Existing files are not
        changed."""
        for source in {*self.sources()} - {None}:
            path = Path(str(source))
            if path.parent == folder / "rows" and not path.exists():
                write_jsonl(rows_in_memory(str(source)), path)

    def _read(self, split: Split) -> tuple[list[tuple[Row, str]], str, tuple[str, ...]]:
        """Return the items of a split with their places, their source, and the faults of the rows
        that are left out."""
        train, test = self.sources()
        held_out = self._loaded("test") if test else None
        if split == "test" and test and held_out:
            return held_out.items, shown(test), held_out.faults
        if train is None:
            raise DataError(f'task "{self.type}" has no {split} rows, only test rows. Use another task to train.')
        if split == "test" and not self.carves_test:
            raise DataError(
                f'task "{self.type}" has no test rows besides {shown(train)}. Set task.test_source, or use validation.'
            )
        foreign = {self.key(row) for row, _ in held_out.items} if held_out else set()
        loaded = self._loaded("train")
        kept = [
            item for item in loaded.items if (key := self.key(item[0])) not in foreign and self._split_of(key) == split
        ]
        if not kept:
            remedy = "Add rows, or set task.test_path." if split == "test" else "Add rows."
            raise DataError(
                f"none of the {len(loaded.items)} rows of {shown(train)} belongs to the {split} split. {remedy}"
            )
        return kept, shown(train), loaded.faults

    def _all(self) -> list[Row]:
        names = [name for name, source in zip(("train", "test"), self.sources(), strict=True) if source]
        return [row for name in names for row in self._load(name)]

    def _table(self, name: str) -> Table:
        """Return the rows of the source for "train" or "test", unchanged."""
        source = self.sources()[name == "test"]
        assert source is not None
        return read_table(source, name, self._revision(name))

    def _loaded(self, name: str) -> Loaded:
        """Return all usable items of the source for "train" or "test".

        Raises:
            DataError: there are unusable rows that must not be left out, or no usable rows remain.
        """
        table, source = self._table(name), shown(str(self.sources()[name == "test"]))
        items: list[tuple[Row, str]] = []
        faults: list[str] = []
        for index, raw in enumerate(table.rows):
            place = table.place(index)
            try:
                row = self._checked(raw, place)
            except DataError as error:
                faults.append(str(error))
            else:
                if row is not None:
                    items.append((row, place))
        if faults and (self.unusable_rows == "error" or not items):
            refuse(faults, len(table.rows), source, self.unusable_rows == "drop")
        if not items:
            raise DataError(f"none of the {len(table.rows)} rows of {source} can be used.")
        return Loaded(items, len(table.rows), tuple(faults))

    def _load(self, name: str) -> list[Row]:
        return [row for row, _ in self._loaded(name).items]

    def _checked(self, raw: Row, place: str) -> Row | None:
        """Return the result of `build`, after rejecting values that no task can use."""
        for name, value in raw.items():
            if (fault := fault_of_value({name: value})) is not None:
                raise DataError(f"{place}: the column {json.dumps(name)} {fault}.")
        row = self.build(raw, place)
        if row is not None and (fault := fault_of_prompt(row["prompt"])) is not None:
            raise DataError(f"{place}: {fault}.")
        return row

    def _revision(self, name: str) -> str | None:
        train, test = self.sources()
        if name == "train":
            return self.revision
        return self.test_revision or (self.revision if train == test else None)

    def _split_of(self, key: str) -> Split:
        tenth = stable_hash(key) % 10
        if tenth == 0:
            return "validation"
        return "test" if tenth < 3 and self.carves_test and not self.sources()[1] else "train"

    def _demonstrations(self) -> list[str]:
        return [self.demonstration(row, random.Random(0), sloppy=False) for row in self._all()]


MAX_DEPTH = 100
"""Maximum nesting depth of lists and objects in a column. It is far below the depth that Python can
copy or compare."""


def fault_of_value(value: Any, depth: int = 0) -> str | None:
    """Return a clause that says why a value cannot be written to a file; None if it can be written.

    Example:
        >>> fault_of_value({"a": ["é"]})
        >>> fault_of_value(["\\ud83d"])
        'holds half a surrogate pair, which is not a character (usually half of an emoji that was cut in two)'
    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return (
                "holds half a surrogate pair, which is not a character (usually half of an emoji that was cut in two)"
            )
    if not isinstance(value, dict | list | tuple):
        return None
    if depth > MAX_DEPTH:
        return f"is nested more than {MAX_DEPTH} levels deep"
    inner = (*value, *value.values()) if isinstance(value, dict) else value
    return next((fault for item in inner if (fault := fault_of_value(item, depth + 1)) is not None), None)

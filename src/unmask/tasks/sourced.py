"""A task whose rows are read rather than made, from the hub or from files, and split by a stable hash; their origin is kept."""

from __future__ import annotations

import random
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from pydantic import Field

from unmask.errors import DataError, unknown_name
from unmask.tasks.base import Split, Task, stable_hash
from unmask.tasks.source import read_rows

if TYPE_CHECKING:
    from unmask.records import Row


class SourcedTask(Task):
    """Base of tasks with rows from elsewhere. A subclass says where they are and what it makes of one.

    A tenth of the training rows, by a stable hash of `key`, is the validation split; it never comes from the test rows. A
    training row whose key is that of a test row is left out.
    """

    revision: str | None = Field(None, min_length=1)
    """Branch, tag or commit of the hub's training rows; default the newest. A content hash is kept in any case."""
    test_revision: str | None = Field(None, min_length=1)
    """The same of the test rows; default `revision`, where both come from one data set."""

    carves_test: ClassVar[bool] = False
    """Whether a fifth of the training rows becomes the test split where there is no other."""

    @abstractmethod
    def sources(self) -> tuple[str | None, str | None]:
        """Where the rows of training (and validation) and those of the test come from, as `read_rows` takes it; None: nowhere."""

    @abstractmethod
    def build(self, raw: Row, place: str) -> Row | None:
        """An item of a source's row, or None for one that cannot be used.

        Args:
            raw: the source's own columns.
            place: "row 3 of FILE", for messages.

        Raises:
            DataError: a column is missing, or holds what it must not.
        """

    def key(self, row: Row) -> str:
        """What makes two items the same one, as far as splits go."""
        return str(row["prompt"])

    @property
    def completion_length(self) -> int:
        """Characters of the longest demonstration, and one for EOS."""
        return 1 + max(map(len, self._demonstrations()))

    @property
    def alphabet(self) -> str:
        """Every character of prompts and demonstrations, of all splits."""
        prompts = (str(row["prompt"]) for row in self._all())
        return "".join(sorted({c for texts in (prompts, self._demonstrations()) for text in texts for c in text}))

    def rows(self, split: Split, num_rows: int, seed: int = 0) -> list[Row]:
        """The first rows of a split, in an order that `seed` shuffles; fewer than asked where there are fewer."""
        if split not in get_args(Split):
            raise DataError(unknown_name("split", split, get_args(Split)))
        rows = self._read(split)
        random.Random(seed).shuffle(rows)
        return rows[:num_rows]

    def row(self, split: Split, index: int, seed: int) -> Row:
        """One row of a split."""
        return self.rows(split, index + 1, seed)[index]

    def provenance(self) -> dict[str, Any]:
        """Of the training and of the test rows: source, revision, content hash, how many, and how many could not be used; and how
        many training rows are left out because they are in the test."""
        facts: dict[str, Any] = {}
        for name, source in zip(("train", "test"), self.sources(), strict=True):
            if source is not None:
                revision = self._revision(name)
                raw, digest = read_rows(source, name, revision)
                facts[name] = {
                    "source": source,
                    "revision": revision,
                    "sha256": digest,
                    "num_rows": len(raw),
                    "num_unusable": len(raw) - len(self._load(name)),
                }
        if len(facts) == 2:
            foreign = {self.key(row) for row in self._load("test")}
            facts["train"]["num_in_test"] = sum(self.key(row) in foreign for row in self._load("train"))
        return facts

    def _read(self, split: Split) -> list[Row]:
        train, test = self.sources()
        held_out = self._load("test") if test else []
        if split == "test" and test:
            return held_out
        if train is None:
            raise DataError(f'task "{self.type}" has no {split} rows, only test rows. Use another task to train.')
        if split == "test" and not self.carves_test:
            raise DataError(
                f'task "{self.type}" has no test rows beside {train}. Set task.test_source, or use validation.'
            )
        foreign = {self.key(row) for row in held_out}
        rows = self._load("train")
        kept = [row for row in rows if (key := self.key(row)) not in foreign and self._split_of(key) == split]
        if not kept:
            remedy = "Add rows, or set task.test_path." if split == "test" else "Add rows."
            raise DataError(f"none of the {len(rows)} rows of {train} falls into the {split} split. {remedy}")
        return kept

    def _all(self) -> list[Row]:
        train, test = self.sources()
        return (self._load("train") if train else []) + (self._load("test") if test else [])

    def _load(self, name: str) -> list[Row]:
        """All usable items of the source of training ("train") or test rows."""
        source = self.sources()[name == "test"]
        assert source is not None
        raw, _ = read_rows(source, name, self._revision(name))
        built = [self.build(row, f"row {number} of {source}") for number, row in enumerate(raw, start=1)]
        usable = [row for row in built if row is not None]
        if not usable:
            raise DataError(f"none of the {len(raw)} rows of {source} can be used.")
        return usable

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

"""Task on your own rows from a file, the hub or Python. Rewards come from your functions or from an
answer column."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from unmask.core.errors import DataError
from unmask.tasks.base import RewardFunc
from unmask.tasks.memory import shown
from unmask.tasks.source import Source, Table
from unmask.tasks.sourced import SourcedTask, fault_of_value

if TYPE_CHECKING:
    from unmask.core.records import Row


class AnswerText(str):
    """Text of an answer column. Comparing this text with a number raises an error, because a text
    never equals a number.

    An answer always reaches reward functions as text: 42 in a parquet file as "42", as from a CSV
    file. Without this error, a reward function that compares the answer with `int(completion)`
    would always return 0, without any message.

    Example:
        >>> AnswerText("42") == "42", AnswerText("42") == None
        (True, False)
        >>> AnswerText("42") == 42
        Traceback (most recent call last):
        TypeError: the answer '42' is text and never equals the number 42: compare with float(answer), or compare texts.
    """

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, int | float) and not isinstance(other, bool):
            raise TypeError(
                f"the answer {str(self)!r} is text and never equals the number {other}: compare with float(answer), "
                "or compare texts."
            )
        return str.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


def answer_of(value: Any) -> Any:
    """Return the value of an answer column as rewards get it.

    Numbers, booleans and similar values become text, lists and objects stay, and NaN becomes None.

    Example:
        >>> [answer_of(value) for value in (42, 0.5, True, "x", None, float("nan"), [1, 2])]
        ['42', '0.5', 'True', 'x', None, None, [1, 2]]
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return value if isinstance(value, list | dict) else AnswerText(value)


class Dataset(SourcedTask):
    """Rows from a file, the hub or Python, with your reward functions or reward 1 if correct.

    Splits share no prompt.
    """

    type: Literal["dataset"] = "dataset"
    path: Source
    """Source of the rows: a .jsonl, .json, .csv, .tsv or .parquet file, or a data set of the hub.

    A data set of the hub is written as owner/name or owner/name:config, and its split "train" is
    read. Python also accepts a list of dicts, a `datasets.Dataset` or `DatasetDict`, or a data
    frame. Without `test_path`, a stable hash of the prompt sends a tenth of the rows to validation
    and a fifth to test."""
    test_path: Source | None = None
    """Source of the test split, in the same forms as `path`. If it is a data set of the hub, the
    split "test" is read.

    If it is set, a tenth of the rows of `path` is for validation. The rest is for training, except
    rows whose prompt also occurs in the test split."""
    prompt_column: str = "prompt"
    """Name of the column with the prompt, as text or as chat messages."""
    answer_column: str = "answer"
    """Name of the column with the correct answer, if there is such a column.

    A row counts as solved if the stripped answer of a completion equals the text in this column.
    The text is also the demonstration for pretraining. Reward functions get it as text, whatever
    its type in the file."""

    reward_columns: ClassVar[tuple[str, ...]] = ("answer",)
    carves_test: ClassVar[bool] = True

    @model_validator(mode="before")
    @classmethod
    def _split_of_dict(cls, options: Any) -> Any:
        """Take the splits "train" and "test" from a `DatasetDict`."""
        path = options.get("path") if isinstance(options, Mapping) else None
        if not isinstance(path, Mapping) or not any(hasattr(split, "column_names") for split in path.values()):
            return options
        if "train" not in path:
            raise DataError(
                f'the {type(path).__name__} has no split "train"; it has {", ".join(map(str, path))}. Give one of them, as in '
                f'path=data["{next(iter(path))}"].'
            )
        test = {"test_path": path["test"]} if "test" in path and options.get("test_path") is None else {}
        return {**options, "path": path["train"], **test}

    def sources(self) -> tuple[str, str | None]:
        return self.path, self.test_path

    def build(self, raw: Row, place: str) -> Row:
        """Return the row with its columns under the standard names too, in addition to the names in
        the source."""
        if self.prompt_column not in raw:
            raise DataError(
                f'{place} has no column "{self.prompt_column}". Its columns: {", ".join(raw)}. Set task.prompt_column to one of '
                "them (on the command line --option prompt_column=NAME)."
            )
        if self.answer_column not in raw and self.answer_column != "answer":
            # A column name that was set explicitly must exist. A column that happens to be called
            # answer is not used in its place.
            raise DataError(
                f'{place} has no column "{self.answer_column}". Its columns: {", ".join(raw)}. '
                "Set task.answer_column to one of them, or leave it out."
            )
        if self.answer_column in raw:
            answer = answer_of(raw[self.answer_column])
            raw = raw | {self.answer_column: answer, "answer": answer}
        return raw | {"prompt": raw[self.prompt_column]}

    @property
    def completion_length(self) -> int:
        """Number of characters of the longest answer, plus 1 for EOS."""
        return 1 + max(len(_text(row)) for row in self._all())

    @property
    def alphabet(self) -> str:
        """All characters of prompts and answers."""
        return "".join(sorted({c for row in self._all() for c in f"{row['prompt']}{_text(row)}"}))

    def rewards(self) -> dict[str, RewardFunc]:
        """Return a reward of 1 for the correct answer; {} if there is no answer column.

        Without an answer column, the recipe must set `reward_funcs`.
        """
        return super().rewards() if "answer" in self._all()[0] else {}

    def fault_of_answer(self, row: Row) -> str | None:
        """Return a clause that names the fault of an answer that is missing, empty or not text;
        None if the answer is usable."""
        answer = row.get("answer")
        if isinstance(answer, list | dict):
            kind = "a list" if isinstance(answer, list) else "an object"
            return (
                f'the column "{self.answer_column}" holds {kind}, and no completion equals that; '
                "name functions under reward_funcs that read it, or set task.answer_column to a column of texts"
            )
        if not _text(row).strip():
            return f'the column "{self.answer_column}" is empty, so no completion is correct'
        return None

    def demonstration(self, row: Row, rng: random.Random, sloppy: bool) -> str:
        """Return the answer; `sloppy` has no effect."""
        if "answer" not in row:
            raise DataError(
                f'{shown(self.path)} has no column "{self.answer_column}" to learn from. Set task.answer_column.'
            )
        return _text(row)

    def score(self, answer: str, row: Row) -> float:
        """Return 1 for a solved row."""
        return float(self.is_right(answer, row))

    def is_right(self, answer: str, row: Row) -> bool:
        """Return True if the answer is the text of the answer column."""
        wanted = row.get("answer")
        return wanted is not None and answer.strip() == str(wanted).strip()

    def _table(self, name: str) -> Table:
        """Return the rows with None for missing columns, because reward functions get each column
        for all rows."""
        table = super()._table(name)
        columns = dict.fromkeys(column for row in table.rows for column in row)
        if all(len(row) == len(columns) for row in table.rows):
            return table
        # A column name that cannot be written to a file is a fault only of the rows that have this
        # column.
        missing = dict.fromkeys(column for column in columns if fault_of_value(column) is None)
        return replace(table, rows=[missing | row for row in table.rows])


def _text(row: Row) -> str:
    """Return the answer of a row as text; "" if the row has no answer."""
    answer = row.get("answer")
    return "" if answer is None else str(answer)

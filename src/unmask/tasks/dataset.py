"""Rows of one's own: a jsonl or csv file with a `prompt` column, scored by the recipe's reward functions or its answers."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from unmask.errors import DataError
from unmask.tasks.base import RewardFunc, Split, Task, stable_hash

if TYPE_CHECKING:
    from unmask.records import Row


class Dataset(Task):
    """Rows of a jsonl or csv file, with reward functions of your own, or 1 for the right answer. Splits share no prompt."""

    type: Literal["dataset"] = "dataset"
    path: str
    """A .jsonl or .csv file. Without `test_path`, a stable hash of the prompt sends a tenth to validation and a fifth to test."""
    test_path: str | None = None
    """A file of its own for the test split; then a tenth of `path` is for validation and the rest for training, but for rows
    whose prompt is in the test file."""
    prompt_column: str = "prompt"
    """Its text, or chat messages, is the prompt."""
    answer_column: str = "answer"
    """If there, a row counts as solved when its answer, stripped, equals it; also the demonstration to pretrain on."""

    reward_columns: ClassVar[tuple[str, ...]] = ("answer",)

    @property
    def completion_length(self) -> int:
        """Characters of the longest answer, and one for EOS."""
        return 1 + max(len(str(row.get("answer", ""))) for row in self._all())

    @property
    def alphabet(self) -> str:
        """Every character of prompts and answers."""
        return "".join(sorted({c for row in self._all() for c in f"{row['prompt']}{row.get('answer', '')}"}))

    def rows(self, split: Split, num_rows: int, seed: int = 0) -> list[Row]:
        """The first rows of a split, in an order that `seed` shuffles; fewer than asked where the file has fewer."""
        rows = self._read(split)
        random.Random(seed).shuffle(rows)
        return rows[:num_rows]

    def row(self, split: Split, index: int, seed: int) -> Row:
        """One row of a split."""
        return self.rows(split, index + 1, seed)[index]

    def rewards(self) -> dict[str, RewardFunc]:
        """1 for the right answer; where there is no answer column, none: then the recipe names some under `reward_funcs`."""
        return super().rewards() if "answer" in self._all()[0] else {}

    def demonstration(self, row: Row, rng: random.Random, sloppy: bool) -> str:
        """The answer; there is no sloppy one."""
        if "answer" not in row:
            raise DataError(f'{self.path} has no column "{self.answer_column}" to learn from. Set task.answer_column.')
        return str(row["answer"])

    def score(self, answer: str, row: Row) -> float:
        """1 for a solved row."""
        return float(self.is_right(answer, row))

    def is_right(self, answer: str, row: Row) -> bool:
        """Whether the answer is the answer column's text."""
        wanted = row.get("answer")
        return wanted is not None and answer.strip() == str(wanted).strip()

    def _read(self, split: Split) -> list[Row]:
        held_out = self._load(self.test_path) if self.test_path else []
        if self.test_path and split == "test":
            return held_out
        foreign = {str(row["prompt"]) for row in held_out}
        rows = self._load(self.path)
        kept = [row for row in rows if (key := str(row["prompt"])) not in foreign and self._split_of(key) == split]
        if not kept:
            remedy = "Add rows, or set task.test_path." if split == "test" else "Add rows."
            raise DataError(f"none of the {len(rows)} rows of {self.path} falls into the {split} split. {remedy}")
        return kept

    def _all(self) -> list[Row]:
        return self._load(self.path) + (self._load(self.test_path) if self.test_path else [])

    def _load(self, path: str) -> list[Row]:
        rows = _read_file(Path(path))
        if not rows:
            raise DataError(f"{path} holds no rows.")
        return [self._checked(row, f"row {number} of {path}") for number, row in enumerate(rows, start=1)]

    def _checked(self, row: Any, place: str) -> Row:
        """The row with the names that the engine knows beside its own, which reward functions may ask for."""
        if not isinstance(row, dict):
            raise DataError(f"{place} is {str(row)[:40]!r}; each line must be an object with columns.")
        if None in row:
            raise DataError(f"{place} has more fields than the header. Quote those that hold a comma.")
        if not isinstance(row.get(self.prompt_column), str | list):
            raise DataError(
                f'{place} has no text or messages in the column "{self.prompt_column}". '
                f"Its columns: {', '.join(row)}. Set task.prompt_column to one of them."
            )
        answer = {"answer": row[self.answer_column]} if self.answer_column in row else {}
        return row | {"prompt": row[self.prompt_column]} | answer

    def _split_of(self, prompt: str) -> Split:
        tenth = stable_hash(prompt) % 10
        if tenth == 0:
            return "validation"
        return "test" if tenth < 3 and not self.test_path else "train"


def _read_file(path: Path) -> list[Any]:
    if not path.is_file():
        raise DataError(f"there is no file {path}.")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            if path.suffix == ".csv":
                return list(csv.DictReader(file))
            if path.suffix == ".jsonl":
                return [_parse(line, f"line {n} of {path}") for n, line in enumerate(file, start=1) if line.strip()]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as {path.suffix[1:]}: {error}.") from error
    raise DataError(f"{path} must be a .jsonl or .csv file.")


def _parse(line: str, place: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise DataError(f"{place} is no JSON: {error}.") from error

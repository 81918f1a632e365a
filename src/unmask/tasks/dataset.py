"""Rows of one's own: a jsonl or csv file with a `prompt` column, scored by reward functions that the recipe names."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from unmask.errors import DataError
from unmask.tasks.base import RewardFunc, Split, Task, stable_hash

if TYPE_CHECKING:
    from unmask.records import Row


class Dataset(Task):
    """Rows of a jsonl or csv file, with reward functions of your own. Splits share no prompt."""

    type: Literal["dataset"] = "dataset"
    path: str
    """A .jsonl or .csv file. Without `test_path`, a stable hash of the prompt sends a tenth to validation and a fifth to test."""
    test_path: str | None = None
    """A file of its own for the test split; then a tenth of `path` is for validation and the rest for training."""
    prompt_column: str = "prompt"
    """Its text, or chat messages, is the prompt."""
    answer_column: str = "answer"
    """If there, a row counts as solved when the completion, stripped, equals it; also the demonstration to pretrain on."""

    reward_columns = ()

    @property
    def completion_length(self) -> int:
        """Characters of the longest answer, and one for EOS."""
        return 1 + max(len(str(row.get("answer", ""))) for row in self._read("train"))

    @property
    def alphabet(self) -> str:
        """Every character of prompts and answers."""
        return "".join(sorted({c for row in self._read("train") for c in f"{row['prompt']}{row.get('answer', '')}"}))

    def rows(self, split: Split, num_rows: int, seed: int = 0) -> list[Row]:
        """The first rows of a split, in an order that `seed` shuffles; fewer than asked where the file has fewer."""
        rows = self._read(split)
        random.Random(seed).shuffle(rows)
        return rows[:num_rows]

    def row(self, split: Split, index: int, seed: int) -> Row:
        """One row of a split."""
        return self.rows(split, index + 1, seed)[index]

    def rewards(self) -> dict[str, RewardFunc]:
        """None of its own: the recipe names them under `reward_funcs`."""
        return {}

    def demonstration(self, row: Row, rng: random.Random, sloppy: bool) -> str:
        """The answer; there is no sloppy one."""
        if "answer" not in row:
            raise DataError(f'{self.path} has no column "{self.answer_column}" to learn from. Set task.answer_column.')
        return str(row["answer"])

    def score(self, answer: str, row: Row) -> float:
        """1 for a solved row."""
        return float(self.is_right(answer, row))

    def is_right(self, answer: str, row: Row) -> bool:
        """Whether the completion is the answer column's text."""
        return "answer" in row and answer.strip() == str(row["answer"]).strip()

    def _read(self, split: Split) -> list[Row]:
        path = Path(self.test_path if self.test_path and split == "test" else self.path)
        rows = _read_file(path)
        if not rows:
            raise DataError(f"{path} holds no rows.")
        if self.prompt_column not in rows[0]:
            raise DataError(
                f'{path} has no column "{self.prompt_column}". It has: {", ".join(rows[0])}. Set task.prompt_column.'
            )
        rows = [self._renamed(row) for row in rows]
        if self.test_path and split == "test":
            return rows
        kept = [row for row in rows if self._split_of(str(row["prompt"])) == split]
        if not kept:
            raise DataError(f"{path} has {len(rows)} rows, and none of them falls into the {split} split. Add rows.")
        return kept

    def _renamed(self, row: Row) -> Row:
        names = {self.prompt_column: "prompt", self.answer_column: "answer"}
        return {names.get(key, key): value for key, value in row.items()}

    def _split_of(self, prompt: str) -> Split:
        tenth = stable_hash(prompt) % 10
        if tenth == 0:
            return "validation"
        return "test" if tenth < 3 and not self.test_path else "train"


def _read_file(path: Path) -> list[Row]:
    if not path.is_file():
        raise DataError(f"there is no file {path}.")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            if path.suffix == ".csv":
                return list(csv.DictReader(file))
            if path.suffix == ".jsonl":
                return [json.loads(line) for line in file if line.strip()]
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as {path.suffix[1:]}: {error}.") from error
    raise DataError(f"{path} must be a .jsonl or .csv file.")

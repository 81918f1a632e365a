"""Rows of one's own: a file or hub data set with a `prompt` column, scored by the recipe's reward functions or its answers."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, ClassVar, Literal

from unmask.errors import DataError
from unmask.tasks.base import RewardFunc
from unmask.tasks.sourced import SourcedTask

if TYPE_CHECKING:
    from unmask.records import Row


class Dataset(SourcedTask):
    """Rows of a file or of the hub, with reward functions of your own, or 1 for the right answer. Splits share no prompt."""

    type: Literal["dataset"] = "dataset"
    path: str
    """A .jsonl, .csv or .parquet file, or a data set of the hub as owner/name or owner/name:config, whose split is "train".
    Without `test_path`, a stable hash of the prompt sends a tenth to validation and a fifth to test."""
    test_path: str | None = None
    """The same for the test split (of the hub: "test"); then a tenth of `path` is for validation and the rest for training, but
    for rows whose prompt is in the test split."""
    prompt_column: str = "prompt"
    """Its text, or chat messages, is the prompt."""
    answer_column: str = "answer"
    """If there, a row counts as solved when its answer, stripped, equals it; also the demonstration to pretrain on."""

    reward_columns: ClassVar[tuple[str, ...]] = ("answer",)
    carves_test: ClassVar[bool] = True

    def sources(self) -> tuple[str, str | None]:
        return self.path, self.test_path

    def build(self, raw: Row, place: str) -> Row:
        """The row with the names that the engine knows beside its own, which reward functions may ask for."""
        if not isinstance(raw.get(self.prompt_column), str | list):
            raise DataError(
                f'{place} has no text or messages in the column "{self.prompt_column}". '
                f"Its columns: {', '.join(raw)}. Set task.prompt_column to one of them "
                "(on the command line --option prompt_column=NAME)."
            )
        if self.answer_column not in raw and self.answer_column != "answer":
            # A name that was given is meant; a column that happens to be called answer is not what it means.
            raise DataError(
                f'{place} has no column "{self.answer_column}". Its columns: {", ".join(raw)}. '
                "Set task.answer_column to one of them, or leave it out."
            )
        answer = {"answer": raw[self.answer_column]} if self.answer_column in raw else {}
        return raw | {"prompt": raw[self.prompt_column]} | answer

    @property
    def completion_length(self) -> int:
        """Characters of the longest answer, and one for EOS."""
        return 1 + max(len(str(row.get("answer", ""))) for row in self._all())

    @property
    def alphabet(self) -> str:
        """Every character of prompts and answers."""
        return "".join(sorted({c for row in self._all() for c in f"{row['prompt']}{row.get('answer', '')}"}))

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

"""What a task is: reproducible rows, a way to read answers, a reward and a verdict. Text in, floats out.

A task's options are its fields, so a task is the part of a recipe that names it. Nothing here depends on Python's
salted `hash()`: the items of a split are the same in every process and on every machine.
"""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args

from unmask.core.config import Named
from unmask.core.errors import DataError, unknown_name
from unmask.rewards.grading.answers import answer_in, before_end
from unmask.rewards.protocol import Score, per_completion, reports, text_of
from unmask.tasks.candidates import Candidates

if TYPE_CHECKING:
    from unmask.core.records import Row

RewardFunc = Callable[..., list[float | None]]
"""TRL's signature: f(prompts, completions, **columns) -> one reward for each completion; None is "does not apply"."""

Split = Literal["train", "validation", "test"]

PUBLISHED_LENGTHS = (128, 256, 512)
"""Completion lengths at which the papers evaluate language models, with half as many steps."""


class Task(Named, ABC):
    """Base of all tasks. A subclass says how an item is made, what an answer is worth and when it is right."""

    section: ClassVar[str] = "task"

    type: str
    """A name in `TASKS`, or the path of a class, as in my_task.py:MyTask."""
    format: Literal["bare", "plain", "tagged"] = "bare"
    """`bare`: a compact prompt whose completion is the answer and nothing else, for tiny character models. `tagged`: an
    instruction as a chat message, for language models, that asks for the answer in <answer></answer>. `plain`: the same as text,
    for those without a chat template."""

    reward_columns: ClassVar[tuple[str, ...]]
    """Columns of a row that its reward reads."""

    @property
    @abstractmethod
    def completion_length(self) -> int:
        """L in characters that the longest bare completion takes, with its EOS where completions vary in length."""

    @property
    @abstractmethod
    def alphabet(self) -> str:
        """Every character that bare prompts and completions can hold, sorted."""

    @abstractmethod
    def row(self, split: Split, index: int, seed: int) -> Row:
        """Item `index` of a split, which depends on nothing but the task's options, `seed`, `split` and `index`.

        It has `prompt` (text if bare or plain, a list of one user message if tagged), `answer` (text that scores 1.0) and
        `reward_columns`.
        """

    @abstractmethod
    def demonstration(self, row: Row, rng: random.Random, sloppy: bool) -> str:
        """A bare completion to learn from: right, or as a hurried pupil would have it, which is right only by luck."""

    @abstractmethod
    def score(self, answer: str, row: Row) -> float:
        """Reward in [0, 1] of an answer that is there. Must take any text."""

    @abstractmethod
    def is_right(self, answer: str, row: Row) -> bool:
        """Whether the whole item is right. Must take any text."""

    def rows(self, split: Split, num_rows: int, seed: int = 0) -> list[Row]:
        """The first items of a split.

        Args:
            split: rows of different splits share no answer; each task says what that means for it.
            num_rows: how many, at least 0. Any number can be had: small tasks repeat themselves.
            seed: another seed gives other items of the same split.

        Returns:
            Row dicts; rows(split, n, seed)[:k] equals rows(split, k, seed).

        Raises:
            DataError: no such split, or a negative number of rows.
        """
        if split not in get_args(Split):
            raise DataError(unknown_name("split", split, get_args(Split)))
        if num_rows < 0:
            raise DataError(f"num_rows = {num_rows} is negative. Ask for 0 rows or more.")
        return [self.row(split, index, seed) for index in range(num_rows)]

    def candidates(self, split: Split, num_rows: int, seed: int = 0) -> Candidates:
        """The rows of `rows` with names for messages, for a caller that has to find out which of them a model can use."""
        rows = self.rows(split, num_rows, seed)
        places = [f"row {number}" for number in range(1, len(rows) + 1)]
        return Candidates(rows, places, f'the split {split} of task "{self.type}"', num_rows, drop=None)

    def fault_of_answer(self, row: Row) -> str | None:
        """Why no completion of a row could earn the task's own rewards, as a clause; None where one could."""
        return None

    def rewards(self) -> dict[str, RewardFunc]:
        """The task's reward functions by name."""
        return {self.type_name: self._reward}

    def provenance(self) -> dict[str, Any]:
        """Where rows that are read come from, as the run folder keeps it in data.json; nothing for a task that makes its own."""
        return {}

    def kept_in(self, folder: Path) -> Self:
        """The task as a run keeps it: rows given in Python are read from files in the run folder, which `write_rows` makes."""
        return self

    def write_rows(self, folder: Path) -> None:
        """Write the files that `kept_in` named, unless they are there."""

    def grade(self, answers: Sequence[str], rows: Sequence[Row]) -> list[float]:
        """`score` of many answers, for a task that can do them together."""
        return [self.score(answer, row) for answer, row in zip(answers, rows, strict=True)]

    @property
    def evaluation_lengths(self) -> tuple[int, ...]:
        """Completion lengths of an evaluation, unless others are asked: the task's own if bare, else the published ones."""
        return (self.completion_length,) if self.format == "bare" else PUBLISHED_LENGTHS

    def measures(self, completion: object, row: Row) -> dict[str, float]:
        """What else is reported of a completion beside `solved`, by name; the same names for every completion.

        Args:
            completion: text cut at EOS, or TRL's list of messages; anything else counts as an empty text.
            row: the item it answers.
        """
        return {}

    def solved(self, completion: object, row: Row) -> bool:
        """Whether a completion gets the whole item right: the accuracy that evaluation reports.

        Args:
            completion: text cut at EOS, or TRL's list of messages, of which the last one counts; anything else counts as an empty
                text.
            row: the item it answers.
        """
        answer = self._answer(text_of(completion))
        return answer is not None and self.is_right(answer, row)

    @per_completion
    @reports("unparsed")
    def _reward(self, /, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """`grade` of the completions' answers, 0.0 where there is none. Columns that it does not read may be there."""
        for name in self.reward_columns:
            if name not in columns:
                raise DataError(
                    f'the reward of task "{self.type}" reads the column "{name}", which the rows lack; '
                    f"they have {', '.join(sorted(columns)) or 'none'}. Use rows made by this task."
                )
        rows = [
            dict(zip(self.reward_columns, values, strict=True))
            for values in zip(*(columns[name] for name in self.reward_columns), strict=True)
        ]
        answers = [self._answer(text_of(completion)) for completion in completions]
        found = [(answer, row) for answer, row in zip(answers, rows, strict=True) if answer is not None]
        grades = iter(self.grade([answer for answer, _ in found], [row for _, row in found]))
        return [Score(0.0, "unparsed") if answer is None else next(grades) for answer in answers]

    def _answer(self, completion: str) -> str | None:
        """The answer in a completion, or None."""
        return before_end(completion).strip() or None if self.format == "bare" else answer_in(completion)

    def _prompt(self, bare: str, instruction: str) -> str | list[dict[str, str]]:
        if self.format == "tagged":
            return [{"role": "user", "content": instruction}]
        return bare if self.format == "bare" else f"{instruction}\n\n"

    def _rng(self, split: Split, index: int, seed: int) -> random.Random:
        # A text seed is hashed with SHA-512, so neighbouring indices are unrelated.
        return random.Random(f"{self.type_name}/{seed}/{split}/{index}")


class NumbersTask(Task):
    """A task whose items are built on a few numbers, and whose splits share no multiset of them.

    A split by item would leak: 2+3-6 and 3+2-6, or two countdowns from the same numbers, are nearly one item.
    A stable hash of the sorted numbers sends 70% of the multisets to train, 10% to validation and 20% to test.
    """

    @abstractmethod
    def draw_numbers(self, rng: random.Random) -> list[int]:
        """Random numbers for an item of any split."""

    @abstractmethod
    def build(self, numbers: list[int], rng: random.Random) -> Row | None:
        """An item on these numbers, or None if the attempt made no legal one."""

    def split_of(self, numbers: Sequence[int]) -> Split:
        """The split that owns a multiset of numbers.

        Args:
            numbers: in any order.

        Returns:
            The same split for every order, in every process.
        """
        share = stable_hash(f"{self.type_name} {','.join(map(str, sorted(numbers)))}") % 10
        return "train" if share < 7 else "validation" if share < 8 else "test"

    def row(self, split: Split, index: int, seed: int) -> Row:
        rng = self._rng(split, index, seed)
        while True:  # ends: `require_every_split` has found that about one attempt in 2,000 or more succeeds
            numbers = self.draw_numbers(rng)
            if self.split_of(numbers) == split and (row := self.build(numbers, rng)) is not None:
                return row

    def require_every_split(self) -> None:
        """Refuse options that leave a split without items. For a subclass's validator, after its own checks.

        Raises:
            ValueError: in 5,000 attempts a split got fewer than three items.
        """
        rng = random.Random(0)
        found: dict[Split, int] = dict.fromkeys(get_args(Split), 0)
        for _ in range(5000):
            numbers = self.draw_numbers(rng)
            split = self.split_of(numbers)
            found[split] += found[split] < 3 and self.build(numbers, rng) is not None
            if min(found.values()) == 3:
                return
        empty = ", ".join(split for split, count in found.items() if count < 3)
        raise ValueError(
            f"these options leave (next to) no items for the split {empty}: too few sets of numbers make a legal item. "
            "Allow larger numbers or a wider range of results."
        )


def stable_hash(text: str) -> int:
    """A 64-bit hash that is the same in every process, unlike Python's own: the first 8 bytes of SHA-256, big-endian.

    Args:
        text: what to hash, as UTF-8.

    Returns:
        0 to 2^64 - 1.

    Example:
        >>> stable_hash("unmask")
        108617866908203227
    """
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")

"""Base classes of tasks. A task makes reproducible rows (examples), reads the answer in a
completion, and gives it a reward and a verdict.

Answers are texts and rewards are floats; no model is involved.

The options of a task are its fields, so the task section of a recipe describes the whole task.
Nothing here depends on Python's salted `hash()`: the items of a split are the same in every process
and on every machine.
"""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args

from unmask.core.errors import DataError, unknown_name
from unmask.core.settings import Named
from unmask.rewards.grading.answers import answer_in, before_end
from unmask.rewards.protocol import Score, per_completion, reports, text_of
from unmask.tasks.candidates import Candidates

if TYPE_CHECKING:
    from unmask.core.records import Row

RewardFunc = Callable[..., list[float | None]]
"""Type of a reward function with TRL's signature: f(prompts, completions, **columns) -> one reward
for each completion.

None means that the function does not apply to a completion."""

Split = Literal["train", "validation", "test"]

PUBLISHED_LENGTHS = (128, 256, 512)
"""Completion lengths in tokens at which the papers evaluate language models. The number of
denoising steps is half the length."""


class Task(Named, ABC):
    """Base class of all tasks.

    A subclass defines how to make an item, how to reward an answer, and when an answer is correct.
    """

    section: ClassVar[str] = "task"

    type: str
    """Name of the task in `TASKS`, or the path of its class, such as my_task.py:MyTask."""
    format: Literal["bare", "plain", "tagged"] = "bare"
    """Form of prompts and answers.

    `bare`: a compact prompt, and a completion that is only the answer, for tiny character models.
    `tagged`: an instruction as a chat message, for language models; the answer stands in
    <answer></answer>. `plain`: the same as text, for models without a chat template."""

    reward_columns: ClassVar[tuple[str, ...]]
    """Columns of a row that the reward reads."""

    @property
    @abstractmethod
    def completion_length(self) -> int:
        """Number of tokens L of the longest bare completion, with EOS if lengths vary."""

    @property
    @abstractmethod
    def alphabet(self) -> str:
        """Sorted text of all characters that occur in bare prompts and completions."""

    @property
    def tokens(self) -> tuple[str, ...]:
        """Tokens of a tiny model that learns the task from scratch, sorted: the characters of
        `alphabet`, or longer pieces of text if the task reads words."""
        return tuple(self.alphabet)

    @abstractmethod
    def row(self, split: Split, index: int, seed: int) -> Row:
        """Return item `index` of a split. The item depends only on the task's options and the
        arguments.

        The row has `prompt` (a text in the formats bare and plain, a list of one user message in
        the format tagged), `answer` (a text that scores 1.0) and the columns in `reward_columns`.
        """

    @abstractmethod
    def demonstration(self, row: Row, rng: random.Random, sloppy: bool) -> str:
        """Return a bare completion for pretraining. It is correct or, if `sloppy` is True,
        plausible but correct only by luck."""

    @abstractmethod
    def score(self, answer: str, row: Row) -> float:
        """Return the reward of an answer, in [0, 1]. The method must accept any text."""

    @abstractmethod
    def is_right(self, answer: str, row: Row) -> bool:
        """Return True if the answer is completely correct. The method must accept any text."""

    def rows(self, split: Split, num_rows: int, seed: int = 0) -> list[Row]:
        """Return the first items of a split.

        Args:
            split: split; rows of different splits have no answer in common; each task defines which
                answers count as the same.
            num_rows: number of rows, at least 0. Small tasks repeat items to reach any number.
            seed: seed that selects the items of the split.

        Returns:
            Rows; rows(split, n, seed)[:k] equals rows(split, k, seed).

        Raises:
            DataError: the split does not exist, or the number of rows is negative.
        """
        if split not in get_args(Split):
            raise DataError(unknown_name("split", split, get_args(Split)))
        if num_rows < 0:
            raise DataError(f"num_rows = {num_rows} is negative. Set it to 0 or more.")
        return [self.row(split, index, seed) for index in range(num_rows)]

    def candidates(self, split: Split, num_rows: int, seed: int = 0) -> Candidates:
        """Return the rows that `rows` returns, with their names in messages, so that the caller can
        find out which of them a model can use."""
        rows = self.rows(split, num_rows, seed)
        places = [f"row {number}" for number in range(1, len(rows) + 1)]
        return Candidates(rows, places, f'the split {split} of task "{self.type}"', num_rows, drop=None)

    def fault_of_answer(self, row: Row) -> str | None:
        """Return a clause that says why no completion of a row could earn the task's reward; None
        if one can."""
        return None

    def rewards(self) -> dict[str, RewardFunc]:
        """Return the task's reward functions by name."""
        return {self.type_name: self._reward}

    def provenance(self) -> dict[str, Any]:
        """Return the origin of the rows that the task reads, for data.json; {} if the task
        generates its rows."""
        return {}

    def kept_in(self, folder: Path) -> Self:
        """Return a copy of the task that reads files in a run folder instead of rows that were
        passed as Python objects.

        This method does not write the files; `write_rows` does.
        """
        return self

    def write_rows(self, folder: Path) -> None:
        """Write the files that the task returned by `kept_in` reads. Existing files are not
        changed."""

    def grade(self, answers: Sequence[str], rows: Sequence[Row]) -> list[float]:
        """Return the `score` of each answer. A task that can score many answers more efficiently
        together overrides this method."""
        return [self.score(answer, row) for answer, row in zip(answers, rows, strict=True)]

    @property
    def evaluation_lengths(self) -> tuple[int, ...]:
        """Default completion lengths of an evaluation, in tokens: the length of the task if its
        format is bare, otherwise the lengths in published evaluations."""
        return (self.completion_length,) if self.format == "bare" else PUBLISHED_LENGTHS

    def measures(self, completion: object, row: Row) -> dict[str, float]:
        """Return further measures of a completion besides `solved`, under the same names for every
        completion.

        Args:
            completion: text up to EOS, or TRL's list of messages; anything else counts as an empty
                text.
            row: item that the completion answers.
        """
        return {}

    def solved(self, completion: object, row: Row) -> bool:
        """Return True if a completion solves the whole item. Evaluation reports this accuracy.

        Args:
            completion: text up to EOS, or TRL's list of messages, of which the last one counts;
                anything else counts as an empty text.
            row: item that the completion answers.
        """
        answer = self._answer(text_of(completion))
        return answer is not None and self.is_right(answer, row)

    @per_completion
    @reports("unparsed")
    def _reward(self, /, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Return the `grade` of each completion's answer; 0.0 for a completion without an answer.

        Other columns are ignored.
        """
        rows = self._reward_rows(columns, len(completions))
        answers = [self._answer(text_of(completion)) for completion in completions]
        pairs = [(answer, row) for answer, row in zip(answers, rows, strict=True) if answer is not None]
        grades = iter(self.grade([answer for answer, _ in pairs], [row for _, row in pairs]))
        return [Score(0.0, "unparsed") if answer is None else next(grades) for answer in answers]

    def _reward_rows(self, columns: dict[str, Any], count: int) -> list[Row]:
        """Return one row for each of `count` completions, with the columns that the reward
        reads."""
        for name in self.reward_columns:
            if name not in columns:
                raise DataError(
                    f'the reward of task "{self.type}" reads the column "{name}", which the rows lack. '
                    f"They have {', '.join(sorted(columns)) or 'none'}. Use rows made by this task."
                )
        return [{name: columns[name][i] for name in self.reward_columns} for i in range(count)]

    def _answer(self, completion: str) -> str | None:
        """Return the answer in a completion; None if it has no answer."""
        return before_end(completion).strip() or None if self.format == "bare" else answer_in(completion)

    def _prompt(self, bare: str, instruction: str) -> str | list[dict[str, str]]:
        if self.format == "tagged":
            return [{"role": "user", "content": instruction}]
        return bare if self.format == "bare" else f"{instruction}\n\n"

    def _rng(self, split: Split, index: int, seed: int) -> random.Random:
        # A text seed is hashed with SHA-512, so adjacent indices are independent.
        return random.Random(f"{self.type_name}/{seed}/{split}/{index}")


class NumbersTask(Task):
    """Base class of tasks whose items are built from a few numbers. No multiset of numbers occurs
    in two splits.

    A split by item would leak test items into training, because 2+3-6 and 3+2-6, or two countdowns
    from the same numbers, are nearly the same item. A stable hash of the sorted numbers sends 70%
    of the multisets to train, 10% to validation and 20% to test.
    """

    @abstractmethod
    def draw_numbers(self, rng: random.Random) -> list[int]:
        """Return random numbers for an item of any split."""

    @abstractmethod
    def build(self, numbers: list[int], rng: random.Random) -> Row | None:
        """Return an item with these numbers; None if this attempt does not give a valid item."""

    def split_of(self, numbers: Sequence[int]) -> Split:
        """Return the split to which a multiset of numbers belongs.

        Args:
            numbers: numbers in any order.

        Returns:
            The same split for every order, in every process.
        """
        return split_of_hash(f"{self.type_name} {','.join(map(str, sorted(numbers)))}")

    def row(self, split: Split, index: int, seed: int) -> Row:
        rng = self._rng(split, index, seed)
        while True:  # This ends, because `require_every_split` ensures that about 1 of 2,000 attempts or more succeeds.
            numbers = self.draw_numbers(rng)
            if self.split_of(numbers) == split and (row := self.build(numbers, rng)) is not None:
                return row

    def require_every_split(self) -> None:
        """Reject options that leave a split without items. The validator of a subclass calls this
        method last.

        Raises:
            ValueError: 5,000 attempts gave fewer than three items of a split.
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
            f"these options leave almost no items for the split {empty}: too few sets of numbers make a valid item. "
            "Allow larger numbers or a wider range of results."
        )


def split_of_hash(text: str) -> Split:
    """Return the split to which the items with this key belong: train for 70 % of the keys,
    validation for 10 % and test for 20 %.

    Args:
        text: what the items of one split share and no two splits may share.

    Example:
        >>> split_of_hash("arithmetic 1,1,5")
        'validation'
    """
    share = stable_hash(text) % 10
    return "train" if share < 7 else "validation" if share < 8 else "test"


def stable_hash(text: str) -> int:
    """Return a 64-bit hash that is the same in every process, unlike Python's own hash.

    The hash is the first 8 bytes of SHA-256, as a big-endian integer.

    Args:
        text: text to hash, as UTF-8.

    Returns:
        An integer from 0 to 2^64 - 1.

    Example:
        >>> stable_hash("unmask")
        108617866908203227
    """
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")

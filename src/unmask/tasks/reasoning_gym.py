"""Any task of the package `reasoning-gym` (arXiv:2505.24760) by name, its own scorer as the reward, behind a guard.

The package makes item i of a dataset from `seed + i`, so neighbouring seeds share nearly all items. Here each split has a
range of seeds of its own, and a stable hash of the question says which split may keep an item, so that one that two seeds can
make is in one split only, however many rows are asked and with whatever seed.

Its scorers are code that was not written for hostile text. They run in worker processes with limits of time and memory, and
those that hand the answer to Python's `eval` run only when that is asked for. So does codeio, whose items are made by running
programs that a language model wrote.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from unmask.core.errors import ConfigError, DataError, unknown_name
from unmask.rewards.workers import Workers
from unmask.tasks.base import Split, Task

if TYPE_CHECKING:
    from unmask.core.records import Row

EVALUATING = frozenset(
    {
        "binary_matrix",
        "countdown",
        "intermediate_integration",
        "n_queens",
        "polynomial_multiplication",
        "puzzle24",
        "simple_integration",
        "spiral_matrix",
        "string_insertion",
    }
)
"""Tasks whose scorer hands the answer to `eval`, itself or by way of sympy's parser, as of version 0.1.25."""

RUNNING = frozenset({"codeio"})
"""Tasks that make their items by running programs from a file; one of codeio's writes files of its own where it stands."""

NOT_ONE = frozenset({"composite"})
"""Names in the package's table that are no task by themselves."""

SECONDS, MEMORY = 15.0, 4 * 2**30
"""Limits of scoring one answer, and the texts that it is compared with."""


class ReasoningGym(Task):
    """Any task of the package reasoning-gym, by `name`. Splits share no question."""

    type: Literal["reasoning_gym"] = "reasoning_gym"
    format: Literal["bare", "plain", "tagged"] = "tagged"
    """As with other tasks; `bare` is the package's question and nothing else."""
    name: str
    """The task's name in the package: chain_sum, leg_counting, ..."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Options of that task, such as {max_terms: 3}; its own defaults for the rest."""
    trust_code: bool = False
    """Allow a scorer that runs the answer as Python, or a task that makes its items with programs of unknown origin. Either can
    then do whatever this user can."""

    reward_columns: ClassVar[tuple[str, ...]] = ("entry",)

    @model_validator(mode="after")
    def _check_name(self) -> Self:
        names = available()
        if not names:
            raise ConfigError('task reasoning_gym needs the package reasoning-gym: pip install "unmask[reasoning-gym]"')
        if self.name not in names:
            raise ConfigError(unknown_name("reasoning_gym task", self.name, names))
        if self.name in EVALUATING | RUNNING and not self.trust_code:
            what = (
                "scorer hands the model's answer to Python's eval"
                if self.name in EVALUATING
                else "items are made by running programs of unknown origin"
            )
            raise ConfigError(
                f'reasoning_gym task "{self.name}" is unsafe: its {what}. '
                "Take another task, or set task.trust_code to true where nothing can be lost."
            )
        if reserved := {"seed", "size"} & self.config.keys():
            raise ConfigError(
                f"task.config must not set {', '.join(sorted(reserved))}: splits have seeds of their own."
            )
        from unmask.tasks.reasoning_gym_items import dataset_of

        dataset_of(self.name, self._options, 0)
        return self

    @property
    def completion_length(self) -> int:
        """Characters of the longest answer among some training rows, and one for EOS."""
        return 1 + max(len(row["answer"]) for row in self._sample())

    @property
    def alphabet(self) -> str:
        """Printable ASCII, and every other character of some training rows."""
        texts = [text for row in self._sample() for text in (row["entry"]["question"], row["answer"])]
        return "".join(sorted({*map(chr, range(32, 127)), "\n"}.union(*texts)))

    def rows(self, split: Split, num_rows: int, seed: int = 0) -> list[Row]:
        """The first items of a split, no question twice; fewer than asked where the task has no more."""
        super().rows(split, min(num_rows, 0), seed)  # what is no split and no number is refused there
        from unmask.tasks.reasoning_gym_items import entries_of

        entries = entries_of(self.name, self._options, split, num_rows, seed)
        return [self._row(entry) for entry in entries]

    def row(self, split: Split, index: int, seed: int) -> Row:
        return self.rows(split, index + 1, seed)[index]

    def demonstration(self, row: Row, rng: random.Random, sloppy: bool) -> str:
        """The package's answer; or, sloppy, that of another item."""
        answer = str(rng.choice(self._sample())["answer"] if sloppy else row["answer"])
        if not answer:
            raise DataError(f'reasoning_gym task "{self.name}" has no answers to learn from, only a scorer.')
        return answer

    def score(self, answer: str, row: Row) -> float:
        """What the package's scorer gives behind the guard; 0 where it raises, hangs, or runs out of memory."""
        return self.grade([answer], [row])[0]

    def grade(self, answers: Sequence[str], rows: Sequence[Row]) -> list[float]:
        """`score` of many, in worker processes."""
        calls = [
            {"name": self.name, "options": self._options, "answer": answer, "entry": row["entry"]}
            for answer, row in zip(answers, rows, strict=True)
        ]
        return [outcome.value or 0.0 for outcome in _workers(os.getpid()).map(calls)]

    def is_right(self, answer: str, row: Row) -> bool:
        """Whether the scorer gives all there is to have."""
        return self.score(answer, row) >= 1.0

    @property
    def _options(self) -> str:
        """`config` as a text, which can be a key and sent to a worker."""
        return json.dumps(self.config, sort_keys=True)

    def _row(self, entry: dict[str, Any]) -> Row:
        question = entry["question"]
        answer = "" if entry["answer"] is None else str(entry["answer"])
        return {"prompt": self._prompt(question, _instruction(question)), "answer": answer, "entry": entry}

    def _sample(self) -> list[Row]:
        return self.rows("train", 64)


def available() -> tuple[str, ...]:
    """Names of the package's tasks, sorted; none if it is not installed."""
    if importlib.util.find_spec("reasoning_gym") is None:
        return ()
    from reasoning_gym.factory import DATASETS

    return tuple(sorted(DATASETS.keys() - NOT_ONE))


@lru_cache(maxsize=1)
def _workers(_process: int) -> Workers:
    """This process's pool; a forked process needs one of its own."""
    return Workers(f"{__name__}_items:score_entry", max(1, min(4, (os.cpu_count() or 2) - 1)), SECONDS, MEMORY)


def _instruction(question: str) -> str:
    return (
        f"{question}\n\n"
        "Think as long as you need, then write the answer alone, in the form that the question asks for, between <answer> and "
        "</answer>."
    )

"""Tasks of the package `reasoning-gym` (arXiv:2505.24760). The package's scorer gives the reward,
and a guard checks it.

The package makes item i of a dataset from `seed + i`, so neighbouring seeds share nearly all items.
Here each split has its own range of seeds, and a stable hash of the question decides which split
may keep an item. An item that several seeds generate is therefore in only one split, for every seed
and number of rows.

The package's scorers were not written for hostile text. They run in worker processes with limits of
time and memory. Scorers that pass the answer to Python's `eval` run only with `trust_code`. The
task codeio needs `trust_code` too, because it generates its items by running programs that a
language model wrote.
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
"""Tasks whose scorer passes the answer to `eval`, directly or through sympy's parser, as of version
0.1.25."""

RUNNING = frozenset({"codeio"})
"""Tasks that make their items by running programs from a file. One program of codeio writes files
to the current folder."""

NOT_ONE = frozenset({"composite"})
"""Names in the package's table that are not tasks on their own."""

SECONDS, MEMORY = 15.0, 4 * 2**30
"""Limits in seconds and bytes for scoring one answer and the texts that it is compared with."""


class ReasoningGym(Task):
    """Any task of the package reasoning-gym, by `name`. Splits share no question."""

    type: Literal["reasoning_gym"] = "reasoning_gym"
    format: Literal["bare", "plain", "tagged"] = "tagged"
    """Form of prompts and answers, as in other tasks; `bare` is only the package's question."""
    name: str
    """Name of the task in the package: chain_sum, leg_counting, ..."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Options of the package's task, such as {max_terms: 3}; other options keep their defaults."""
    trust_code: bool = False
    """True to allow a scorer that runs the answer as Python, or a task that makes its items with
    programs of unknown origin. Such code has all permissions of the user who runs it."""

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
                "scorer passes the model's answer to Python's eval"
                if self.name in EVALUATING
                else "items are made by running programs of unknown origin"
            )
            raise ConfigError(
                f'reasoning_gym task "{self.name}" is unsafe: its {what}. '
                "Choose another task, or set task.trust_code=true on a machine where nothing can be lost."
            )
        if reserved := {"seed", "size"} & self.config.keys():
            raise ConfigError(
                f"task.config must not set {', '.join(sorted(reserved))}, because each split has its own seeds."
            )
        from unmask.tasks.reasoning_gym_items import dataset_of

        dataset_of(self.name, self._options, 0)
        return self

    @property
    def completion_length(self) -> int:
        """Number of characters of the longest answer in a sample of training rows, plus 1 for
        EOS."""
        return 1 + max(len(row["answer"]) for row in self._sample())

    @property
    def alphabet(self) -> str:
        """Printable ASCII, and all other characters of a sample of training rows."""
        texts = [text for row in self._sample() for text in (row["entry"]["question"], row["answer"])]
        return "".join(sorted({*map(chr, range(32, 127)), "\n"}.union(*texts)))

    def rows(self, split: Split, num_rows: int, seed: int = 0) -> list[Row]:
        """Return the first items of a split without repetition; fewer if the task has no more."""
        super().rows(split, min(num_rows, 0), seed)  # This rejects a wrong split or number.
        from unmask.tasks.reasoning_gym_items import entries_of

        entries = entries_of(self.name, self._options, split, num_rows, seed)
        return [self._row(entry) for entry in entries]

    def row(self, split: Split, index: int, seed: int) -> Row:
        return self.rows(split, index + 1, seed)[index]

    def demonstration(self, row: Row, rng: random.Random, sloppy: bool) -> str:
        """Return the package's answer. If `sloppy`, return the answer of another item."""
        answer = str(rng.choice(self._sample())["answer"] if sloppy else row["answer"])
        if not answer:
            raise DataError(f'reasoning_gym task "{self.name}" has no answers to learn from, only a scorer.')
        return answer

    def score(self, answer: str, row: Row) -> float:
        """Return the guarded reward of the package's scorer; 0 if it raises or exceeds a limit."""
        return self.grade([answer], [row])[0]

    def grade(self, answers: Sequence[str], rows: Sequence[Row]) -> list[float]:
        """Return `score` of many answers, computed in worker processes."""
        calls = [
            {"name": self.name, "options": self._options, "answer": answer, "entry": row["entry"]}
            for answer, row in zip(answers, rows, strict=True)
        ]
        return [outcome.value or 0.0 for outcome in _workers(os.getpid()).map(calls)]

    def is_right(self, answer: str, row: Row) -> bool:
        """Return True if the scorer gives the full reward."""
        return self.score(answer, row) >= 1.0

    @property
    def _options(self) -> str:
        """`config` as a text, which can be a key and can be sent to a worker."""
        return json.dumps(self.config, sort_keys=True)

    def _row(self, entry: dict[str, Any]) -> Row:
        question = entry["question"]
        answer = "" if entry["answer"] is None else str(entry["answer"])
        return {"prompt": self._prompt(question, _instruction(question)), "answer": answer, "entry": entry}

    def _sample(self) -> list[Row]:
        return self.rows("train", 64)


def available() -> tuple[str, ...]:
    """Return the sorted names of the package's tasks; no names if the package is not installed."""
    if importlib.util.find_spec("reasoning_gym") is None:
        return ()
    from reasoning_gym.factory import DATASETS

    return tuple(sorted(DATASETS.keys() - NOT_ONE))


@lru_cache(maxsize=1)
def _workers(_process: int) -> Workers:
    """Return the worker pool of this process. A forked process needs a pool of its own."""
    return Workers(f"{__name__}_items:score_entry", max(1, min(4, (os.cpu_count() or 2) - 1)), SECONDS, MEMORY)


def _instruction(question: str) -> str:
    return (
        f"{question}\n\n"
        "Think as long as you need, then write the answer alone, in the form that the question asks for, between <answer> and "
        "</answer>."
    )

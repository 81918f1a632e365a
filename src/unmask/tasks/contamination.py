"""Check whether test rows occur in the training rows. The check compares prompts, answers and
n-grams.

Equal prompts are a leak. Equal answers are a leak if there are few possible answers and they are
long, such as solved grids. Short answers, such as small numbers, can be equal by chance. Shared
n-grams find near copies: rows that were reworded at the beginning or the end, or that occur twice
in a source.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from unmask.core.errors import DataError
from unmask.core.records import Row
from unmask.tasks import Split, Task

NGRAM = 13
"""Number of words of an n-gram, as in the overlap analysis of GPT-3 (arXiv:2005.14165, appendix C)
and in later analyses."""

Kind = Literal["prompt", "answer", "n-gram"]
Words = tuple[str, ...]

_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Overlap:
    """Rows of a held-out split that also occur in the training split."""

    kind: Kind
    held_out: str
    """Held-out split whose rows are searched for in the training split."""
    num_rows: int
    """Number of distinct prompts of that split; in the overlap of answers, number of distinct
    answers."""
    num_found: int
    """Number of these texts that also occur in training."""
    examples: tuple[str, ...]
    """First few of the texts that also occur in training."""

    @property
    def share(self) -> float:
        """Return the share of rows that also occur in training; 0 if there are none."""
        return self.num_found / self.num_rows if self.num_rows else 0.0


def rows_of_splits(task: Task, num_rows: int, seed: int = 0) -> dict[Split, list[Row]]:
    """Return the first rows of each split that a task has.

    Raises:
        DataError: the task has no training rows, or neither validation nor test rows.
    """
    splits: dict[Split, list[Row]] = {"train": task.rows("train", num_rows, seed)}
    held_out: tuple[Split, ...] = ("validation", "test")
    for split in held_out:
        try:
            splits[split] = task.rows(split, num_rows, seed)
        except DataError as error:
            # A small file may have no validation rows; the test rows are checked anyway.
            absent = error
    if len(splits) == 1:
        raise absent
    return splits


def check_splits(splits: Mapping[Split, Sequence[Row]], *, n: int = NGRAM, num_examples: int = 3) -> list[Overlap]:
    """Return the overlaps of each held-out split with training.

    Texts are compared by their lower-case words and signs, so that white space and case do not
    matter. Text with which all prompts begin or end, such as an instruction, is removed before
    n-grams are taken. A prompt of fewer than n words is one n-gram.

    Args:
        splits: rows by split, including `train`.
        n: number of words of an n-gram.
        num_examples: number of examples to keep of each overlap.

    Returns:
        Three overlaps for each held-out split: of prompts, of answers (with no rows if there is no
        answer column), and of n-grams.

    Raises:
        DataError: there are no training rows, or n is below 1.
    """
    if not splits.get("train") or n < 1:
        raise DataError(
            f"needs rows of the train split and n >= 1; got {len(splits.get('train', ()))} rows and n = {n}."
        )
    template = _template([_words(row["prompt"]) for rows in splits.values() for row in rows])

    def grams(words: Words) -> set[Words]:
        return _ngrams(_without(words, template), n)

    train = splits["train"]
    train_prompts, train_answers = _distinct(train, "prompt"), _distinct(train, "answer")
    train_grams = {gram for words in train_prompts for gram in grams(words)}
    overlaps = []
    for name, rows in splits.items():
        if name == "train":
            continue
        prompts, answers = _distinct(rows, "prompt"), _distinct(rows, "answer")
        found: list[tuple[Kind, dict[Words, str], list[Words]]] = [
            ("prompt", prompts, [words for words in prompts if words in train_prompts]),
            ("answer", answers, [words for words in answers if words in train_answers]),
            ("n-gram", prompts, [words for words in prompts if grams(words) & train_grams]),
        ]
        for kind, asked, hits in found:
            examples = tuple(asked[words] for words in hits[:num_examples])
            overlaps.append(Overlap(kind, name, len(asked), len(hits), examples))
    return overlaps


def _distinct(rows: Iterable[Row], column: str) -> dict[Words, str]:
    """Return the distinct texts of a column, in the order of the rows, with the words of each text
    as the key."""
    found: dict[Words, str] = {}
    for row in rows:
        if row.get(column) not in (None, ""):
            text = _text(row[column])
            found.setdefault(_words(text), text)
    return found


def _words(value: Any) -> Words:
    return tuple(_WORD.findall(_text(value).casefold()))


def _text(value: Any) -> str:
    """Return a prompt as text; messages are joined."""
    if isinstance(value, list):
        return "\n".join(str(m.get("content", m)) if isinstance(m, Mapping) else str(m) for m in value)
    return str(value)


def _template(prompts: Sequence[Words]) -> tuple[int, int]:
    """Return the number of words that all prompts begin with and the number that all end with; 0 if
    all prompts are equal."""
    first, last = min(prompts), max(prompts)
    if first == last:
        return 0, 0
    prefix = _common(first, last)
    backwards = [prompt[::-1] for prompt in prompts]
    return prefix, _common(min(backwards), max(backwards))


def _common(first: Words, second: Words) -> int:
    """Return the number of words in the common beginning of two texts. The common beginning of the
    first and the last text of a sorted list is that of all its texts.
    """
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def _without(words: Words, template: tuple[int, int]) -> Words:
    prefix, suffix = template
    return words[prefix : max(prefix, len(words) - suffix)]


def _ngrams(words: Words, n: int) -> set[Words]:
    return {words[i : i + n] for i in range(max(1, len(words) - n + 1))} if words else set()

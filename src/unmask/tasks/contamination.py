"""Do the rows that a model is tested on occur among those that it is trained on? By prompt, by answer, by n-grams.

Equal prompts are a leak. Equal answers are one where answers are few and long, as with solved grids; short numbers meet by
chance. Shared n-grams find near copies: rows that were reworded at one end, or taken from one source twice.
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
"""Words of an n-gram, as in the overlap analyses of GPT-3 (arXiv:2005.14165, appendix C) and after."""

Kind = Literal["prompt", "answer", "n-gram"]
Words = tuple[str, ...]

_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Overlap:
    """What rows of one split have in common with another."""

    kind: Kind
    held_out: str
    """The split whose rows are looked for in the training split."""
    num_rows: int
    """Distinct prompts of that split; for `answer`, distinct answers."""
    num_found: int
    """How many of them are in training too."""
    examples: tuple[str, ...]
    """The first few that are."""

    @property
    def share(self) -> float:
        """Found ones among all; 0 where there is none to look for."""
        return self.num_found / self.num_rows if self.num_rows else 0.0


def rows_of_splits(task: Task, num_rows: int, seed: int = 0) -> dict[Split, list[Row]]:
    """The first rows of each split that a task has.

    Raises:
        DataError: it has no training rows, or neither validation nor test rows.
    """
    splits: dict[Split, list[Row]] = {"train": task.rows("train", num_rows, seed)}
    held_out: tuple[Split, ...] = ("validation", "test")
    for split in held_out:
        try:
            splits[split] = task.rows(split, num_rows, seed)
        except DataError as error:
            # A small file may have no validation rows, which is no reason not to look at the test.
            absent = error
    if len(splits) == 1:
        raise absent
    return splits


def check_splits(splits: Mapping[Split, Sequence[Row]], *, n: int = NGRAM, num_examples: int = 3) -> list[Overlap]:
    """Overlaps of each held-out split with training.

    Texts are compared by their words and signs in lower case, so that white space and letter case hide nothing. What all
    prompts begin and end with, such as an instruction, is left out before n-grams are taken; a prompt of fewer than n words
    is one n-gram.

    Args:
        splits: rows by split, `train` among them.
        n: words of an n-gram.
        num_examples: how many to keep of each overlap.

    Returns:
        For each held-out split three overlaps: prompt, answer (without rows where there is no answer column), n-gram.

    Raises:
        DataError: no training rows, or n below 1.
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
    """Distinct texts of a column by their words, in the order of the rows."""
    found: dict[Words, str] = {}
    for row in rows:
        if row.get(column) not in (None, ""):
            text = _text(row[column])
            found.setdefault(_words(text), text)
    return found


def _words(value: Any) -> Words:
    return tuple(_WORD.findall(_text(value).casefold()))


def _text(value: Any) -> str:
    """A prompt as text: messages joined."""
    if isinstance(value, list):
        return "\n".join(str(m.get("content", m)) if isinstance(m, Mapping) else str(m) for m in value)
    return str(value)


def _template(prompts: Sequence[Words]) -> tuple[int, int]:
    """How many words all prompts begin with, and end with, alike; none where all are one prompt."""
    first, last = min(prompts), max(prompts)
    if first == last:
        return 0, 0
    prefix = _common(first, last)
    backwards = [prompt[::-1] for prompt in prompts]
    return prefix, _common(min(backwards), max(backwards))


def _common(first: Words, second: Words) -> int:
    """Length of the common beginning; of the smallest and the largest of many sequences it is that of all."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def _without(words: Words, template: tuple[int, int]) -> Words:
    prefix, suffix = template
    return words[prefix : max(prefix, len(words) - suffix)]


def _ngrams(words: Words, n: int) -> set[Words]:
    return {words[i : i + n] for i in range(max(1, len(words) - n + 1))} if words else set()

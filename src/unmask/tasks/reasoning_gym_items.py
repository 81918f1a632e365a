"""Items and scores of the package `reasoning-gym`: what is asked of it, and nothing of how a task presents it.

Imports the package, so that a worker process that scores has it before its first answer.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
import random
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import reasoning_gym

from unmask.core.errors import ConfigError
from unmask.tasks.base import Split, stable_hash
from unmask.tasks.reasoning_gym_guard import guarded

_SEEDS: dict[Split, tuple[int, int]] = {
    "train": (0, 2**30),
    "validation": (2**30, 2**29),
    "test": (2**30 + 2**29, 2**29),
}
"""First seed and how many, of each split; all below 2^31."""
_QUARTERS: dict[Split, frozenset[int]] = {
    "train": frozenset({0, 1}),
    "validation": frozenset({2}),
    "test": frozenset({3}),
}
"""Which remainders by 4 of the question's hash belong to a split: at most four items are made for each that is kept."""
_CHUNK = 256
"""Items of one dataset object; some of the package's datasets prepare all of theirs when they are made."""
_LONGEST_KEPT, _MOST_KEPT = 1000, 256
"""Characters of a text whose score is kept, and texts of an item; bounds the memory."""
_GIVE_UP = 2000
"""Items in a row that are no new ones, after which a split is taken to have no more."""


@lru_cache(maxsize=8)
def entries_of(name: str, options: str, split: Split, num_rows: int, seed: int) -> tuple[dict[str, Any], ...]:
    """The first items of a split, no question twice; fewer than `num_rows` where it has no more.

    Args:
        name: of the package's task.
        options: its config as JSON.
        split: whose range of seeds is drawn from.
        num_rows: how many to have at most.
        seed: another one begins elsewhere in that range.

    Returns:
        The package's own entries: question, answer (None where there is only a scorer), metadata.
    """
    kept: list[dict[str, Any]] = []
    seen: set[str] = set()
    failures = 0
    drawn = _drawn(name, options, split, seed)
    while len(kept) < num_rows and failures < _GIVE_UP:
        entry = next(drawn)
        question = entry["question"]
        is_new = question not in seen and stable_hash(f"{name} {question}") % 4 in _QUARTERS[split]
        failures = 0 if is_new else failures + 1
        if is_new:
            seen.add(question)
            kept.append(entry)
    return tuple(kept)


def _drawn(name: str, options: str, split: Split, seed: int) -> Iterator[dict[str, Any]]:
    """Items of a split's range of seeds without end, from a place in it that `seed` chooses."""
    first, count = _SEEDS[split]
    chunk = stable_hash(f"{name}/{seed}") % (count // _CHUNK)
    while True:
        start = first + chunk * _CHUNK
        dataset = dataset_of(name, options, start)
        for index in range(_CHUNK):
            # Some generators draw from the global source beside their own.
            with _quiet(), _global_seed(start + index):
                entry = dataset[index]
            yield entry
        chunk = (chunk + 1) % (count // _CHUNK)


@lru_cache(maxsize=32)
def dataset_of(name: str, options: str, seed: int) -> Any:
    """The package's own dataset object.

    Raises:
        ConfigError: options that it does not take.
    """
    try:
        with _quiet(), _global_seed(seed):
            return reasoning_gym.create_dataset(name, seed=seed, size=_CHUNK, **json.loads(options))
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f'task.config does not fit reasoning_gym task "{name}": {error}') from error


def score_entry(name: str, options: str, answer: str, entry: dict[str, Any]) -> float:
    """The guarded score of one answer, for a worker process.

    Args:
        name: of the task.
        options: its config as JSON.
        answer: any text.
        entry: the item as the package made it.

    Returns:
        In [0, 1]; 0 where the scorer raises or gives something that is no number.
    """
    # An answer is asked for once, and so are the texts that it is compared with: other answers to the item have the same.
    texts = _scores_of(name, options, json.dumps(entry, sort_keys=True, default=str))

    def score(text: str) -> float:
        if text in texts:
            return texts[text]
        paid = _package_score(name, options, text, entry)
        if len(text) <= _LONGEST_KEPT and len(texts) < _MOST_KEPT:
            texts[text] = paid
        return paid

    return guarded(score, answer, entry)


@lru_cache(maxsize=64)
def _scores_of(name: str, options: str, entry: str) -> dict[str, float]:
    """Scores of texts on one item so far."""
    return {}


def _package_score(name: str, options: str, answer: str, entry: dict[str, Any]) -> float:
    try:
        with _quiet():
            # Some scorers add to the item.
            score = float(dataset_of(name, options, 0).score_answer(answer, copy.deepcopy(entry)))
    except Exception:  # a scorer that a text makes raise gives that text nothing
        return 0.0
    return min(1.0, max(0.0, score)) if math.isfinite(score) else 0.0


@contextlib.contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def _quiet() -> contextlib.redirect_stdout[io.StringIO]:
    """Some of the package's tasks print; a command's output and a worker's replies must not hold that."""
    return contextlib.redirect_stdout(io.StringIO())

"""Items and rewards of the package `reasoning-gym`, without the presentation of a task.

This module imports the package, so that a worker process has loaded the package before its first
answer.
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
"""First seed and number of seeds of each split; all are below 2^31."""
_QUARTERS: dict[Split, frozenset[int]] = {
    "train": frozenset({0, 1}),
    "validation": frozenset({2}),
    "test": frozenset({3}),
}
"""Remainders of the question's hash modulo 4 that belong to each split. About four items are
generated for each item that is kept."""
_CHUNK = 256
"""Number of items of one dataset object. It is small, because some datasets of the package prepare
all their items at creation."""
_LONGEST_KEPT, _MOST_KEPT = 1000, 256
"""Maximum length of a text whose reward is cached, and maximum number of such texts for each item.
These limits bound the memory."""
_GIVE_UP = 2000
"""Number of successive repeated items after which a split counts as exhausted."""


@lru_cache(maxsize=8)
def entries_of(name: str, options: str, split: Split, num_rows: int, seed: int) -> tuple[dict[str, Any], ...]:
    """Return the first items of a split without repetition; fewer items if the split has no more.

    Args:
        name: name of the package's task.
        options: config of the task as JSON.
        split: split whose range of seeds is used.
        num_rows: maximum number of items.
        seed: seed that selects the start in the range of the split.

    Returns:
        The package's entries: question, answer (None if there is only a scorer), metadata.
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
    """Yield items from a split's range of seeds endlessly, starting at a point that `seed`
    selects."""
    first, count = _SEEDS[split]
    chunk = stable_hash(f"{name}/{seed}") % (count // _CHUNK)
    while True:
        start = first + chunk * _CHUNK
        dataset = dataset_of(name, options, start)
        for index in range(_CHUNK):
            # Some generators also use the global random source.
            with _quiet(), _global_seed(start + index):
                entry = dataset[index]
            yield entry
        chunk = (chunk + 1) % (count // _CHUNK)


@lru_cache(maxsize=32)
def dataset_of(name: str, options: str, seed: int) -> Any:
    """Return the package's dataset object.

    Raises:
        ConfigError: the task does not accept the options.
    """
    try:
        with _quiet(), _global_seed(seed):
            return reasoning_gym.create_dataset(name, seed=seed, size=_CHUNK, **json.loads(options))
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f'task.config does not fit reasoning_gym task "{name}": {error}') from error


def score_entry(name: str, options: str, answer: str, entry: dict[str, Any]) -> float:
    """Score one answer in a worker process.

    Args:
        name: name of the task.
        options: config of the task as JSON.
        answer: any text.
        entry: item as the package made it.

    Returns:
        The reward in [0, 1]; 0 if the scorer raises or does not return a number.
    """
    # Each text is scored once for an item: the answer, and the texts that it is compared with.
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
    """Return the cached rewards of texts on one item."""
    return {}


def _package_score(name: str, options: str, answer: str, entry: dict[str, Any]) -> float:
    try:
        with _quiet():
            # Some scorers change the item.
            score = float(dataset_of(name, options, 0).score_answer(answer, copy.deepcopy(entry)))
    except Exception:  # A text that makes the scorer raise earns nothing.
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
    """Discard text that some tasks print, because it must not mix with the output or with a
    worker's replies."""
    return contextlib.redirect_stdout(io.StringIO())

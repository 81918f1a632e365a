"""Equality of mathematical expressions by math-verify, in worker processes of our own with limits of time and memory.

math-verify stops itself by SIGALRM, which works in a main thread only, counts whole seconds and cannot end a call into C. Its
plain-expression reader passes text on to `eval`; only its LaTeX reader is used here, which parses.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Sequence
from functools import lru_cache

from unmask.core.errors import ConfigError
from unmask.rewards.grading.latex import comparisons
from unmask.rewards.protocol import Score
from unmask.rewards.workers import Workers

SECONDS = 5.0
"""For one comparison. Nearly all take a few milliseconds."""
BUDGET = 40.0
"""Seconds for all comparisons of a batch, or less where `reward_timeout` leaves less: hostile answers cost their reward, not the
run."""
MEMORY = 2 * 2**30
"""Bytes of address space of a worker."""
REMEMBERED = 50_000
"""Verdicts that are kept: the drafts of a rollout repeat their answers, and evaluation asks twice."""

_verdicts: dict[tuple[str, str], bool | None] = {}


def grade(answers: Sequence[str], golds: Sequence[str]) -> list[float]:
    """Rewards of answers to MATH, all that need algebra in one go.

    Args:
        answers: any texts.
        golds: the right answers, as LaTeX.

    Returns:
        1.0 or 0.0, a `Score` with the reason "timeout" where a comparison did not end.

    Raises:
        ConfigError: math-verify is not installed.
    """
    found = [comparisons(answer, gold) for answer, gold in zip(answers, golds, strict=True)]
    settled = iter(verify_all(pair for result in found if not isinstance(result, bool) for pair in result))
    verdicts = [result if isinstance(result, bool) else _all_hold([next(settled) for _ in result]) for result in found]
    return [Score(0.0, "timeout") if verdict is None else float(verdict) for verdict in verdicts]


def verify_all(pairs: Iterable[tuple[str, str]]) -> list[bool | None]:
    """Whether each answer equals its gold one.

    Args:
        pairs: (gold, answer), as LaTeX.

    Returns:
        A verdict for each; None where the comparison did not end within its time and memory. Verdicts are remembered, but for
        those that the batch had no time for.

    Raises:
        ConfigError: math-verify is not installed.

    Example:
        >>> verify_all([(r"2\\sqrt{2}", r"\\sqrt{8}"), ("(1,2)", "(2,1)")])
        [True, False]
    """
    pairs = list(pairs)
    unknown = list(dict.fromkeys(pair for pair in pairs if pair not in _verdicts))
    fresh: dict[tuple[str, str], bool | None] = {}
    unasked: set[tuple[str, str]] = set()
    if unknown:
        outcomes = _workers(os.getpid()).map([{"gold": gold, "answer": answer} for gold, answer in unknown], BUDGET)
        for pair, outcome in zip(unknown, outcomes, strict=True):
            # An error is sympy's, about something that is no expression: no equality, then.
            fresh[pair] = False if outcome.failure == "error" else None if outcome.failure else outcome.value
            if outcome.failure == "no time":
                unasked.add(pair)
    verdicts = [fresh[pair] if pair in fresh else _verdicts[pair] for pair in pairs]
    if len(_verdicts) + len(fresh) > REMEMBERED:
        _verdicts.clear()
    _verdicts.update({pair: verdict for pair, verdict in fresh.items() if pair not in unasked})
    return verdicts


def _all_hold(verdicts: Sequence[bool | None]) -> bool | None:
    """Whether all comparisons of an answer hold; None if one did not end and no other failed."""
    return False if False in verdicts else None if None in verdicts else True


@lru_cache(maxsize=1)
def _workers(_process: int) -> Workers:
    """The pool of this process; a fork must not share its parent's pipes."""
    if importlib.util.find_spec("math_verify") is None:
        raise ConfigError('grading mathematics needs a package more: pip install "unmask[math]".')
    return Workers("unmask.rewards.grading.algebra:check", max(1, min(4, (os.cpu_count() or 2) - 1)), SECONDS, MEMORY)

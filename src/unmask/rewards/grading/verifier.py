"""Equality of mathematical expressions by math-verify, in processes with time and memory limits.

math-verify limits its own time with SIGALRM, which works only in the main thread, counts whole
seconds and cannot interrupt a call into C. Its reader of plain expressions passes text to `eval`.
Its LaTeX reader parses the text, so only that reader is used here.
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
"""Time limit of one comparison in seconds. Nearly all comparisons take a few milliseconds."""
BUDGET = 40.0
"""Time limit of all comparisons of a batch in seconds; `reward_timeout` may shorten it. Because of
this limit, answers that take too long lose their reward and do not stop the run."""
MEMORY = 2 * 2**30
"""Limit of the address space of a worker in bytes."""
REMEMBERED = 50_000
"""Maximum number of cached verdicts. The same answers recur within a rollout and in later
evaluations."""

_verdicts: dict[tuple[str, str], bool | None] = {}


def grade(answers: Sequence[str], golds: Sequence[str]) -> list[float]:
    """Return the rewards of answers to examples of MATH.

    All answers that need algebra are compared in one batch.

    Args:
        answers: any texts.
        golds: correct answers, as LaTeX.

    Returns:
        1.0 or 0.0 for each answer, or a `Score` with the reason "timeout" if its comparison did not
        finish.

    Raises:
        ConfigError: math-verify is not installed.
    """
    results = [comparisons(answer, gold) for answer, gold in zip(answers, golds, strict=True)]
    verified = iter(verify_all(pair for result in results if not isinstance(result, bool) for pair in result))
    verdicts = [
        result if isinstance(result, bool) else _all_hold([next(verified) for _ in result]) for result in results
    ]
    return [Score(0.0, "timeout") if verdict is None else float(verdict) for verdict in verdicts]


def verify_all(pairs: Iterable[tuple[str, str]]) -> list[bool | None]:
    """Return for each pair whether the answer equals the gold answer.

    Args:
        pairs: pairs of gold answer and answer, as LaTeX.

    Returns:
        A verdict for each pair; None if the comparison exceeded its time or memory limit. Verdicts
        are cached, except those for which the batch had no time left.

    Raises:
        ConfigError: math-verify is not installed.

    Example:
        >>> verify_all([(r"2\\sqrt{2}", r"\\sqrt{8}"), ("(1,2)", "(2,1)")])
        [True, False]
    """
    pairs = list(pairs)
    unknown = list(dict.fromkeys(pair for pair in pairs if pair not in _verdicts))
    fresh: dict[tuple[str, str], bool | None] = {}
    not_compared: set[tuple[str, str]] = set()
    if unknown:
        outcomes = _workers(os.getpid()).map([{"gold": gold, "answer": answer} for gold, answer in unknown], BUDGET)
        for pair, outcome in zip(unknown, outcomes, strict=True):
            # An error comes from sympy, for a text that is not an expression. So the two texts are
            # not equal.
            fresh[pair] = False if outcome.failure == "error" else None if outcome.failure else outcome.value
            if outcome.failure == "no time":
                not_compared.add(pair)
    verdicts = [fresh[pair] if pair in fresh else _verdicts[pair] for pair in pairs]
    if len(_verdicts) + len(fresh) > REMEMBERED:
        _verdicts.clear()
    _verdicts.update({pair: verdict for pair, verdict in fresh.items() if pair not in not_compared})
    return verdicts


def _all_hold(verdicts: Sequence[bool | None]) -> bool | None:
    """Return True if all comparisons of an answer hold, False if one fails, else None."""
    return False if False in verdicts else None if None in verdicts else True


@lru_cache(maxsize=1)
def _workers(_process: int) -> Workers:
    """Return the workers of this process, because a fork must not share its parent's pipes."""
    if importlib.util.find_spec("math_verify") is None:
        raise ConfigError('math-verify is not installed. Run: pip install "unmask[math]".')
    return Workers("unmask.rewards.grading.algebra:check", max(1, min(4, (os.cpu_count() or 2) - 1)), SECONDS, MEMORY)

"""Equality by math-verify in worker processes: its verdicts, and the effect of hostile answers."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from unmask.core.errors import ConfigError
from unmask.core.timeouts import time_limit
from unmask.rewards.grading import verifier
from unmask.rewards.grading.verifier import verify_all
from unmask.rewards.workers import Workers

pytest.importorskip("math_verify")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[Workers]:
    """Use a pool with a short time limit and without cached verdicts."""
    pool = Workers("unmask.rewards.grading.algebra:check", 1, timeout=0.7, memory=verifier.MEMORY)
    monkeypatch.setattr(verifier, "_workers", lambda _: pool)
    monkeypatch.setattr(verifier, "_verdicts", {})
    yield pool
    pool.close()


EQUAL = [
    (r"2\sqrt{2}", r"\sqrt{8}"),
    ("8n^2 + 4n + 1", "4n(2n + 1) + 1"),
    ("p - q", "-q + p"),
    (r"1 \pm \sqrt{19}", r"1 + \sqrt{19}, 1 - \sqrt{19}"),
    ("3, 5, 7", "7, 5, 3"),
    ("y = 2x + 3", "2x + 3"),
    (r"x \in [-2,7]", "[-2,7]"),
    ("5x - 7y + 11z + 4 = 0", "-5x + 7y - 11z - 4 = 0"),
    (r"\begin{pmatrix} 1/5 \\ -18/5 \end{pmatrix}", r"\begin{pmatrix} 0.2 \\ -3.6 \end{pmatrix}"),
]
DIFFERENT = [
    (r"2\sqrt{2}", r"\sqrt{6}"),
    ("p - q", "q - p"),
    ("(3,4]", "[3,4)"),
    ("(1,2)", "(2,1)"),
    ("3, 5, 7", "3, 5"),
    ("y = 2x + 3", "x = 2y + 3"),
    (r"\pi", "3.14"),
    (r"\sqrt{51}", ""),
    (r"\sqrt{51}", r"\sqrt{"),
]


@pytest.mark.slow
def test_equal_expressions_are_equal_and_others_are_not() -> None:
    assert verify_all(EQUAL) == [True] * len(EQUAL)
    assert verify_all(DIFFERENT) == [False] * len(DIFFERENT)


@pytest.mark.slow
def test_an_answer_whose_comparison_does_not_end_has_no_verdict_and_is_remembered(
    quick: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = [(r"\sqrt{51}", "9^{9^{9^{9^9}}}"), (r"\sqrt{51}", r"10^{10^{10}}!")]
    pairs = [EQUAL[0], hostile[0], DIFFERENT[0], hostile[1], EQUAL[2]]
    verdicts = verify_all(pairs)
    assert [verdicts[i] for i in (0, 2, 4)] == [True, False, True]
    assert all(verdicts[i] in (None, False) for i in (1, 3))
    assert None in verdicts
    # Verdicts are cached, time-outs too, so a second call needs no worker.
    monkeypatch.setattr(verifier, "_workers", lambda _: pytest.fail("a worker was used"))
    assert verify_all(pairs) == verdicts


@pytest.mark.slow
def test_pairs_without_time_in_a_batch_are_compared_again(quick: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    verify_all(EQUAL[:1])  # the worker has started
    with time_limit(0.0):
        assert verify_all([EQUAL[1]]) == [None]
    assert verify_all([EQUAL[1]]) == [True]


@pytest.mark.slow
def test_it_works_outside_the_main_thread_unlike_math_verify(quick: Workers) -> None:
    from math_verify import parse

    found: list[Any] = []

    def ask() -> None:
        found.append(verify_all(EQUAL[:2]))
        with pytest.raises(ValueError, match="threaded environment"):
            parse("$1$")

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join(30)
    assert found == [[True, True]]


@pytest.mark.slow
def test_equal_pairs_are_compared_once(quick: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    plain = quick.map

    def count(calls: Any, budget: float = 0.0) -> Any:
        asked.append(len(calls))
        return plain(calls, budget)

    monkeypatch.setattr(quick, "map", count)
    assert verify_all([EQUAL[0], EQUAL[0], DIFFERENT[0], EQUAL[0]]) == [True, True, False, True]
    assert verify_all([DIFFERENT[0], EQUAL[1]]) == [False, True]
    assert asked == [2, 1]


@pytest.mark.slow
def test_verdicts_are_forgotten_rather_than_fill_the_memory(quick: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifier, "REMEMBERED", 2)
    for pair in EQUAL[:4]:
        assert verify_all([pair, EQUAL[0]]) == [True, True]
        assert len(verifier._verdicts) <= 2


@pytest.mark.slow
def test_without_math_verify_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifier, "_verdicts", {})
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    verifier._workers.cache_clear()
    with pytest.raises(ConfigError, match=r'pip install "unmask\[math\]"'):
        verify_all([EQUAL[0]])

"""Tests of time limits and of the time that they leave."""

from __future__ import annotations

import signal
import time

import pytest

from unmask.core.timeouts import budget, time_limit, within
from unmask.rewards.sandbox import SandboxConfig, SandboxJob, make_sandbox
from unmask.rewards.scorer import Scorer


@pytest.mark.parametrize(("limit", "seconds", "expected"), [(60, 40, 40), (60, 100, 50), (15, 40, 7.5), (0.0, 40, 0)])
def test_a_budget_leaves_time_to_return(limit: float, seconds: float, expected: float) -> None:
    with time_limit(limit):
        assert budget(seconds) == pytest.approx(expected, abs=0.1)
    assert budget(seconds) == seconds


def test_an_inner_limit_cannot_extend_an_outer_one() -> None:
    with time_limit(10.0), time_limit(1000.0):
        assert budget(100.0) < 10.0


@pytest.mark.parametrize("is_async", [False, True])
def test_a_reward_function_knows_its_time_limit(is_async: bool) -> None:
    def plain(completions: list[str]) -> list[float]:
        return [budget(1000.0)] * len(completions)

    async def waits(completions: list[str]) -> list[float]:
        return plain(completions)

    scorer = Scorer({"left": waits if is_async else plain}, timeout=30.0)
    assert scorer([{"prompt": "p"}], ["c"]).total[0] == pytest.approx(20.0, abs=1.0)


@pytest.mark.slow
def test_programs_that_hang_lose_their_reward_but_do_not_end_the_run() -> None:
    sandbox = make_sandbox(SandboxConfig(timeout=0.4))
    jobs = [SandboxJob(f"def f(x):\n    while True: {n}", ("f(1)",), ("f",)) for n in range(40)]
    start = time.monotonic()

    def run(completions: list[str]) -> list[float]:
        return [result.share_passed for result in sandbox.run(jobs)[: len(completions)]]

    assert Scorer({"run": run}, timeout=3.0)([{"prompt": "p"}], ["c"]).total == [0.0]
    assert time.monotonic() - start < 3.0


def test_a_limit_leaves_the_alarm_of_its_caller_as_it_was() -> None:
    """The time limit of a test is such an alarm."""
    earlier = signal.setitimer(signal.ITIMER_REAL, 100, 7)
    try:
        assert within(5, lambda: "done") == "done"
        left, interval = signal.setitimer(signal.ITIMER_REAL, 0)
        assert 90 < left <= 100
        assert interval == 7
        within(5, lambda: None)
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0), "without an alarm before, there is none after"
    finally:
        signal.setitimer(signal.ITIMER_REAL, *earlier)

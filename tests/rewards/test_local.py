"""Reward functions in this process: time limits, whatever a function catches or does late."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from unmask.core.errors import RewardError
from unmask.rewards.scorer import Scorer

ROWS = [{"prompt": "2+2=", "answer": "4"}, {"prompt": "3+4=", "answer": "7"}]


def right(prompts: list[str], completions: list[str], answer: list[str], **_: Any) -> list[float]:
    return [float(text == gold) for text, gold in zip(completions, answer, strict=True)]


def test_a_function_that_ends_the_process_is_only_an_error() -> None:
    def leave(**_: Any) -> None:
        raise SystemExit("bye")

    with pytest.raises(RewardError, match='"leave" raised SystemExit: bye'):
        Scorer({"leave": leave})(ROWS, ["4", "7"])


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.slow
def test_a_function_that_hangs_is_given_up(is_async: bool) -> None:
    may_end = threading.Event()

    def hang(**_: Any) -> None:
        may_end.wait(60)

    async def hang_async(**_: Any) -> None:
        await asyncio.to_thread(may_end.wait, 60)

    started = time.perf_counter()
    with pytest.raises(RewardError) as caught:
        Scorer({"hang": hang_async if is_async else hang}, timeout=0.1)(ROWS, ["4", "7"])
    assert time.perf_counter() - started < 10
    assert str(caught.value) == (
        'reward function "hang" did not return within 0.1 s for 2 completions. Make it faster, or raise reward_timeout.'
    )
    may_end.set()


def test_a_function_that_never_gives_the_interpreter_back_is_given_up() -> None:
    def backtrack(completions: list[str], **_: Any) -> list[float]:
        return [float(bool(re.match(r"(a+)+b", "a" * 60))) for _ in completions]

    with pytest.raises(RewardError, match="did not return within 0.2 s"):
        Scorer({"backtrack": backtrack}, timeout=0.2)(ROWS, ["4", "7"])


def test_a_function_that_catches_its_errors_is_stopped_too() -> None:
    def stubborn(**_: Any) -> None:
        while True:
            with contextlib.suppress(Exception):
                time.sleep(60)

    with pytest.raises(RewardError, match="did not return within 0.2 s"):
        Scorer({"stubborn": stubborn}, timeout=0.2)(ROWS, ["4", "7"])


class Late:
    """A value, or a list of values, that is never available."""

    def __float__(self) -> float:
        while True:
            with contextlib.suppress(BaseException):
                time.sleep(60)

    def __iter__(self) -> Iterator[float]:
        yield float(self)


async def retries(completions: list[str]) -> list[float]:
    while True:
        try:  # noqa: SIM105 (as users write it)
            await asyncio.sleep(0)
        except:  # noqa: E722
            pass


def swallows(completions: list[str]) -> list[float]:
    while True:
        try:  # noqa: SIM105 (as users write it)
            time.sleep(60)
        except:  # noqa: E722
            pass


@pytest.mark.parametrize(
    "function",
    [swallows, retries, lambda completions: [Late(), Late()], lambda completions: Late()],
    ids=["swallows", "retries", "late numbers", "late list"],
)
@pytest.mark.slow
def test_a_time_limit_holds_for_what_catches_everything_and_for_what_comes_late(function: Any) -> None:
    with pytest.raises(RewardError, match="did not return within 0.1 s"):
        Scorer({"stubborn": function}, timeout=0.1)(ROWS, ["4", "7"])
    # The alarm is off, and the next call has its own.
    time.sleep(0.01)
    assert Scorer({"right": right}, timeout=5.0)(ROWS, ["4", "7"]).total == [1.0, 1.0]


def test_an_asynchronous_function_is_awaited_in_a_notebook() -> None:
    async def slow(completions: list[str], **_: Any) -> list[float]:
        await asyncio.sleep(0.01)
        return [float(len(text)) for text in completions]

    async def cell() -> list[float]:
        return Scorer({"slow": slow}, timeout=5.0)(ROWS, ["", "abc"]).total

    async def hanging_cell() -> None:
        Scorer({"retries": hang}, timeout=0.1)(ROWS, ["", "abc"])

    async def hang(completions: list[str]) -> list[float]:
        await asyncio.sleep(60)
        return []

    assert asyncio.run(cell()) == [0.0, 3.0]
    with pytest.raises(RewardError, match="did not return within 0.1 s"):
        asyncio.run(hanging_cell())


def test_outside_the_main_thread_a_time_limit_holds_as_well() -> None:
    message: list[str] = []

    def call() -> None:
        try:
            Scorer({"sleep": lambda **_: time.sleep(60)}, timeout=0.1)(ROWS, ["4", "7"])
        except RewardError as error:
            message.append(str(error))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(10)
    assert message
    assert "did not return within 0.1 s" in message[0]

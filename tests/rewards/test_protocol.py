"""Rewards with a reason, and functions that declare their reasons."""

from __future__ import annotations

import json

from unmask.rewards.protocol import Score, reasons_of, reports


def test_a_score_is_a_number_to_everyone_who_does_not_ask_for_its_reason() -> None:
    score = Score(0.25, "unparsed")
    assert (score + 1, score == 0.25, json.dumps([score])) == (1.25, True, "[0.25]")
    assert score.reason == "unparsed"


def test_reasons_are_those_of_the_decorator_and_a_method_keeps_them() -> None:
    class Task:
        @reports("unparsed", "timeout")
        def reward(self) -> None: ...

    assert reasons_of(Task().reward) == ("unparsed", "timeout")
    assert reasons_of(len) == ()

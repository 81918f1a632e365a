"""No completion makes a reward raise, hang or leave its bounds; benchmark/fuzz_rewards.py has more."""

from __future__ import annotations

from typing import Any

import pytest

from benchmark.fuzz_rewards import BATCH, Subject, fuzz, subjects

SUBJECTS = {subject.name: subject for subject in subjects()}
BY_ALGEBRA = {"math, tagged", "correct_math"}


@pytest.mark.parametrize("name", sorted(SUBJECTS.keys() - BY_ALGEBRA))
@pytest.mark.slow
def test_no_completion_upsets_a_reward(name: str) -> None:
    subject = SUBJECTS[name]
    fuzz(subject, 300)
    assert subject.cases >= 300
    assert subject.lowest == 0.0


@pytest.mark.parametrize("name", sorted(BY_ALGEBRA))
@pytest.mark.slow
def test_no_completion_upsets_a_reward_that_needs_algebra(name: str) -> None:
    pytest.importorskip("math_verify")
    fuzz(SUBJECTS[name], 100)
    assert SUBJECTS[name].lowest == 0.0


@pytest.mark.parametrize("fault", [ZeroDivisionError, 1.5, float("nan"), None])
@pytest.mark.slow
def test_a_reward_that_one_completion_upsets_is_found(fault: Any) -> None:
    """Negative control: one completion in many breaks this reward in one of three ways."""

    def fragile(completions: list[str], **_: Any) -> list[float]:
        scores = [0.0] * BATCH
        if any("<answer>" in text and "\\frac" in text for text in completions):
            if fault is ZeroDivisionError:
                raise fault
            scores[3] = fault
        return scores

    with pytest.raises((ZeroDivisionError, AssertionError)):
        fuzz(Subject("fragile", fragile, {}), 400)

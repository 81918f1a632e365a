"""Tests of schedules as settings: what is read, what is refused, and what it means for a sampler."""

from __future__ import annotations

import pytest

from tests.helpers.messages import raises
from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError
from unmask.core.schedules import SCHEDULE_NAMES, Schedule
from unmask.sampling.schedules import SCHEDULES


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fixed", Schedule()),
        ("threshold=0.90", Schedule("threshold", 0.9)),
        (" factor = 1 ", Schedule("factor", 1.0)),
        ("entropy_bound=0", Schedule("entropy_bound", 0.0)),
    ],
)
def test_a_schedule_is_read_and_written_in_one_form(text: str, expected: Schedule) -> None:
    assert Schedule.parse(text) == expected
    assert Schedule.parse(str(expected)) == expected
    assert SamplerConfig(schedule=text).schedule == str(expected)


def test_every_adaptive_schedule_has_a_rule() -> None:
    assert {*SCHEDULES} == {name for name in SCHEDULE_NAMES if name != "fixed"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("treshold=0.9", ('Did you mean "threshold"', "fixed")),
        ("threshold", ("no number", "threshold=0.9")),
        ("threshold=high", ("no number", "threshold=0.9")),
        ("threshold=1.1", ("probability above 0", "threshold=0.9")),
        ("threshold=0", ("probability above 0", "threshold=0.9")),
        ("threshold=nan", ("probability above 0", "threshold=0.9")),
        ("factor=0", ("above 0", "factor=1")),
        ("entropy_bound=-1", ("nats", "entropy_bound=0.3")),
        ("entropy_bound=inf", ("nats", "entropy_bound=0.3")),
        ("fixed=3", ("has a bound", "Write fixed")),
    ],
)
def test_a_schedule_that_means_nothing_is_refused(text: str, words: tuple[str, ...]) -> None:
    with raises(ConfigError, *words):
        Schedule.parse(text)


def test_the_number_of_steps_is_a_limit_whose_default_is_one_position_a_step() -> None:
    assert SamplerConfig(max_completion_length=48, schedule="threshold=0.9").steps == 48
    limited = SamplerConfig(max_completion_length=48, num_steps=12, block_length=8, schedule="threshold=0.9")
    assert (limited.steps, limited.steps_per_block) == (12, 2)
    assert SamplerConfig(max_completion_length=48).steps == 24


def test_an_order_that_draws_positions_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"plackett_luce.*Set order to max_probability, or schedule to fixed"):
        SamplerConfig(schedule="threshold=0.9", order="plackett_luce")

"""Accuracy at an equal number of reward calls, against straight lines by hand."""

from __future__ import annotations

import pytest

from tests.helpers.comparisons import final, of
from unmask.trainer.comparison.equal_calls import at_calls, fewest_calls
from unmask.trainer.comparison.jobs import Record
from unmask.trainer.comparison.results import Results


def run(method: str, seed: int, *points: tuple[int, float]) -> Record:
    """A run with these numbers of reward calls and accuracies at its evaluations."""
    curve = [
        {"step": i, "token_passes": 100 * i, "reward_calls": calls, "accuracy": {"0.9": accuracy, "0": 0.5}}
        for i, (calls, accuracy) in enumerate(points)
    ]
    return final("t", method, seed, 0.5, curve=curve)


RUNS = [
    run("a", 0, (0, 0.0), (100, 0.25), (200, 0.75)),
    run("a", 1, (0, 0.25), (200, 0.25), (400, 1.0)),
    run("b", 0, (0, 0.0), (150, 0.75)),
    run("b", 1, (0, 0.25), (160, 0.25)),
]


def test_methods_are_read_off_where_the_run_with_the_fewest_calls_ends() -> None:
    results = Results(of(), [final("t", "base", 0, 0.1), *RUNS])
    assert fewest_calls(results, "t") == 150
    # Run 0 of a is half way from 0.25 at 100 to 0.75 at 200.
    assert at_calls(results, "t", "a", "0.9", 150).mean == pytest.approx((0.5 + 0.25) / 2)
    assert at_calls(results, "t", "b", "0.9", 150).mean == pytest.approx((0.75 + 0.25) / 2)
    assert at_calls(results, "t", "a", "0.9", 150).number == 2
    # At equal compute the order of the two is the other way round.
    assert results.curve("t", "a", "0.9", "reward_calls")[-1][1].mean > results.curve("t", "b", "0.9")[-1][1].mean


def test_there_is_no_such_number_for_one_method_or_older_results() -> None:
    assert fewest_calls(Results(of(), RUNS[:2]), "t") is None
    old = final("t", "b", 2, 0.5)
    assert "reward_calls" not in old["curve"][0]
    assert fewest_calls(Results(of(), [*RUNS, old]), "t") is None
    assert Results(of(), [old]).curve("t", "b", "0.9", "reward_calls") == []
    assert len(Results(of(), [old]).curve("t", "b", "0.9")) == 2

"""Tests of differences and intervals over seeds and examples, computed from records."""

from __future__ import annotations

from math import isnan
from statistics import fmean
from typing import Any

import pytest
from scipy import stats

from tests.helpers.comparisons import final, of
from unmask.trainer.comparison.jobs import Record
from unmask.trainer.comparison.outcomes import packed
from unmask.trainer.comparison.results import Results
from unmask.trainer.comparison.statistics import Statistics

A, B = (0.5, 0.75, 0.5, 1.0, 0.75), (0.25, 0.5, 0.5, 0.5, 0.25)
SEEDS = list(range(5))


def records(method: str, shares: tuple[float, ...], task: str = "t") -> list[Record]:
    """Lines whose outcomes have these shares of solved examples, of 32, at temperature 0.9."""
    found = []
    for seed, share in enumerate(shares):
        outcomes = {
            "accuracy": {"0.9": packed([i < 32 * share for i in range(32)]), "0": packed([True] * 16 + [False] * 16)}
        }
        found.append(final(task, method, seed, share, outcomes=outcomes))
    return found


def statistics(lines: list[Record], **changes: Any) -> Statistics:
    return Statistics(Results(of(**{"seeds": SEEDS, "baselines": ["b"]} | changes), lines))


def test_a_difference_has_the_paired_test_and_effect_size_of_its_seeds() -> None:
    found = statistics(records("a", A) + records("b", B)).difference("t", "a", "b", "0.9")
    assert found is not None
    values = [a - b for a, b in zip(A, B, strict=True)]
    assert found.mean.mean == pytest.approx(fmean(values))
    assert found.p_value == pytest.approx(float(stats.ttest_rel(A, B).pvalue))
    assert found.effect == pytest.approx(fmean(values) / stats.tstd(values))


def test_the_correction_counts_every_task_and_temperature() -> None:
    one = statistics(records("a", A) + records("b", B))
    assert one.num_tests == 2
    alone = one.difference("t", "a", "b", "0.9")
    assert alone is not None
    # The two greedy results are equal, with the p-value 1.
    assert alone.corrected == pytest.approx(2 * alone.p_value)
    assert alone.is_marked == (2 * alone.p_value <= 0.05)
    lines = [record for task in ("t", "u") for m, v in (("a", A), ("b", B)) for record in records(m, v, task)]
    two = statistics(lines, tasks={t: {"recipe": "none", "model": "none", "budget": 1} for t in "tu"})
    assert two.num_tests == 4
    assert two.difference("t", "a", "b", "0.9").corrected == pytest.approx(4 * alone.p_value)  # type: ignore[union-attr]


def test_one_seed_has_a_difference_but_no_test() -> None:
    found = statistics(records("a", A)[:1] + records("b", B)[:1])
    difference = found.difference("t", "a", "b", "0.9")
    assert difference is not None
    assert difference.mean.mean == 0.25
    assert isnan(difference.p_value)
    assert not difference.is_marked
    assert (found.num_tests, found.interval("t", "a", "0.9", "b")) == (0, None)
    assert found.difference("t", "b", "a", "0.9") is None


def test_the_interval_of_a_difference_pairs_the_examples() -> None:
    found = statistics(records("a", A) + records("b", B))
    low, high = found.interval("t", "a", "0.9", "b") or (0, 0)
    assert low < fmean(A) - fmean(B) < high
    # The examples that b solves are among those of a, so the difference varies less than it would
    # with other examples.
    other = [
        record | {"outcomes": {"accuracy": {"0.9": packed([i >= 32 - 32 * share for i in range(32)])}}}
        for record, share in zip(records("b", B), B, strict=True)
    ]
    wider = statistics(records("a", A) + other).interval("t", "a", "0.9", "b") or (0, 0)
    assert wider[1] - wider[0] > 1.1 * (high - low)
    assert found.interval("t", "a", "0.9", "b") == statistics(records("a", A) + records("b", B)).interval(
        "t", "a", "0.9", "b"
    )


def test_results_without_outcomes_have_no_interval_over_examples() -> None:
    old = [{key: value for key, value in record.items() if key != "outcomes"} for record in records("b", B)]
    found = statistics(records("a", A) + old)
    assert found.interval("t", "a", "0.9") is not None
    assert found.interval("t", "b", "0.9") is None
    assert found.interval("t", "a", "0.9", "b") is None
    assert found.difference("t", "a", "b", "0.9") is not None, "tests need no outcomes"

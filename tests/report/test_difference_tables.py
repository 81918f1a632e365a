"""Tables of tests, and the sentences that take the place of a best method."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.helpers.comparisons import final, of
from unmask.report.difference_tables import explanation, table_of_differences, table_of_tests, undecided
from unmask.report.table_files import write_tables
from unmask.trainer.comparison.jobs import Record
from unmask.trainer.comparison.outcomes import packed
from unmask.trainer.comparison.results import Results
from unmask.trainer.comparison.statistics import Statistics

SEEDS = list(range(5))
UP, NEAR, BASE = (0.7, 0.72, 0.74, 0.75, 0.8), (0.4, 0.6, 0.5, 0.4, 0.5), (0.4, 0.45, 0.5, 0.5, 0.4)


def results(number: int = 5, with_outcomes: bool = True) -> Results:
    """Results of a, far above c, and of b, near c; greedy results are equal."""
    recipe = of(methods={m: {} for m in "abc"}, seeds=SEEDS[:number], baselines=["c"])
    lines: list[Record] = []
    for method, values in (("a", UP), ("b", NEAR), ("c", BASE)):
        for seed in SEEDS[:number]:
            bits = packed([i < 100 * values[seed] for i in range(100)])
            outcomes = {"outcomes": {"accuracy": {"0.9": bits, "0": bits}}} if with_outcomes else {}
            lines.append(final("t", method, seed, values[seed], **outcomes))
    return Results(recipe, lines)


def test_differences_that_stay_significant_after_the_correction_are_marked() -> None:
    found = results()
    statistics = Statistics(found)
    table = table_of_differences(found, statistics, "t")
    assert table is not None
    cells = {row[0]: row[2] for row in table.rows}
    assert cells["a - c"].startswith("+0.292 ± ")
    assert (cells["a - c"].endswith(" *"), cells["b - c"].endswith(" *")) == (True, False)
    assert "Differences with * have a p-value of at most 0.05" in explanation(statistics)
    assert "for all 4 differences" in explanation(statistics)


def test_the_table_of_tests_has_effect_sizes_p_values_and_bootstrap_intervals() -> None:
    found = results()
    statistics = Statistics(found)
    table = table_of_tests(found, statistics, "t")
    assert table is not None
    assert table.columns[2:] == ["Cohen's d", "p", "p, Holm", "bootstrap over seeds and examples"]
    assert [row[:2] for row in table.rows] == [
        [pair, t] for pair in ("a - c", "b - c") for t in ("sampled at 0.9", "greedy")
    ]
    row, difference = table.rows[0], statistics.difference("t", "a", "c", "0.9")
    assert difference is not None
    assert row[2:5] == [f"{difference.effect:+.2f}", f"{difference.p_value:.4f}", f"{difference.corrected:.4f}"]
    low, high = map(float, row[5].split(" to "))
    assert 0 < low < 0.292 < high
    assert table.rows[1][2:5] == ["+0.00", "1.0000", "1.0000"]


def test_older_results_have_tests_without_the_bootstrap_and_one_seed_has_none() -> None:
    old = results(with_outcomes=False)
    table = table_of_tests(old, Statistics(old), "t")
    assert table is not None
    assert table.columns[-1] == "p, Holm"
    one = results(number=1)
    assert table_of_tests(one, Statistics(one), "t") is None
    assert explanation(Statistics(one)) == ""


def test_a_column_without_a_best_method_says_why() -> None:
    assert undecided(results(), "t") == [
        "**t, greedy: no method is certainly the best.** a has the largest mean, but the 95 % intervals of its differences "
        "from b, c contain 0."
    ]
    assert undecided(results(number=4), "t") == [
        "**t: no method is called the best, because a line has only 4 seeds.** Use at least 5."
    ]


def test_the_csv_has_the_statistics_in_full(tmp_path: Path) -> None:
    found = results()
    write_tables(found, tmp_path)
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = {(r["method"], r["minus"], r["temperature"]): r for r in csv.DictReader(file)}
    statistics = Statistics(found)
    difference = statistics.difference("t", "a", "c", "0.9")
    assert difference is not None
    row = rows["a", "c", "0.9"]
    assert [float(row[name]) for name in ("effect_size", "p_value", "p_holm")] == pytest.approx(
        [difference.effect, difference.p_value, difference.corrected]
    )
    for key in (("a", "c", "0.9"), ("a", "", "0.9")):
        interval = statistics.interval("t", key[0], key[2], key[1])
        assert (float(rows[key]["bootstrap_low"]), float(rows[key]["bootstrap_high"])) == interval
    assert rows["a", "", "0.9"]["p_value"] == ""

"""Numbers from records: the choice of settings, means with intervals, and paired differences,
against numbers by hand."""

from __future__ import annotations

from math import isnan, sqrt
from typing import Any

import pytest
from scipy import stats

from tests.helpers.comparisons import final, of, trial
from unmask.trainer.comparison.recipe import CompareRecipe
from unmask.trainer.comparison.results import Mean, Results, choose, is_at_edge, tried

TUNING: dict[str, Any] = {"grid": {"rate": [1, 2, 4]}, "seeds": [7, 8]}
TUNED = of(methods=["a"], tuning=TUNING)
# Means over temperatures and seeds: 0.25, 0.375 and 0.3125.
TRIALS = [
    trial("a", 7, 1, 0.0, 0.5),
    trial("a", 8, 1, 0.0, 0.5),
    trial("a", 7, 2, 0.5, 0.5),
    trial("a", 8, 2, 0.25, 0.25),
    trial("a", 7, 4, 0.0, 0.25),
    trial("a", 8, 4, 0.5, 0.5),
]


def chosen(recipe: CompareRecipe, records: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    return {pair: best.settings for pair, best in choose(recipe, tried(recipe, records)).items()}


# --- the choice ---


def test_the_setting_of_the_largest_mean_over_temperatures_and_seeds_is_chosen() -> None:
    assert [t.score for t in tried(TUNED, TRIALS)] == [0.25, 0.375, 0.3125]
    assert tried(TUNED, TRIALS)[1].accuracy == {"0.9": 0.375, "0": 0.375}
    assert chosen(TUNED, TRIALS) == {("t", "a"): {"rate": 2}}
    better = [*TRIALS[:4], trial("a", 7, 4, 0.5, 0.75), TRIALS[5]]
    assert chosen(TUNED, better) == {("t", "a"): {"rate": 4}}


def test_results_on_the_test_split_have_no_part_in_the_choice() -> None:
    splendid = [final("t", "a", seed, 1.0, 1.0, settings={"rate": 1}) for seed in (0, 7, 8)]
    assert chosen(TUNED, [*splendid, *TRIALS]) == {("t", "a"): {"rate": 2}}


def test_of_equal_settings_the_larger_reward_wins_and_then_the_first() -> None:
    def two(first: float, second: float) -> list[dict[str, Any]]:
        return [trial("a", seed, rate, 0.0, 0.0, r) for rate, r in ((1, first), (2, second)) for seed in (7, 8)]

    assert chosen(TUNED, two(0.25, 0.5)) == {("t", "a"): {"rate": 2}}
    assert chosen(TUNED, two(0.5, 0.5)) == {("t", "a"): {"rate": 1}}


def test_a_setting_that_failed_with_a_seed_is_not_chosen() -> None:
    failed = {k: v for k, v in trial("a", 8, 2, 0, 0).items() if k not in ("accuracy", "reward")} | {"failed": "NaN"}
    records = [*TRIALS[:3], failed, *TRIALS[4:]]
    assert chosen(TUNED, records) == {("t", "a"): {"rate": 4}}
    broken = tried(TUNED, records)[1]
    assert (broken.num_seeds, broken.score, broken.failures) == (1, 0.5, ["seed 8: NaN"])
    assert chosen(TUNED, [failed, failed | {"seed": 7}]) == {}
    assert isnan(tried(TUNED, [failed])[0].score)


def test_only_the_grid_and_the_seeds_of_the_recipe_are_looked_at() -> None:
    outside = [trial("a", 9, 1, 1.0, 1.0), trial("a", 7, 3, 1.0, 1.0), trial("gone", 7, 1, 1.0, 1.0)]
    assert chosen(TUNED, [*TRIALS, *outside]) == {("t", "a"): {"rate": 2}}


def test_a_choice_at_the_edge_of_the_grid_is_known_as_that() -> None:
    assert [is_at_edge(TUNED, t) for t in tried(TUNED, TRIALS)] == [True, False, True]
    pair = of(methods=["a"], tuning=TUNING | {"grid": {"rate": [1, 2]}})
    assert not any(is_at_edge(pair, t) for t in tried(pair, TRIALS))


# --- means and differences ---

# Seeds 0, 1, 2 of a are 0.2, 0.4, 0.9 and of b 0.1, 0.5, 0.6: differences 0.1, -0.1, 0.3.
RECORDS = [
    *(final("t", "a", seed, value) for seed, value in enumerate((0.2, 0.4, 0.9))),
    *(final("t", "b", seed, value) for seed, value in enumerate((0.1, 0.5, 0.6))),
]


def test_a_mean_has_students_interval_over_seeds() -> None:
    found = Results(of(), RECORDS).mean("t", "a", "accuracy", "0.9")
    # Deviations -0.3, -0.1, 0.4: variance 0.26 / 2 = 0.13.
    se = sqrt(0.13 / 3)
    assert (found.mean, found.se, found.number) == (pytest.approx(0.5), pytest.approx(se), 3)
    assert found.half == pytest.approx(stats.t.ppf(0.975, 2) * se)


def test_a_single_seed_has_no_interval() -> None:
    found = Mean.of([0.5])
    assert (found.mean, found.number) == (0.5, 1)
    assert isnan(found.half)
    assert isnan(found.se)


def test_a_difference_is_paired_by_seed() -> None:
    found = Results(of(), RECORDS).difference("t", "a", "b", "accuracy", "0.9")
    assert found is not None
    # Mean 0.1, deviations 0, -0.2, 0.2: variance 0.04.
    assert (found.mean, found.se, found.number) == (pytest.approx(0.1), pytest.approx(0.2 / sqrt(3)), 3)
    # Unpaired it would be larger: variances 0.13 and 0.07 add up.
    assert found.se < sqrt((0.13 + 0.07) / 3)


def test_seeds_that_only_one_of_two_has_are_left_out_of_their_difference() -> None:
    results = Results(of(), [*RECORDS[:2], *RECORDS[4:]])  # a: 0 and 1, b: 1 and 2
    found = results.difference("t", "a", "b", "accuracy", "0.9")
    assert found is not None
    assert (found.mean, found.number) == (pytest.approx(-0.1), 1)
    assert Results(of(), [RECORDS[0], RECORDS[4]]).difference("t", "a", "b", "accuracy", "0.9") is None


def test_another_accuracy_gives_another_mean_and_another_difference() -> None:
    before, after = Results(of(), RECORDS), Results(of(), [final("t", "a", 0, 0.3), *RECORDS[1:]])
    for result, mean, difference in ((before, 0.5, 0.1), (after, 0.5 + 0.1 / 3, 0.1 + 0.1 / 3)):
        found = result.difference("t", "a", "b", "accuracy", "0.9")
        assert found is not None
        assert found.mean == pytest.approx(difference)
        assert result.mean("t", "a", "accuracy", "0.9").mean == pytest.approx(mean)


def test_seeds_tasks_and_methods_outside_the_recipe_and_failures_are_left_out() -> None:
    failed = {"stage": "final", "task": "t", "method": "b", "seed": 0, "variant": "v", "failed": "NaN"}
    outside = [final("t", "a", 5, 1.0), final("other", "a", 0, 1.0), final("t", "other", 0, 1.0)]
    results = Results(of(), [*RECORDS[:3], failed, *outside])
    assert results.methods("t") == ["a"]
    assert list(results.runs("t", "a")) == [0, 1, 2]
    assert results.failed == [failed]


def test_the_untrained_model_comes_first_and_methods_as_in_the_recipe() -> None:
    records = [*RECORDS, final("t", "base", 0, 0.1)]
    assert Results(of(methods=["b", "a"]), records).methods("t") == ["base", "b", "a"]


# --- curves ---


def test_a_curve_is_the_mean_over_seeds_at_each_evaluation() -> None:
    curve = Results(of(), RECORDS).curve("t", "a", "0.9")
    assert [(passes, value.mean) for passes, value in curve] == [(0, 0.0), (990_000, pytest.approx(0.5))]
    assert curve[1][1].half == Results(of(), RECORDS).mean("t", "a", "accuracy", "0.9").half
    assert Results(of(), [final("t", "base", 0, 0.5)]).curve("t", "base", "0.9") == []


def test_greedy_accuracy_is_given_for_each_number_of_steps() -> None:
    records = [final("t", "a", seed, 0.0, greedy) for seed, greedy in enumerate((0.25, 0.75))]
    found = Results(of(), records).decoding("t", "a")
    assert [(steps, value.mean, value.number) for steps, value in found] == [(2, 0.125, 2), (8, 0.5, 2)]

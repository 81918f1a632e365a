"""The programs of benchmark/ run at tiny size. What they measure is not looked at: timing belongs in no test."""

from __future__ import annotations

import pytest

from benchmark import lift, speed
from unmask.recipe import PretrainRecipe, load, load_recipe


def test_the_speed_table_has_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    speed.main(["--batch=4", "--selected=2", "--steps=4", "--length=8", "--repeats=1", "--width=16", "--layers=1"])
    table = capsys.readouterr().out
    for row in ("| rollout |", "| old or reference pass |", "| update |", "| whole RL step |", "| peak memory"):
        assert row in table
    assert table.count("| rollout |") == table.count("| update |") == 2, "ours, and the published way's"


def test_a_rise_is_paired_by_seed() -> None:
    # Bases of .1 and .5 and a rise of .2 each: the means are uncertain, the rise is not.
    results = [
        {"greedy base": b, "greedy trained": b + 0.2, "sampled base": b, "sampled trained": b + 0.2} for b in (0.1, 0.5)
    ]
    *means, greedy, sampled = lift.summary(results)
    assert means == ["0.300 ± 2.541", "0.500 ± 2.541"] * 2
    assert greedy == sampled == "+0.200 ± 0.000"


def test_the_rises_of_the_comparison_are_those_of_its_seeds() -> None:
    found = lift.compared("countdown", "EGSPO-CA, all")
    assert sorted(r["seed"] for r in found) == list(range(10))
    assert found != lift.compared("countdown", "EGSPO-CA, step")
    assert load_recipe(lift.RECIPE).model == f"{load(PretrainRecipe, lift.BASE).output_dir}/final"

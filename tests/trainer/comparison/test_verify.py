"""A run that is made again agrees with its record, and a false record is found."""

from __future__ import annotations

import random
from math import inf
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.comparisons import SMALL, final, of, small, written
from tests.helpers.messages import raises
from unmask.core.errors import RunError
from unmask.core.files import read_json_lines
from unmask.trainer.comparison.recipe import CompareRecipe
from unmask.trainer.comparison.run import compare
from unmask.trainer.comparison.verify import Verification, verify


def quiet(_line: str) -> None:
    """Tell nobody."""


def comparison(folder: Path, model: Path) -> CompareRecipe:
    """One tuned method on one task from a model that exists, with two seeds."""
    task = {key: value for key, value in SMALL["tasks"]["sudoku"].items() if not key.startswith("base")}
    tuning = {"grid": {"optim.learning_rate": [1.0e-2, 1.0e-4]}, "seeds": [100], "num_rows": 8, "budget_share": 0.25}
    return small(
        folder,
        "evaluation.curve_points=1",
        tasks={"sudoku": task | {"model": str(model), "decoding_steps": [2]}},
        methods={"m": SMALL["methods"]["entropy"]},
        baselines=[],
        tuning=tuning,
    )


@pytest.mark.slow
def test_a_run_agrees_with_its_record_and_not_with_a_false_one(tiny_model: Path, tmp_path: Path) -> None:
    recipe = comparison(tmp_path, tiny_model)
    compare(recipe, tell=quiet)
    found = verify(recipe, 0, tmp_path / "again", tell=quiet)
    assert found.is_equal
    assert found.recorded["variant"] == found.now["variant"], "the settings that tuning chose are those that run"
    assert found.lines()[-1] == "agrees: all numbers are equal."
    bases = [r for r in read_json_lines(recipe.folder / "cells.jsonl") if r["stage"] == "base"]
    base = next(r["accuracy"]["0"] for r in bases if r["seed"] == found.recorded["seed"])
    assert any(line.startswith(f"  base: at 0 recorded {base:.4f}, now {base:.4f}") for line in found.lines())
    # The negative control: a record whose numbers no run has made, beside others that hardly differ.
    seed, records = found.recorded["seed"], read_json_lines(recipe.folder / "cells.jsonl")
    false = [
        found.recorded | {"seed": s, "accuracy": {t: 0.9 + s / 1000 for t in found.recorded["accuracy"]}}
        for s in range(4)
    ]
    written(recipe.folder, [*(r for r in records if r["stage"] != "final"), *false])
    draw = next(n for n in range(100) if random.Random(n).choice(range(4)) == seed)
    wrong = verify(recipe.model_copy(update={"seeds": (0, 1, 2, 3)}), draw, tmp_path / "again", tell=quiet)
    assert wrong.recorded["seed"] == seed
    assert wrong.now == found.now, "the run is not made a second time"
    assert wrong.lines()[-1].startswith("DISAGREES")


def verification(now: float, **changes: Any) -> Verification:
    return Verification(
        final("t", "a", 0, 0.5, version="1"), final("t", "a", 0, now, **changes), {"0.9": (0.4, 0.6), "0": (0, 1)}
    )


def test_the_verdict_depends_on_the_spread_of_other_seeds() -> None:
    for now, verdict in ((0.5, "agrees"), (0.55, "differs, but not more than seeds differ"), (0.7, "DISAGREES")):
        assert verification(now).lines()[-1].startswith(verdict)
    unknown = Verification(final("t", "a", 0, 0.5), final("t", "a", 0, 0.7), {t: (-inf, inf) for t in ("0.9", "0")})
    assert unknown.lines()[-1].startswith("differs: there are too few other seeds")
    assert "inf" not in "".join(unknown.lines())
    assert any("settings of this run have changed" in line for line in verification(0.5, variant="w").lines())
    assert not any("settings of this run have changed" in line for line in verification(0.5).lines())


def test_the_draw_follows_the_seed_and_the_selection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = of(tasks=("t", "u"), output_dir=str(tmp_path / "c"))
    records = [final(t, m, s, 0.5 + s / 10) for t in ("t", "u") for m in ("a", "b") for s in (0, 1, 2)]
    written(tmp_path / "c", records)
    drawn: list[tuple[Any, ...]] = []

    def run(alone: CompareRecipe, **_options: Any) -> None:
        (pair,) = alone.pairs()
        drawn.append((*pair, *alone.seeds))
        alone.folder.parent.mkdir(exist_ok=True)
        written(alone.folder, [final(*pair, alone.seeds[0], 0.5)])

    monkeypatch.setattr("unmask.trainer.comparison.verify.compare", run)
    found = [verify(recipe, seed, tmp_path / "again", tell=quiet) for seed in (1, 1, *range(2, 12))]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 5
    low, high = found[0].expected["0.9"]
    others = [0.5 + s / 10 for s in (0, 1, 2) if s != drawn[0][2]]
    # √3 times as wide as the interval of the mean of two: t = 12.706, s / √2.
    assert high - low == pytest.approx(2 * 12.7062 * abs(others[0] - others[1]) / 2 * 3**0.5, rel=1e-4)
    drawn.clear()
    for seed in range(6):
        verify(of(methods=("b",), seeds=[2], output_dir=str(tmp_path / "c")), seed, tmp_path / "again", tell=quiet)
    assert set(drawn) == {("t", "b", 2)}
    with raises(RunError, "no finished run"):
        verify(of(seeds=[9], output_dir=str(tmp_path / "c")), 0, tmp_path / "again", tell=quiet)

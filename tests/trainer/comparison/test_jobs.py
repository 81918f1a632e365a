"""One job: what it measures, what it reads from a run, and what its budget buys."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.comparisons import SMALL, small
from unmask.evaluation.evaluate import evaluate
from unmask.models import load_model
from unmask.recipes.load import make_sampler
from unmask.rewards.scorer import Scorer
from unmask.sampling.engine import LocalEngine
from unmask.trainer.comparison.jobs import _curve
from unmask.trainer.comparison.outcomes import solved_shares
from unmask.trainer.comparison.plan import Plan


@pytest.mark.slow
def test_what_a_cell_measures_is_what_evaluate_finds_on_the_rows_of_its_seed(tiny_model: Path, tmp_path: Path) -> None:
    task = {key: value for key, value in SMALL["tasks"]["sudoku"].items() if not key.startswith("base")}
    recipe = small(tmp_path, tasks={"sudoku": task | {"model": str(tiny_model)}})
    cell = Plan(recipe).bases()[1]
    assert (cell.seed, cell.measure.num_rows) == (1, 16)
    facts = cell.run()
    engine = LocalEngine(load_model(tiny_model))
    sudoku = cell.recipe.task

    def by_hand(temperature: float, steps: int, seed: int) -> float:
        sampler = make_sampler(max_completion_length=16, num_steps=steps, temperature=temperature)
        rows, scorer = sudoku.rows("test", 16, seed), Scorer(sudoku.rewards())
        return evaluate(engine, sudoku, scorer, rows, sampler, seed=seed).reward

    assert facts["reward"] == {"0": by_hand(0.0, 4, 1), "0.9": by_hand(0.9, 4, 1)}
    assert facts["decoding_reward"] == {str(steps): by_hand(0.0, steps, 1) for steps in (2, 4, 8)}
    outcomes = facts["outcomes"]
    assert set(outcomes["accuracy"]) == {"0", "0.9"}
    assert set(outcomes["decoding_accuracy"]) == {"2", "4", "8"}
    for kind, by_name in outcomes.items():
        for name, entry in by_name.items():
            assert (entry["rows"], entry["samples"]) == (16, 1)
            assert float(solved_shares(entry).mean()) == facts[kind][name]
    # Other rows and draws would have given other numbers.
    assert facts["reward"]["0.9"] != by_hand(0.9, 4, 0)


@pytest.mark.slow
def test_several_samples_of_an_example_give_pass_at_k_at_temperatures_above_zero(
    tiny_model: Path, tmp_path: Path
) -> None:
    task = {key: value for key, value in SMALL["tasks"]["sudoku"].items() if not key.startswith("base")}
    task |= {"model": str(tiny_model), "decoding_steps": []}
    recipe = small(tmp_path, "evaluation.samples=3", tasks={"sudoku": task})
    cell = Plan(recipe).bases()[0]
    facts = cell.run()
    sampler = make_sampler(max_completion_length=16, num_steps=4, temperature=0.9)
    sudoku = cell.recipe.task
    rows, scorer = sudoku.rows("test", 16, 0), Scorer(sudoku.rewards())
    found = evaluate(LocalEngine(load_model(tiny_model)), sudoku, scorer, rows, sampler, seed=0, samples=3)
    assert facts["pass_at"] == {"0.9": {str(k): estimate[0] for k, estimate in found.pass_at.items()}}
    assert set(facts["pass_at"]["0.9"]) == {"1", "2", "3"}
    # The outcomes are those of the same completions: pass@1 and pass@3 follow from them.
    entry = facts["outcomes"]["accuracy"]["0.9"]
    assert (entry["rows"], entry["samples"]) == (16, 3)
    assert solved_shares(entry).tolist() == [
        sum(item["solved"] for item in found.items[i : i + 3]) / 3 for i in range(0, 48, 3)
    ]
    assert facts["reward"]["0.9"] == found.reward


def test_a_single_sample_leaves_the_identity_of_older_results_as_it_was(tmp_path: Path) -> None:
    one, several = (
        Plan(small(tmp_path, f"evaluation.samples={number}", name=f"s{number}")).bases()[0] for number in (1, 2)
    )
    assert "samples" not in one.measure.facts()
    assert several.measure.facts()["samples"] == 2
    assert one.variant != several.variant


def test_a_curve_is_accuracies_against_what_was_spent_until_then() -> None:
    lines = [
        {"step": 0, "eval/test@0/accuracy": 0.25, "eval/test@0.9/accuracy": 0.125, "eval/test@0/low": 0.1},
        {"step": 1, "compute/token_passes": 100.0, "compute/reward_calls": 8.0},
        {
            "step": 2,
            "compute/token_passes": 50.0,
            "compute/reward_calls": 4.0,
            "eval/test@0/accuracy": 0.5,
            "eval/validation@0/accuracy": 1.0,
        },
    ]
    assert _curve(lines, "test") == [
        {"step": 0, "token_passes": 0, "reward_calls": 0, "accuracy": {"0": 0.25, "0.9": 0.125}},
        {"step": 2, "token_passes": 150, "reward_calls": 12, "accuracy": {"0": 0.5}},
    ]

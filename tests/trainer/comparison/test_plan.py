"""From a recipe to jobs: what is shared, in which order, on which rows, and what makes a job
another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.comparisons import SMALL, small
from unmask.trainer.comparison.plan import Plan
from unmask.trainer.comparison.recipe import CompareRecipe

SUDOKU = SMALL["tasks"]["sudoku"]
SPARSE = SUDOKU | {"overrides": SUDOKU["overrides"] | {"task.sparse": True}}


def finals(recipe: CompareRecipe, point: dict[str, Any] | None = None) -> dict[tuple[str, str, int], str]:
    """The variant of each final cell."""
    cells = Plan(recipe).finals({pair: point or {} for pair in recipe.pairs()})
    return {(cell.task, cell.method, cell.seed): cell.variant for cell in cells}


@pytest.mark.slow
def test_tasks_with_the_same_base_share_it_and_others_do_not(tmp_path: Path) -> None:
    shared = Plan(small(tmp_path, "tuning=", tasks={"dense": SUDOKU, "sparse": SPARSE}))
    assert [job.seed for job in shared.pretrainings()] == [0, 1]
    assert shared.base_of("dense", 1) == shared.base_of("sparse", 1) == shared.pretrainings()[1]
    models = {cell.task: cell.recipe.model for cell in shared.bases() if cell.seed == 1}
    assert models == dict.fromkeys(("dense", "sparse"), str(shared.pretrainings()[1].folder / "final"))
    longer = SPARSE | {"base_overrides": SUDOKU["base_overrides"] | {"max_steps": 5}}
    apart = Plan(small(tmp_path, "tuning=", tasks={"dense": SUDOKU, "sparse": longer}))
    assert [(job.seed, job.recipe.max_steps) for job in apart.pretrainings()] == [(0, 4), (0, 5), (1, 4), (1, 5)]
    assert len({job.folder for job in apart.pretrainings()}) == 4


def test_a_task_with_a_model_pretrains_nothing_and_starts_from_it(tmp_path: Path) -> None:
    task = {key: value for key, value in SUDOKU.items() if not key.startswith("base")} | {"model": "somewhere"}
    plan = Plan(small(tmp_path, tasks={"sudoku": task}))
    assert plan.pretrainings() == []
    assert plan.base_of("sudoku", 0) is None
    assert {cell.recipe.model for cell in [*plan.bases(), *plan.trials()]} == {"somewhere"}


@pytest.mark.slow
def test_the_order_is_seed_by_seed(tmp_path: Path) -> None:
    recipe = small(tmp_path, tasks={"dense": SUDOKU, "sparse": SPARSE})
    cells = Plan(recipe).finals({pair: {} for pair in recipe.pairs()})
    assert [(cell.seed, cell.task, cell.method) for cell in cells] == [
        (seed, task, method) for seed in (0, 1) for task in ("dense", "sparse") for method in ("entropy", "late steps")
    ]
    assert [job.seed for job in Plan(recipe).pretrainings()] == [100, 0, 1]


def test_trials_are_on_validation_rows_with_seeds_and_a_budget_of_their_own(tmp_path: Path) -> None:
    plan = Plan(small(tmp_path))
    trials = plan.trials()
    assert [(t.method, t.seed, t.settings["optim.learning_rate"]) for t in trials] == [
        (method, 100, rate) for method in ("entropy", "late steps") for rate in (0.01, 0.0001)
    ]
    assert {(t.measure.split, t.measure.num_rows, t.budget) for t in trials} == {("validation", 16, 3000)}
    assert [t.recipe.optim.learning_rate for t in trials] == [0.01, 0.0001] * 2
    (first, *_) = plan.finals({("sudoku", "entropy"): trials[1].settings})
    assert (first.measure.split, first.budget, first.recipe.optim.learning_rate) == ("test", 6_000, 0.0001)


def test_a_grid_of_one_point_needs_no_trials_and_no_base_for_them(tmp_path: Path) -> None:
    for override in ("tuning=", "tuning.grid={optim.learning_rate: [1.0e-3]}", "tuning.grid={}"):
        plan = Plan(small(tmp_path, override))
        assert plan.trials() == []
        assert [job.seed for job in plan.pretrainings()] == [0, 1]


@pytest.mark.parametrize(
    "override",
    [
        "tasks.sudoku.budget=20000",
        "tasks.sudoku.overrides.num_prompts=4",
        "tasks.sudoku.overrides.task.sparse=true",
        "tasks.sudoku.base_overrides.max_steps=5",
        "tasks.sudoku.decoding_steps=[4]",
        "methods.entropy.settings.method.epsilon=0.3",
        "methods.entropy.by_task.sudoku.optim.learning_rate=0.1",
        "evaluation.num_rows=8",
        "evaluation.curve_points=3",
        "evaluation.temperatures=[0.0]",
    ],
)
@pytest.mark.slow
def test_whatever_a_result_depends_on_makes_another_cell(tmp_path: Path, override: str) -> None:
    before, after = finals(small(tmp_path)), finals(small(tmp_path, override))
    assert all(before[key] != after[key] for key in before if key[1] == "entropy")
    if override.startswith("methods."):
        assert all(before[key] == after[key] for key in before if key[1] != "entropy")


@pytest.mark.parametrize(
    "override",
    [
        "seeds=[0, 1, 2]",
        "baselines=[]",
        "output_dir=elsewhere",
        "tuning.num_rows=32",
        "methods.new={settings: {method.type: egspo, method.num_selected: 1}, tune: {method.beta: [0.1, 0.2]}}",
        "tasks.sudoku.overrides.log_rollouts_steps=5",
        "tasks.sudoku.overrides.save_steps=1",
        # Its default: an option that did not exist when a result was made stands there too.
        "methods.entropy.settings.method.epsilon=0.2",
        "tasks.sudoku.overrides.task.sparse=false",
    ],
)
@pytest.mark.slow
def test_what_a_result_does_not_depend_on_leaves_the_cell_what_it_is(tmp_path: Path, override: str) -> None:
    before, after = finals(small(tmp_path)), finals(small(tmp_path, override))
    assert before == {key: variant for key, variant in after.items() if key in before}


def test_two_methods_that_differ_in_their_type_alone_are_not_one(tmp_path: Path) -> None:
    settings = {"method.num_selected": 1, "method.beta": 0.0}
    methods = {name: {"settings": {"method.type": name} | settings} for name in ("egspo", "egspo_sa")}
    assert len(set(finals(small(tmp_path, "seeds=[0]", methods=methods, baselines=[])).values())) == 2


def test_the_variant_is_the_same_for_all_seeds_and_the_key_is_not(tmp_path: Path) -> None:
    cells = Plan(small(tmp_path)).bases()
    assert len({cell.variant for cell in cells}) == 1
    assert len({cell.key for cell in cells}) == len({cell.folder for cell in cells}) == 2

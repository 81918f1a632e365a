"""Selections from a comparison, and recipes that are nearly right."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.comparisons import SMALL, small
from tests.helpers.messages import raises
from unmask.core.errors import ConfigError, RunError
from unmask.recipes.load import dump
from unmask.trainer.comparison.load import load_compare
from unmask.trainer.comparison.recipe import CompareRecipe
from unmask.trainer.comparison.run import _refuse_changed


def two_by_two(folder: Path, *overrides: str) -> CompareRecipe:
    tasks = {"one": SMALL["tasks"]["sudoku"], "two": SMALL["tasks"]["sudoku"]}
    methods = {
        "both": {"by_task": {"one": {"num_prompts": 4}, "two": {"num_prompts": 6}}},
        "second": {"tasks": ["two"]},
    }
    return small(folder, "tuning=", *overrides, tasks=tasks, methods=methods, baselines=["both", "second"])


@pytest.mark.parametrize("override", ["tasks=[two]", "tasks=two", "tasks.one="])
def test_one_task_can_be_picked(tmp_path: Path, override: str) -> None:
    recipe = two_by_two(tmp_path, override)
    assert list(recipe.pairs()) == [("two", "both"), ("two", "second")]
    assert recipe.methods["both"].by_task == {"two": {"num_prompts": 6}}
    assert recipe.baselines == ("both", "second")


def test_a_method_that_has_no_task_left_is_left_out_too(tmp_path: Path) -> None:
    recipe = two_by_two(tmp_path, "tasks=[one]", "seeds=1")
    assert list(recipe.pairs()) == [("one", "both")]
    assert (list(recipe.methods), recipe.baselines, recipe.seeds) == (["both"], ("both",), (1,))


def test_one_method_can_be_picked_and_a_pick_can_be_changed(tmp_path: Path) -> None:
    recipe = two_by_two(tmp_path, "methods=[second]", "tasks.two.budget=7")
    assert list(recipe.pairs()) == [("two", "second")]
    assert (recipe.baselines, recipe.tasks["two"].budget) == (("second",), 7)


def test_an_unknown_selection_lists_the_available_names(tmp_path: Path) -> None:
    for override, words in (
        ("tasks=[three]", ['"three"', "one, two"]),
        ("methods=secnd", ['"secnd"', 'Did you mean "second"?', "both, second"]),
    ):
        with raises(ConfigError, *words):
            two_by_two(tmp_path, override)


def test_one_task_method_and_seed_of_a_shipped_comparison_can_be_picked() -> None:
    recipe = load_compare("paper-tiny", ["tasks=sudoku", "methods=[egspo_sa]", "seeds=3"])
    assert (list(recipe.pairs()), recipe.seeds) == ([("sudoku", "EGSPO-SA")], (3,))


def test_a_folder_of_the_whole_comparison_takes_a_part_of_it_and_the_other_way_round(tmp_path: Path) -> None:
    whole, part = two_by_two(tmp_path), two_by_two(tmp_path, "tasks=[two]", "methods=[both]")
    (tmp_path / "recipe.yaml").write_text(dump(whole))
    _refuse_changed(tmp_path, part)
    (tmp_path / "recipe.yaml").write_text(dump(part))
    _refuse_changed(tmp_path, whole)
    with raises(RunError, "methods.both.by_task.two.num_prompts: 6 -> 8"):
        _refuse_changed(tmp_path, two_by_two(tmp_path, "methods.both.by_task.two.num_prompts=8"))


def test_a_grid_of_one_value_needs_no_list(tmp_path: Path) -> None:
    recipe = small(tmp_path, "tuning.grid={optim.learning_rate: 0.5}")
    assert recipe.points("entropy") == [{"optim.learning_rate": 0.5}]


def test_recipes_and_tasks_that_are_nearly_right_are_answered() -> None:
    with raises(ConfigError, "unmask train sudoku-tiny"):
        load_compare("sudoku-tiny")
    with raises(ConfigError, "unmask pretrain sudoku-tiny-base"):
        load_compare("sudoku-tiny-base")
    with raises(ConfigError, "tasks.sudoko.recipe", "tasks.sudoku"):
        load_compare("paper-tiny", ["tasks.sudoko.budget=3"])

"""What is compared: how a run's recipe follows from it, and one clear sentence for each mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.comparisons import SMALL, small
from tests.helpers.messages import raises
from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError
from unmask.methods.egspo import EGSPO
from unmask.recipes.load import dump, shipped_recipes
from unmask.trainer.comparison.load import load_compare
from unmask.trainer.comparison.recipe import CompareRecipe, named
from unmask.trainer.comparison.resolve import base_recipe, decoded, run_recipe


def refusal(folder: Path, *overrides: str, **changes: Any) -> str:
    """The message with which a comparison is refused."""
    with pytest.raises(ConfigError) as caught:
        small(folder, *overrides, **changes)
    return str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped_recipes("compare"))
def test_every_shipped_comparison_is_valid_and_survives_a_dump(name: str, tmp_path: Path) -> None:
    recipe = load_compare(name)
    assert recipe.output_dir == f"runs/compare/{name}"
    assert recipe.tuning is None or not set(recipe.tuning.seeds) & set(recipe.seeds)
    (tmp_path / "copy.yaml").write_text(dump(recipe))
    assert load_compare(str(tmp_path / "copy.yaml")) == recipe


def test_shipped_comparisons_are_no_recipes_of_single_runs() -> None:
    assert "paper-tiny" in shipped_recipes("compare")
    assert "paper-tiny" not in shipped_recipes()


# --- a run's recipe ---


def test_a_method_of_its_own_type_has_none_of_the_options_of_the_recipes_method(tmp_path: Path) -> None:
    # sudoku-tiny sets num_selected 1 and beta 0 for its egspo_sa.
    methods = {"whole": {"settings": {"method.type": "egspo"}}, "changed": {"settings": {"method.epsilon": 0.3}}}
    recipe = small(tmp_path, "tuning=", "baselines=[]", "tasks.sudoku.overrides.sampler.num_steps=8", methods=methods)
    assert run_recipe(recipe, "sudoku", "whole", {}, 0).method == EGSPO()
    changed = run_recipe(recipe, "sudoku", "changed", {}, 0).method
    assert (changed.type, changed.model_dump()["num_selected"]) == ("egspo_sa", 1)
    assert (changed.model_dump()["beta"], changed.model_dump()["epsilon"]) == (0.0, 0.3)


def test_the_grid_point_wins_over_the_methods_task_over_the_method_over_the_task(tmp_path: Path) -> None:
    overrides = SMALL["tasks"]["sudoku"]["overrides"] | {
        "max_steps": 11,
        "num_prompts": 11,
        "seed": 11,
        "num_minibatches": 11,
    }
    method = {
        "settings": {"num_prompts": 12, "num_iterations": 12, "num_minibatches": 12},
        "by_task": {"sudoku": {"num_iterations": 13, "num_minibatches": 13}},
    }
    recipe = small(
        tmp_path,
        "tuning=",
        tasks={"sudoku": SMALL["tasks"]["sudoku"] | {"overrides": overrides}},
        methods={"m": method},
        baselines=[],
    )
    run = run_recipe(recipe, "sudoku", "m", {"num_minibatches": 14}, 15)
    assert (run.max_steps, run.num_prompts, run.num_iterations, run.num_minibatches) == (11, 12, 13, 14)
    assert run.seed == 15


def test_a_tree_of_settings_says_the_same_as_dotted_keys(tmp_path: Path) -> None:
    tree = small(tmp_path, "methods.entropy.settings.method.epsilon=0.3", "tuning.grid.optim.learning_rate=[1.0]")
    assert tree.methods["entropy"].settings["method.epsilon"] == 0.3
    assert tree.methods["late steps"].settings["method.step_choice"] == "last_k"
    # An override comes after the file, whichever way each is written.
    assert tree.points("entropy") == [{"optim.learning_rate": 1.0}]


def test_a_base_is_that_of_its_recipe_with_the_tasks_changes_and_the_seed(tmp_path: Path) -> None:
    base = base_recipe(small(tmp_path), "sudoku", 7)
    assert (base.max_steps, base.tiny.width, base.seed, base.noise_share) == (4, 16, 7, 0.9)


def test_the_grid_is_every_value_with_every_other(tmp_path: Path) -> None:
    recipe = small(tmp_path, "tuning.grid={optim.learning_rate: [1.0, 2.0], method.epsilon: [3.0, 4.0]}")
    rates = [(p["optim.learning_rate"], p["method.epsilon"]) for p in recipe.points("entropy")]
    assert rates == [(1, 3), (1, 4), (2, 3), (2, 4)]
    assert small(tmp_path, "tuning=").points("entropy") == [{}]


def test_a_method_may_have_a_grid_of_its_own_if_it_is_as_large(tmp_path: Path) -> None:
    recipe = small(tmp_path, "methods.entropy.tune={method.epsilon: [0.1, 0.3]}")
    assert recipe.points("entropy") == [{"method.epsilon": 0.1}, {"method.epsilon": 0.3}]
    assert recipe.points("late steps")[0] == {"optim.learning_rate": 0.01}
    assert "different sizes (entropy 3, late steps 2)" in refusal(
        tmp_path, "methods.entropy.tune={method.epsilon: [0.1, 0.2, 0.3]}"
    )


def test_a_method_is_run_on_the_tasks_that_it_names(tmp_path: Path) -> None:
    tasks = {"one": SMALL["tasks"]["sudoku"], "two": SMALL["tasks"]["sudoku"]}
    recipe = small(tmp_path, "methods.entropy.tasks=[two]", tasks=tasks)
    assert list(recipe.pairs()) == [("one", "late steps"), ("two", "entropy"), ("two", "late steps")]


def test_a_sampler_keeps_all_but_its_steps_and_temperature() -> None:
    sampler = SamplerConfig(max_completion_length=8, num_steps=4, block_length=4, order="random", temperature=0.9)
    changed = decoded(sampler, 8)
    assert (changed.steps, changed.temperature) == (8, 0.0)
    assert changed.model_copy(update={"num_steps": 4, "temperature": 0.9}) == sampler


def test_settings_are_named_by_their_last_word() -> None:
    assert named({"optim.learning_rate": 1e-4, "method.num_selected": 2}) == "learning_rate 0.0001, num_selected 2"


# --- mistakes ---


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tasks.sudoku.bugdet=3"], 'tasks.sudoku has no setting "bugdet". Did you mean "budget"?'),
        (["methods.entropy.setings={}"], 'methods.entropy has no setting "setings". Did you mean "settings"?'),
        (["evaluation.rows=3"], 'evaluation has no setting "rows". Did you mean "num_rows"?'),
        (["tuning.budget=3"], 'tuning has no setting "budget".'),
        (["seed=3"], 'unknown key "seed". Did you mean "seeds"?'),
        (["tasks.sudoku.budget=0"], "tasks.sudoku.budget = 0: input should be greater than or equal to 1."),
        (["tasks.sudoku.base="], "tasks.sudoku: neither base nor model is set. Set base to pretrain"),
        (["tasks.sudoku.model=m"], "tasks.sudoku: base and model are both set. Set base to pretrain"),
        (["baselines=[entropi]"], 'unknown method in baselines "entropi". Did you mean "entropy"?'),
        (["methods.entropy.tasks=[suduko]"], 'unknown task in methods.entropy "suduko". Did you mean "sudoku"?'),
        (["methods.entropy.by_task.suduko.seed=1"], 'unknown task in methods.entropy "suduko". Did you mean "sudoku"?'),
        (["methods.base={}"], 'a method has the label "base", which the untrained model has. Use another label.'),
        (["seeds=[1, 2, 1]"], "seeds = [1, 2, 1] contains a seed twice. Remove one of them."),
        (["tuning.seeds=[3, 3]"], "tuning.seeds = [3, 3] contains a seed twice."),
        (["tuning.budget_share=1.5"], "tuning.budget_share = 1.5: input should be less than or equal to 1."),
        (
            ["tasks.sudoku.recipe=sudoku"],
            'method "entropy" on task "sudoku": unknown recipe "sudoku". Did you mean "sudoku-tiny"?',
        ),
        (
            ["tasks.sudoku.recipe=sudoku-tiny-base"],
            'method "entropy" on task "sudoku": sudoku-tiny-base is a recipe for the other command',
        ),
        (["tasks.sudoku.base=sudoku-tiny"], "tasks.sudoku.base: sudoku-tiny is a recipe for the other command"),
        (
            ["methods.late steps.settings.method.num_select=2"],
            'method "late steps" on task "sudoku": method has no setting "num_select". Did you mean "num_selected"?',
        ),
        (["tuning.grid={optim.lr: [1.0, 2.0]}"], 'method "entropy" on task "sudoku": optim has no setting "lr".'),
        (["tasks.sudoku.overrides={seed: 1, seed.x: 1}"], 'method "entropy" on task "sudoku": seed is a single value'),
        (["tasks.sudoku.base_overrides.width=3"], 'tasks.sudoku.base: unknown key "width".'),
        (
            ["tasks.sudoku.decoding_steps=[4, 17]"],
            'method "entropy" on task "sudoku": num_steps = 17 is more than max_completion_length = 16',
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_reported_with_its_location_and_a_remedy(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    assert refusal(tmp_path, *overrides).startswith(message)


def test_a_recipe_of_a_single_run_names_its_command(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"model": "m", "method": {"type": "egspo"}}))
    with raises(ConfigError, str(path), "unmask train"):
        load_compare(str(path))
    with raises(ConfigError, '"paper-tinny"', '"paper-tiny"'):
        load_compare("paper-tinny")


def test_a_comparison_of_nothing_is_refused(tmp_path: Path) -> None:
    for key in ("tasks", "methods"):
        assert refusal(tmp_path, **{key: {}}).startswith(f"{key} = {{}}: ")
    assert isinstance(small(tmp_path), CompareRecipe)

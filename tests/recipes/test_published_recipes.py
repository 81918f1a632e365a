"""The papers' settings as recipes: each is valid, says where every value is from, and holds the
values that are known."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.helpers.messages import raises
from unmask.core.errors import ConfigError
from unmask.recipes.load import COLLECTIONS, dump, find_recipe, load_recipe, shipped_recipes

PUBLISHED = shipped_recipes("published")
HUB_IDS = {"GSAI-ML/LLaDA-8B-Instruct", "Dream-org/Dream-v0-Instruct-7B"}
ROWS = {
    ("egspo", "llada"): "sudoku countdown gsm8k math code",
    ("egspo", "dream"): "sudoku countdown gsm8k math",
    ("egspo-sa", "llada"): "sudoku countdown gsm8k math code",
    ("egspo-sa", "dream"): "sudoku countdown gsm8k math",
    ("espo", "llada"): "sudoku countdown gsm8k math code",
    ("espo", "dream"): "sudoku countdown gsm8k math",
    ("agrpo", "llada"): "sudoku countdown gsm8k math",
    ("bgpo", "llada"): "sudoku countdown math code",
    ("diffu-grpo", "llada"): "sudoku countdown gsm8k math code",
}


def unexplained(text: str) -> list[str]:
    """Lines that set a value and have no comment, neither behind them nor above."""
    lines = text.splitlines()
    return [
        line
        for above, line in zip(["", *lines], lines, strict=False)
        if re.match(r" *\w+: *\S", line)
        and "#" not in line
        and not above.lstrip().startswith("#")
        and not re.match(r"  type: ", line)
        and not (line.startswith("reward_weights") and above.startswith("reward_funcs"))
    ]


@pytest.mark.parametrize("name", [f"{c}/{n}" for c in COLLECTIONS for n in shipped_recipes(c)])
def test_a_recipe_of_a_collection_is_valid_names_a_hub_id_and_survives_a_dump(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.model in HUB_IDS
    assert f"model={'models/'}" in find_recipe(name).read_text(), "it says how to have the model"
    (tmp_path / "copy.yaml").write_text(dump(recipe))
    assert load_recipe(str(tmp_path / "copy.yaml")) == recipe


def test_there_is_a_recipe_for_each_published_row_and_no_other() -> None:
    expected = {f"{m}-{model}-{task}" for (m, model), tasks in ROWS.items() for task in tasks.split()}
    assert set(PUBLISHED) == expected


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_value_of_a_published_recipe_says_where_it_is_from(name: str) -> None:
    assert unexplained(PUBLISHED[name].read_text()) == []


def test_a_value_without_a_source_is_noticed() -> None:
    assert unexplained("a: 1  # code\n# above\nb: 2\nc: 3\noptim:\n  d: 4\n") == ["c: 3", "  d: 4"]


@pytest.mark.parametrize("name", [n for n in PUBLISHED if n.startswith("egspo")])
def test_egspo_rows_have_the_numbers_of_the_release(name: str) -> None:
    recipe = load_recipe(name)
    method = recipe.method.model_dump()
    assert (method["num_selected"], method["epsilon"], method["epsilon_high"], method["beta"]) == (8, 0.2, 0.5, 0.04)
    assert method["stepwise_weight"] == (0.5 if method["type"] == "egspo_sa" else 0.0)
    assert recipe.num_prompts * recipe.num_generations == 48, "8 GPUs x 6"
    views = 48 * method["num_selected"]
    assert views / recipe.num_minibatches == 96, "accumulation 2 over the slots of 48 completions"
    assert recipe.optim.learning_rate == 3e-5
    assert recipe.lora
    assert (recipe.lora.r, recipe.lora.alpha, recipe.lora.quantize) == (128, 64, "4bit")


@pytest.mark.parametrize(
    ("name", "completions", "iterations", "views"),
    [
        ("espo-llada-sudoku", 96, 8, 2),
        ("espo-llada-math", 256, 8, 2),
        ("espo-llada-code", 160, 8, 2),
        ("agrpo-llada-gsm8k", 128, 1, 24),
        ("bgpo-llada-sudoku", 128, 1, 32),
        ("bgpo-llada-math", 128, 1, 16),
        ("diffu-grpo-llada-gsm8k", 96, 12, None),
        ("diffu-grpo-llada-sudoku", 96, 8, None),
    ],
)
def test_the_others_have_their_papers_batches(name: str, completions: int, iterations: int, views: int | None) -> None:
    recipe = load_recipe(name)
    assert recipe.num_prompts * recipe.num_generations == completions
    assert recipe.num_iterations == iterations
    method = recipe.method.model_dump()
    assert views in (None, method.get("num_samples", method.get("mc_samples")))


def test_a_recipe_is_found_with_and_without_its_collection() -> None:
    assert find_recipe("published/egspo-sa-llada-sudoku") == find_recipe("egspo-sa-llada-sudoku")
    assert yaml.safe_load(find_recipe("egspo-sa-llada-24gb").read_text())["lora"]["quantize"] == "4bit"


def test_a_misspelt_one_gets_the_nearest_name_and_where_all_are_listed() -> None:
    with raises(ConfigError, "egspo-sa-llada-sudoku", "unmask recipes"):
        find_recipe("egspo-sa-lada-sudoku")

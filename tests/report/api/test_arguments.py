"""One recipe out of the arguments of `Trainer`: defaults, names of other libraries, sections, rows
and models."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.messages import raises
from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError
from unmask.methods.diffu_grpo import DiffuGRPO
from unmask.models import Policy, TinyConfig, char_tokenizer, tiny_denoiser
from unmask.recipes.load import load_recipe
from unmask.recipes.schema import TrainRecipe
from unmask.report.api.arguments import check_names, recipe_of

ROWS = [{"prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(9)]


def resolved(**settings: Any) -> TrainRecipe:
    return recipe_of(None, settings, model="m", train_dataset=ROWS)


def test_without_a_recipe_every_setting_but_the_method_has_its_default() -> None:
    given = resolved(seed=3)
    assert given.method.type == "egspo"
    assert given == TrainRecipe(model="m", method={"type": "egspo"}, task=given.task, seed=3)


@pytest.mark.parametrize(
    ("name", "value", "section", "key"),
    [
        ("learning_rate", 1e-4, "optim", "learning_rate"),
        ("lr", 1e-4, "optim", "learning_rate"),
        ("weight_decay", 0.1, "optim", "weight_decay"),
        ("temperature", 0.5, "sampler", "temperature"),
        ("max_completion_length", 32, "sampler", "max_completion_length"),
        ("max_new_tokens", 32, "sampler", "max_completion_length"),
        ("beta", 0.1, "method", "beta"),
        ("epsilon", 0.3, "method", "epsilon"),
        ("eval_steps", 7, "evaluation", "eval_steps"),
        ("prompt_column", "prompt", "task", "prompt_column"),
    ],
)
def test_a_setting_has_the_name_that_trl_gives_it(name: str, value: object, section: str, key: str) -> None:
    assert getattr(getattr(resolved(**{name: value}), section), key) == value


def test_sections_dotted_keys_and_names_of_methods_are_settings_too() -> None:
    settings = {"sampler": {"num_steps": 16}, "optim.learning_rate": 1e-4, "num_generations": 4, "max_steps": 2}
    given = resolved(method="diffu_grpo", **settings)
    assert (given.method.type, given.sampler.steps, given.num_generations) == ("diffu_grpo", 16, 4)
    # A section changes only the keys that it holds.
    assert given.sampler.temperature == 0.9
    assert resolved(method=DiffuGRPO(beta=0.5)).method == DiffuGRPO(beta=0.5)


def test_a_recipe_keeps_what_no_argument_changes() -> None:
    base = load_recipe("sudoku-tiny")
    given = recipe_of(base, {"learning_rate": 1e-5}, model="mine")
    assert given == load_recipe(base, {"model": "mine", "optim.learning_rate": 1e-5})


def test_rows_replace_the_task_and_keep_the_options_of_a_data_set() -> None:
    own = recipe_of(
        {**base(), "task": {"type": "dataset", "path": "a.csv", "prompt_column": "answer"}}, {}, train_dataset=ROWS
    )
    assert own.task.model_dump()["prompt_column"] == "answer"
    assert own.task.rows("train", 1)[0]["prompt"] in [row["answer"] for row in ROWS]
    other = recipe_of("sudoku-tiny", {}, train_dataset=ROWS, eval_dataset=[{"prompt": "7?", "answer": "7"}])
    assert other.task.type == "dataset"
    assert [row["prompt"] for row in other.task.rows("test", 5)] == ["7?"]


def base() -> dict[str, Any]:
    return load_recipe("sudoku-tiny").model_dump(mode="json")


def test_a_completion_has_as_many_tokens_as_a_given_model_has_room_for() -> None:
    tokenizer = char_tokenizer("0123456789+=")
    policy = Policy(tiny_denoiser(TinyConfig(num_layers=1, width=16, max_length=40), tokenizer, seed=0), tokenizer)
    settings = {"model": "written/later"}
    # The longest prompt has 4 tokens.
    assert recipe_of(None, settings, model=policy, train_dataset=ROWS).sampler.max_completion_length == 36
    fixed = recipe_of(None, settings | {"max_completion_length": 16}, model=policy, train_dataset=ROWS)
    assert fixed.sampler.max_completion_length == 16


def test_the_default_method_selects_no_more_steps_than_a_short_completion_has() -> None:
    def selected(**settings: Any) -> int:
        return int(resolved(**settings).method.model_dump()["num_selected"])

    assert (selected(), selected(max_completion_length=16), selected(max_completion_length=6)) == (8, 8, 3)
    assert selected(method="egspo_sa", max_completion_length=6) == 3
    with raises(ConfigError, "num_selected = 5", "3 denoising steps"):
        resolved(max_completion_length=6, num_selected=5)
    tokenizer = char_tokenizer("0123456789+=")
    policy = Policy(tiny_denoiser(TinyConfig(num_layers=1, width=16, max_length=14), tokenizer, seed=0), tokenizer)
    fitted = recipe_of(None, {"model": "written/later"}, model=policy, train_dataset=ROWS)
    assert (fitted.sampler.max_completion_length, fitted.method.model_dump()["num_selected"]) == (10, 5)


def test_a_sampler_object_is_a_section() -> None:
    sampler = SamplerConfig(max_completion_length=16, num_steps=8)
    assert resolved(sampler=sampler).sampler == sampler
    assert resolved(sampler=sampler, temperature=0.5).sampler == sampler.model_copy(update={"temperature": 0.5})
    assert resolved(method=DiffuGRPO(beta=0.5), epsilon=0.3).method == DiffuGRPO(beta=0.5, epsilon=0.3)


@pytest.mark.parametrize(
    ("name", "argument"),
    [("dataset", "train_dataset"), ("tokenizer", "processing_class"), ("rewards", "reward_funcs"), ("policy", "model")],
)
def test_an_argument_under_another_name_is_explained(name: str, argument: str) -> None:
    with raises(ConfigError, name, f'"{argument}"'):
        check_names({name: ROWS})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_train_epochs": 1}, ("num_train_epochs", "max_steps")),
        ({"type": "egspo"}, ("type", "method.type", "task.type")),
        ({"learning_rate": -1.0}, ("optim.learning_rate", "-1")),
        ({"method": "grpo"}, ("grpo", "diffu_grpo")),
    ],
    ids=["epochs", "ambiguous", "negative", "method"],
)
def test_a_setting_that_cannot_be_used_is_explained(settings: dict[str, Any], words: tuple[str, ...]) -> None:
    with raises(ConfigError, *words):
        resolved(**settings)

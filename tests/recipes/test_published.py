"""docs/evaluation.md: every command in it is one that unmask understands, and its table has every
method and task."""

from __future__ import annotations

import importlib.util
import re
import shlex

import pytest
import typer

from tests.helpers.paths import ROOT
from unmask.cli import app
from unmask.recipes.load import load_recipe, make_task, shipped_recipes
from unmask.rewards.protocol import load_reward

TEXT = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    unmask (.+)$", TEXT, flags=re.MULTILINE)


def of(kind: str) -> list[list[str]]:
    found = [shlex.split(command) for command in COMMANDS]
    return [rest for name, *rest in found if name == kind]


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def needs_extra(command: list[str]) -> None:
    if "reasoning_gym" in " ".join(command) and importlib.util.find_spec("reasoning_gym") is None:
        pytest.skip("the extra reasoning-gym is not installed")


@pytest.mark.parametrize("command", of("train"), ids=lambda c: c[1][:24] if len(c) > 1 else "alone")
def test_every_training_command_is_a_valid_recipe_with_rewards_that_are_there(command: list[str]) -> None:
    needs_extra(command)
    recipe = load_recipe(command[0], command[1:])
    if recipe.method.type == "egspo_sa":
        assert (recipe.num_generations, recipe.method.num_selected, recipe.method.stepwise_weight) == (8, 8, 0.5)  # type: ignore[attr-defined]
    assert recipe.evaluation.split == "validation"
    assert len(recipe.reward_weights) == len(recipe.reward_funcs)
    for path in recipe.reward_funcs:
        load_reward(path)


def test_the_table_of_recipes_names_all_of_them_and_no_other() -> None:
    named = {
        f"published/{stem}-{task}"
        for stem, tasks in re.findall(r"`([a-z-]+-(?:llada|dream))-\{([a-z0-9,]+)\}`", TEXT)
        for task in tasks.split(",")
    }
    assert named == {f"published/{name}" for name in shipped_recipes("published")}


@pytest.mark.parametrize("command", of("eval"), ids=" ".join)
@pytest.mark.slow
def test_every_evaluation_command_has_options_that_there_are_and_a_task_that_takes_them(command: list[str]) -> None:
    needs_extra(command)
    parser = typer.main.get_command(app).commands["eval"]  # type: ignore[attr-defined]
    asked = parser.make_context("eval", list(command)).params
    task = make_task(asked["task"], asked["option"] or ())
    # Other commands show an option on an embedded task.
    assert set(task.evaluation_lengths) == {128, 256, 512} or asked["schedule"]


def test_the_table_has_every_task_and_every_published_method() -> None:
    for name in ("GSM8K", "MATH500", "Countdown", "Sudoku", "HumanEval and MBPP"):
        assert f"\n### {name}" in TEXT
    here = (
        "diffu-GRPO wd1 UniGRPO SPG ESPO AGRPO BGPO GDPO d2-StepMerge TraceRL JustGRPO Mask-aware EGSPO-SA Coupled-GRPO"
    )
    for name in [*here.split(), "VRPO", "CJ-GRPO", "d-TreeRPO", "IGPO", "GDSD"]:
        assert re.search(rf"^\| .*{re.escape(name)}.*\|.*\|.*\|", TEXT, flags=re.MULTILINE), name


def test_other_commands_are_there_too() -> None:
    assert {command.split()[0] for command in COMMANDS} == {"train", "eval", "data", "harness"}
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert {command.split()[0] for command in COMMANDS} <= known.keys()

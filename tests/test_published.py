"""docs/evaluation.md: every command in it is one that unmask understands, and its table has every method and task."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import typer

from unmask.cli import app
from unmask.recipe import load_recipe, make_task
from unmask.score import load_reward

ROOT = Path(__file__).parent.parent
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


PUBLISHED = {
    # completions of an update, G, passes, L, steps, temperature, rate
    "egspo": (48, 8, 1, 256, 128, 0.9, 3e-5),
    "diffu_grpo": (96, 6, 12, 256, 128, 0.9, 3e-6),
    "espo": (96, 6, 8, 256, 256, 1.0, 3e-6),
    "agrpo": (128, 8, 1, 384, 128, 0.6, 5e-6),
    "bgpo": (128, 8, 1, 512, 256, 0.6, 5e-7),
}


def test_the_commands_of_other_methods_are_their_published_settings() -> None:
    recipes = [load_recipe(command[0], command[1:]) for command in of("train") if "method.type" in " ".join(command)]
    found = {
        r.method.type: (
            r.num_prompts * r.num_generations,
            r.num_generations,
            r.num_iterations,
            r.sampler.max_completion_length,
            r.sampler.steps,
            r.sampler.temperature,
            r.optim.learning_rate,
        )
        for r in recipes
    }
    assert found == PUBLISHED


def test_what_other_tasks_change_are_overrides_that_the_methods_take() -> None:
    commands = {c[1].partition("=")[2]: c for c in of("train") if c[1:] and c[1].startswith("method.type=")}
    rows = re.findall(r"^\| (diffu-GRPO|ESPO|AGRPO|BGPO) \| ([^|]+) \| [^|]+ \|$", TEXT, flags=re.MULTILINE)
    assert len(rows) == 4
    for name, changes in rows:
        source, *own = commands[name.lower().replace("-", "_")]
        for change in re.findall(r"`([a-z][^`]*=[^`]*)`", changes):
            load_recipe(source, [*own, *shlex.split(change)])


@pytest.mark.parametrize("command", of("eval"), ids=" ".join)
def test_every_evaluation_command_has_options_that_there_are_and_a_task_that_takes_them(command: list[str]) -> None:
    needs_extra(command)
    parser = typer.main.get_command(app).commands["eval"]  # type: ignore[attr-defined]
    asked = parser.make_context("eval", list(command)).params
    task = make_task(asked["task"], asked["option"] or ())
    assert set(task.evaluation_lengths) == {128, 256, 512}


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

"""Training from Python: what is shown, what is written at the end, and in which forms a recipe, rewards and rows may come."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.runs import metrics, train_recipe
from unmask import Trainer
from unmask.core.errors import ConfigError
from unmask.rewards import per_completion

SHORT = ("max_steps=2", "evaluation.eval_steps=0", "evaluation.temperatures=0.9")


@per_completion
def ones(completions: Sequence[str], **_: Any) -> list[float]:
    return [float(text.count("1")) for text in completions]


@per_completion
def length(completions: Sequence[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


@pytest.fixture
def reward_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(
        "from unmask.rewards import per_completion\n\n@per_completion\n"
        "def ones(completions, **_):\n    return [float(text.count('1')) for text in completions]\n"
    )
    return path


def test_a_run_shows_its_steps_and_leaves_a_curve_and_a_report(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[int] = []
    trainer = Trainer(
        train_recipe(tiny_model, tmp_path / "run", *SHORT), reward_funcs=ones, observe=lambda step, _: seen.append(step)
    )
    folder = trainer.train()
    shown = capsys.readouterr()
    assert "train step 1/2  loss" in shown.err
    assert "train step 2/2  loss" in shown.err
    # No bars of other libraries.
    assert "it/s" not in shown.err
    assert shown.out == ""
    assert seen == [1, 2]
    assert trainer.pictures == {"curve": str(folder / "curve.png"), "report": str(folder / "report.html")}
    assert all(Path(place).stat().st_size for place in trainer.pictures.values())


def test_progress_can_be_left_out(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Trainer(train_recipe(tiny_model, tmp_path / "run", *SHORT), progress=False).train()
    assert "train step" not in capsys.readouterr().err


def test_a_picture_that_cannot_be_written_does_not_fail_the_run(tiny_model: Path, tmp_path: Path) -> None:
    trainer = Trainer(train_recipe(tiny_model, tmp_path / "run", *SHORT), progress=False)
    (tmp_path / "run" / "report.html").mkdir()
    folder = trainer.train()
    assert (folder / "final" / "model.safetensors").exists()
    assert trainer.pictures["curve"] == str(folder / "curve.png")
    assert trainer.pictures["report"].startswith("not written (")


def test_a_reward_is_a_function_a_path_or_a_list_of_them(tiny_model: Path, tmp_path: Path, reward_file: Path) -> None:
    path = f"{reward_file}:ones"
    names = {}
    for number, given in enumerate((ones, [ones], path, [path], (ones, length), [path, length])):
        recipe = train_recipe(tiny_model, tmp_path / f"run-{number}", *SHORT)
        trainer = Trainer(recipe, reward_funcs=given, progress=False)  # type: ignore[arg-type]
        names[number] = list(trainer.scorer.functions)
        trainer.folder.close()
    assert names == {0: ["ones"], 1: ["ones"], 2: ["ones"], 3: ["ones"], 4: ["ones", "length"], 5: ["ones", "length"]}


def test_a_path_of_a_reward_is_recorded_and_can_run_in_worker_processes(
    tiny_model: Path, tmp_path: Path, reward_file: Path
) -> None:
    path = f"{reward_file}:ones"
    trainer = Trainer(train_recipe(tiny_model, tmp_path / "run", *SHORT), reward_funcs=path, progress=False)
    assert trainer.recipe.reward_funcs == (path,)
    trainer.folder.close()
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["reward_funcs"] == [path]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"a": ones}, "reward_funcs is a function, its path or a list of them, not a dict"),
        ([ones, 3], "reward_funcs holds 3, which is neither a function nor the path of one"),
        (
            "nowhere.py:f",
            "cannot be loaded: there is no file nowhere.py. Relative paths are read from the current folder, ",
        ),
    ],
)
def test_what_is_no_reward_is_told(tiny_model: Path, tmp_path: Path, given: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Trainer(train_recipe(tiny_model, tmp_path / "run", *SHORT), reward_funcs=given)


def test_a_recipe_may_be_a_name_or_a_dict(tiny_model: Path, tmp_path: Path) -> None:
    settings = {
        "model": str(tiny_model),
        "output_dir": str(tmp_path / "run"),
        "task": {"type": "sudoku"},
        "method": {"type": "egspo_sa", "num_selected": 1},
        "sampler": {"max_completion_length": 16, "num_steps": 4},
        "num_rows": 20,
    }
    trainer = Trainer(settings)
    assert (trainer.recipe.method.type, trainer.recipe.sampler.steps) == ("egspo_sa", 4)
    trainer.folder.close()


def test_rows_of_python_are_trained_on(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"{'01234'[i % 5]}{'01234'[i // 5 % 5]}{'01234'[i // 25]}=", "n": i} for i in range(75)]
    recipe = train_recipe(tiny_model, tmp_path / "run", *SHORT, "evaluation.num_rows=2")
    given: list[int] = []

    @per_completion
    def reward(completions: Sequence[str], n: Sequence[int], **_: Any) -> list[float]:
        given.extend(n)
        return ones(completions)

    Trainer(recipe, reward_funcs=reward, train_dataset=rows, progress=False).train()
    assert given
    assert {*given} <= {*range(75)}
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2]
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["task"]["type"] == "dataset"
    with pytest.raises(ConfigError, match="eval_dataset without train_dataset"):
        Trainer(recipe, eval_dataset=rows)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"model": "m", "train_dataset": []}, r"Trainer has no argument model. .*load_recipe\("),
        ({"args": None}, "Trainer has no argument args. Everything about a run is in its recipe"),
        ({}, "Trainer needs a recipe. Everything about a run is in its recipe"),
    ],
)
def test_arguments_of_other_trainers_are_answered_with_the_recipe(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(TypeError, match=told):
        Trainer(**arguments)

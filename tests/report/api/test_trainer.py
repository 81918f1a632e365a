"""Training from Python: what is shown, what is written at the end, and in which forms a recipe,
rewards and rows may come."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn

from tests.helpers.messages import raises
from tests.helpers.runs import metrics, train_recipe, weights, without_report
from unmask import Trainer, TrainRecipe, load_model, open_run
from unmask.core.errors import ConfigError, RunError
from unmask.rewards import per_completion
from unmask.runs.environment import weights_hash
from unmask.sampling.engine import LocalEngine

ROWS = [{"prompt": f"{'01234'[i % 5]}{'01234'[i // 5 % 5]}{'01234'[i // 25]}=", "n": i} for i in range(75)]
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


@pytest.mark.slow
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
    # The evaluation after the last step is a line of its own.
    assert seen == [1, 2, 2]
    assert trainer.pictures == {"curve": str(folder / "curve.png"), "report": str(folder / "report.html")}
    assert all(Path(place).stat().st_size for place in trainer.pictures.values())


@pytest.mark.slow
@without_report()
def test_progress_can_be_left_out(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Trainer(train_recipe(tiny_model, tmp_path / "run", *SHORT), progress=False).train()
    assert "train step" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_picture_that_cannot_be_written_does_not_fail_the_run(tiny_model: Path, tmp_path: Path) -> None:
    trainer = Trainer(train_recipe(tiny_model, tmp_path / "run", *SHORT), progress=False)
    (tmp_path / "run" / "report.html").mkdir()
    folder = trainer.train()
    assert (folder / "final" / "model.safetensors").exists()
    assert trainer.pictures["curve"] == str(folder / "curve.png")
    assert trainer.pictures["report"].startswith("not written (")


@pytest.mark.slow
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


@pytest.mark.slow
@without_report()
def test_rows_of_python_are_trained_on(tiny_model: Path, tmp_path: Path) -> None:
    recipe = train_recipe(tiny_model, tmp_path / "run", *SHORT, "evaluation.num_rows=2")
    given: list[int] = []

    @per_completion
    def reward(completions: Sequence[str], n: Sequence[int], **_: Any) -> list[float]:
        given.extend(n)
        return ones(completions)

    Trainer(recipe, reward_funcs=reward, train_dataset=ROWS, progress=False).train()
    assert given
    assert {*given} <= {*range(75)}
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2]
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["task"]["type"] == "dataset"


@pytest.mark.slow
def test_a_run_needs_no_recipe(tiny_model: Path, tmp_path: Path) -> None:
    policy = load_model(tiny_model)
    before = weights_hash(policy.denoiser)
    folder = Trainer(
        model=policy,
        reward_funcs=[length],
        train_dataset=ROWS,
        args={"learning_rate": 1.0, "num_generations": 2, "temperature": 0.7},
        learning_rate=1e-2,
        num_prompts=2,
        max_steps=3,
        max_completion_length=16,
        output_dir=tmp_path / "run",
        progress=False,
    ).train()
    run = open_run(folder)
    recipe = run.recipe
    assert isinstance(recipe, TrainRecipe)
    assert (recipe.method.type, recipe.optim.learning_rate, recipe.sampler.temperature) == ("egspo", 1e-2, 0.7)
    assert [line["step"] for line in run.metrics] == [0, 1, 2, 3]
    assert (folder / "report.html").is_file()
    assert recipe.model == str(tmp_path / "run-start")
    # The object is not trained; the run starts from a copy, and its result is in the run folder.
    assert weights_hash(policy.denoiser) == before == weights_hash(load_model(tmp_path / "run-start").denoiser)
    assert weights_hash(run.model().denoiser) != before
    assert "run-start" in (folder / "final" / "README.md").read_text()


@pytest.mark.slow
@without_report()
def test_a_run_that_started_from_an_object_resumes_to_the_same_weights(tiny_model: Path, tmp_path: Path) -> None:
    def trainer(name: str, **settings: Any) -> Trainer:
        return Trainer(
            model=load_model(tiny_model),
            reward_funcs=length,
            train_dataset=ROWS,
            output_dir=str(tmp_path / name),
            learning_rate=1e-2,
            # A schedule that does not depend on the number of steps.
            optim={"lr_schedule": "constant", "warmup_steps": 0},
            num_prompts=2,
            num_generations=2,
            max_completion_length=16,
            save_steps=1,
            progress=False,
            reward_workers=0,
            evaluation={"eval_steps": 0, "num_rows": 2},
            **settings,
        )

    whole = trainer("whole", max_steps=2).train()
    trainer("parts", max_steps=1).train()
    parts = trainer("parts", max_steps=2, resume=True).train()
    assert weights(parts) == weights(whole)
    with raises(RunError, "already holds a run"):
        trainer("parts", max_steps=2)


@pytest.mark.slow
def test_a_model_may_stand_first_as_in_trl(tiny_model: Path, tmp_path: Path) -> None:
    trainer = Trainer(
        str(tiny_model),
        length,
        train_dataset=ROWS,
        max_completion_length=16,
        output_dir=tmp_path / "run",
        progress=False,
        reward_workers=0,
    )
    trainer.folder.close()
    assert trainer.recipe.model == str(tiny_model)
    assert list(trainer.scorer.functions) == ["length"]


@pytest.mark.slow
def test_no_output_folder_is_the_default_one(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    policy = load_model(tiny_model)
    Trainer(model=policy, reward_funcs=length, train_dataset=ROWS, output_dir=None, progress=False, reward_workers=0)
    assert (tmp_path / "runs" / "train-start" / "config.json").is_file()


@pytest.mark.slow
@without_report()
def test_an_engine_can_be_given(tiny_model: Path, tmp_path: Path) -> None:
    versions: list[int] = []

    class Counting(LocalEngine):
        def update_weights(self, model: nn.Module, version: int) -> None:
            versions.append(version)

    engine = Counting(load_model(tiny_model))
    Trainer(train_recipe(tiny_model, tmp_path / "run", *SHORT), engine=engine, progress=False).train()
    # One rollout for each of two training steps, and the evaluation at the end.
    assert versions == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, ("no model", "Trainer(model=policy")),
        ({"model": "m"}, ("no rows and no task", "train_dataset=rows")),
        (
            {"recipe": "sudoku-tiny", "eval_dataset": [{"prompt": "1"}]},
            ("eval_dataset", "train_dataset", "task.test_path"),
        ),
        ({"recipe": "sudoku-tiny", "per_device_train_batch_size": 4}, ("per_device_train_batch_size", "num_prompts")),
        ({"recipe": "sudoku-tiny", "learnig_rate": 4}, ("learnig_rate", "optim.learning_rate")),
        ({"recipe": "sudoku-tiny", "callbacks": []}, ("callbacks", "observe=")),
        ({"recipe": "sudoku-tiny", "args": 3}, ("args has the type int", "dict")),
        ({"model": 3, "task": "sudoku"}, ("model has the type int", "load_model")),
    ],
    ids=["nothing", "no rows", "only rows to evaluate", "batch size", "misspelt", "callbacks", "args", "model"],
)
def test_an_argument_that_cannot_be_used_is_explained(arguments: dict[str, Any], words: tuple[str, ...]) -> None:
    with raises(ConfigError, *words):
        Trainer(**arguments)

"""A run folder opened in Python: what it gives while the run goes on and after it, and what is said
of other folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.messages import raises
from tests.helpers.runs import pretrain_recipe, train_recipe, weights
from unmask import load_model, open_run
from unmask.core.errors import RunError
from unmask.recipes.schema import PretrainRecipe, TrainRecipe
from unmask.runs.environment import weights_hash
from unmask.trainer import Trainer
from unmask.trainer.pretrain import pretrain


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of six steps with two checkpoints, three evaluations on validation rows, and
    two rollouts."""
    path = tmp_path_factory.mktemp("opened") / "run"
    settings = ("log_rollouts_steps=3", "evaluation.split=validation", "evaluation.temperatures=[0.0, 0.9]")
    return Trainer(train_recipe(tiny_model, path, *settings)).train()


@pytest.mark.slow
def test_a_run_gives_its_recipe_and_metrics(folder: Path, tiny_model: Path) -> None:
    run = open_run(folder)
    assert isinstance(run.recipe, TrainRecipe)
    assert (run.recipe.model, run.recipe.max_steps) == (str(tiny_model), 6)
    by_step: dict[int, dict[str, Any]] = {}
    for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        by_step[line["step"]] = by_step.get(line["step"], {}) | line
    assert run.metrics == [by_step[step] for step in range(7)]
    assert repr(run) == f"Run({str(folder)!r}, step 6 of 6)"


def test_evaluations_are_rows_of_a_table(folder: Path) -> None:
    run = open_run(folder)
    found = run.evaluations
    assert [(row["step"], row["temperature"]) for row in found] == [(s, t) for s in (0, 3, 6) for t in (0.0, 0.9)]
    lines = {line["step"]: line for line in run.metrics}
    for row in found:
        key = f"eval/validation@{row['temperature']:g}"
        assert row["split"] == "validation"
        assert {n: row[n] for n in ("accuracy", "low", "high", "reward")} == {
            n: lines[row["step"]][f"{key}/{n}"] for n in ("accuracy", "low", "high", "reward")
        }


def test_a_saved_rollout_is_read_by_its_step(folder: Path) -> None:
    run = open_run(folder)
    assert list(run.rollouts) == [3, 6]
    assert len(run.rollouts) == 2
    saved = run.rollouts[3]
    assert run.texts(3) == [
        {"prompt": saved.prompts[i // 2], "completion": text, "answer": saved.answers[i // 2], "reward": reward}
        for i, (text, reward) in enumerate(zip(saved.completions, saved.rollout.reward.tolist(), strict=True))
    ]
    assert run.texts() == run.texts(6) != run.texts(3)
    with raises(RunError, "step 4", "[3, 6]"):
        _ = run.rollouts[4]


@pytest.mark.slow
def test_models_are_named_or_given_by_the_step_of_a_checkpoint(folder: Path) -> None:
    run = open_run(folder)
    assert run.checkpoints == [4, 6]
    assert run.model_path() == folder / "final"
    assert run.model_path("best") == folder / "best"
    assert run.model_path(4) == folder / "checkpoints" / "step-00000004"
    assert (run.model_path() / "model.safetensors").read_bytes() == weights(folder)
    last = weights_hash(load_model(folder / "final").denoiser)
    assert weights_hash(run.model().denoiser) == weights_hash(run.model(6).denoiser) == last
    assert weights_hash(run.model(4).denoiser) != last
    with raises(RunError, "5", "final, best, 4, 6"):
        run.model(5)


@pytest.mark.slow
def test_a_run_draws_its_metrics_and_writes_its_report(folder: Path, tmp_path: Path) -> None:
    run = open_run(folder)
    assert run.plot("reward", target=tmp_path / "reward.png") == tmp_path / "reward.png"
    assert (tmp_path / "reward.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "reward.csv").read_text().splitlines()[1].startswith("reward,")
    assert not (tmp_path / "reward.pdf").exists()
    assert "<title>unmask: run" in run.report(tmp_path / "page.html").read_text()


@pytest.fixture
def begun(folder: Path, tmp_path: Path) -> Path:
    """Copy of the run without its models and metrics, as a run that has just begun."""
    copy = tmp_path / "begun"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("final", "best", "step-*", "metrics.jsonl"))
    return copy


def test_a_run_that_has_just_begun_has_no_model_yet(begun: Path) -> None:
    run = open_run(begun)
    assert (run.metrics, run.evaluations, list(run.rollouts), run.checkpoints) == ([], [], [], [])
    assert repr(run).endswith("step 0 of 6)")
    with raises(RunError, "no saved rollouts", "log_rollouts_steps", snapshot=False):
        run.rollouts[3]
    with raises(RunError, "no model yet"):
        run.model()
    with raises(RunError, "no saved rollouts", "log_rollouts_steps"):
        run.texts()


def test_a_run_that_has_not_ended_gives_its_newest_checkpoint(folder: Path, begun: Path) -> None:
    shutil.copytree(folder / "checkpoints" / "step-00000004", begun / "checkpoints" / "step-00000004")
    run = open_run(begun)
    assert run.model_path() == begun / "checkpoints" / "step-00000004"
    with raises(RunError, "'best'", "Its models are 4", "evaluation.split"):
        run.model("best")


@pytest.mark.slow
def test_a_pretraining_run_is_opened_too(tmp_path: Path) -> None:
    run = open_run(pretrain(pretrain_recipe(tmp_path / "base")))
    assert isinstance(run.recipe, PretrainRecipe)
    assert run.metrics[-1]["step"] == 6
    assert run.model().tokenizer.mask_token_id == 1


def case(name: str, folder: Path, tmp_path: Path) -> Path:
    """A folder that is not a run folder."""
    comparison = tmp_path / "comparison"
    comparison.mkdir()
    for file in ("cells.jsonl", "recipe.yaml"):
        (comparison / file).touch()
    places = {
        "missing": tmp_path / "missing",
        "a model": folder / "final",
        "comparison": comparison,
        "empty": tmp_path / "x",
    }
    places["empty"].mkdir()
    return places[name]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", ("there is no folder",)),
        ("a model", ("is not a run folder", "Did you mean")),
        ("comparison", ("folder of a comparison", "table.md")),
        ("empty", ("is not a run folder", "output_dir")),
    ],
)
def test_a_folder_that_is_not_a_run_folder_is_refused(
    name: str, words: tuple[str, ...], folder: Path, tmp_path: Path
) -> None:
    with raises(RunError, *words, snapshot=False):
        open_run(case(name, folder, tmp_path))


def test_the_runs_in_a_folder_are_suggested(begun: Path) -> None:
    with raises(RunError, f"Did you mean {begun}"):
        open_run(begun.parent)


def test_the_fields_of_an_evaluation_make_a_data_frame(folder: Path) -> None:
    columns: set[tuple[str, ...]] = {tuple(row) for row in open_run(folder).evaluations}
    numbers = ("accuracy", "low", "high", "reward", "forwards", "tokens_per_forward")
    expected: tuple[Any, ...] = ("step", "split", "temperature", *numbers)
    assert columns == {expected}

"""Tests of models in run folders: any checkpoint, an unfinished run, with adapters and without."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.helpers.messages import raises
from tests.helpers.runs import metrics, pretrain_recipe, train_recipe, unmask, unmask_train, weights
from unmask.core.errors import ModelError, RunError
from unmask.models import load_model
from unmask.models.from_run import locate
from unmask.trainer import Trainer
from unmask.trainer.pretrain import pretrain

LORA = ("lora.r=2", "lora.alpha=8", "optim.learning_rate=1e-2", "method.beta=0.04")
EVAL = ("--task", "sudoku", "--rows", 4, "--steps", 4)


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "plain"
    return Trainer(train_recipe(tiny_model, folder, "evaluation.split=validation")).train()


@pytest.fixture(scope="module")
def lora_run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Trainer(train_recipe(tiny_model, tmp_path_factory.mktemp("runs") / "lora", *LORA)).train()


def unended(run: Path, place: Path) -> Path:
    """Return a copy of a run without final/, as after an interruption."""
    shutil.copytree(run, place)
    shutil.rmtree(place / "final")
    return place


def same(one: object, other: object) -> bool:
    (first, _), (second, _) = load_model(str(one)), load_model(str(other))
    left, right = first.state_dict(), second.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["run", "lora_run"])
def test_the_last_checkpoint_is_the_final_model_bit_for_bit(kind: str, request: pytest.FixtureRequest) -> None:
    run = request.getfixturevalue(kind)
    assert same(run / "checkpoints" / "step-00000006", run / "final")
    # Negative control: another step has another model.
    assert not same(run / "checkpoints" / "step-00000004", run / "final")


def test_a_checkpoint_of_a_model_built_from_scratch_is_its_model_too(tmp_path: Path) -> None:
    folder = pretrain(pretrain_recipe(tmp_path / "base"))
    assert same(folder / "checkpoints" / "step-00000006", folder / "final")


@pytest.mark.slow
def test_a_run_stands_for_its_final_model(run: Path) -> None:
    assert locate(run) == str(run / "final")
    assert locate(run / "best") == str(run / "best")
    assert locate("GSAI-ML/LLaDA-8B-Instruct") == "GSAI-ML/LLaDA-8B-Instruct"


def test_an_unfinished_run_stands_for_its_newest_checkpoint_with_a_warning(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stopped = unended(run, tmp_path / "stopped")
    newest = stopped / "checkpoints" / "step-00000006"
    (stopped / "checkpoints" / "step-00000006.bak").mkdir()
    (stopped / "checkpoints" / "step-abc").mkdir()
    assert locate(stopped) == str(newest)
    assert caplog.messages == [f"{stopped} has not ended; using its newest checkpoint, {newest}."]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["run", "lora_run"])
@pytest.mark.parametrize("part", ["", "checkpoints/step-00000004"])
def test_every_command_accepts_a_checkpoint(
    kind: str, part: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source = unended(request.getfixturevalue(kind), tmp_path / "stopped") / part
    assert unmask("eval", source, *EVAL, "--output", tmp_path / "found.json") == 0
    assert unmask("sample", source, "--task", "sudoku", "--steps", 4, "--delay", 0) == 0
    assert unmask("merge", source, tmp_path / "plain") == 0
    assert same(source, tmp_path / "plain")
    assert unmask_train(source, tmp_path / "next", "max_steps=2") == 0
    recorded = (tmp_path / "next" / "config.yaml").read_text()
    assert f"model: {locate(source)}\n" in recorded


@pytest.mark.slow
def test_evaluating_a_checkpoint_equals_evaluating_the_merged_model(lora_run: Path, tmp_path: Path) -> None:
    source = lora_run / "checkpoints" / "step-00000004"
    assert unmask("merge", source, tmp_path / "plain") == 0
    found = []
    for model in (source, tmp_path / "plain"):
        assert unmask("eval", model, *EVAL, "--output", tmp_path / "found.json") == 0
        facts = json.loads((tmp_path / "found.json").read_text())
        found.append((facts["weights"], (tmp_path / "found.jsonl").read_text()))
    assert found[0] == found[1]


def test_a_checkpoint_is_converted_like_its_model(run: Path, tmp_path: Path) -> None:
    source = run / "checkpoints" / "step-00000006"
    assert unmask("convert", source, tmp_path / "copy") == 0
    assert same(source, tmp_path / "copy")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.slow
def test_an_adapter_is_refused_if_its_base_model_has_changed(lora_run: Path, tiny_model: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    folder = Trainer(train_recipe(base, tmp_path / "run", *LORA, "max_steps=2")).train()
    source = folder / "checkpoints" / "step-00000002"
    load_model(source)
    shutil.rmtree(base)
    shutil.copytree(lora_run / "final", base)
    with raises(ModelError, "is no longer the model that the adapter in", "was trained on"):
        load_model(source)
    assert unmask("merge", source, tmp_path / "merged", "--base", tiny_model) == 0
    assert same(tmp_path / "merged", folder / "final")
    shutil.rmtree(base)
    with pytest.raises(ModelError, match=f"there is no folder {base}"):
        load_model(source)


def test_a_damaged_or_foreign_checkpoint_is_refused(run: Path, tmp_path: Path) -> None:
    source = unended(run, tmp_path / "stopped") / "checkpoints" / "step-00000006"
    shutil.copy(source / "state-00000.safetensors", source / "state-99999.safetensors")
    with raises(ModelError, "state-99999.safetensors does not belong to it"):
        load_model(source)
    (source / "state-99999.safetensors").unlink()
    (source / "state-00000.safetensors").write_bytes(b"")
    with raises(ModelError, "has 0 bytes instead of", snapshot=False):
        load_model(source)
    (source / "manifest.json").write_text("{}")
    with raises(ModelError, "lacks one of the entries"):
        load_model(source)


def test_a_folder_without_a_single_model_asks_for_a_choice(run: Path, tmp_path: Path) -> None:
    with raises(ModelError, "holds several checkpoints of a run. Name one of them: step-00000004, step-0"):
        load_model(run / "checkpoints")
    begun = tmp_path / "begun"
    (begun / "checkpoints").mkdir(parents=True)
    with raises(ModelError, "is a run that has not ended and has no checkpoint yet"):
        load_model(begun)


# --- longer runs ---

CONSTANT = ("optim.lr_schedule=constant", "evaluation.eval_steps=2")


@pytest.mark.slow
def test_an_extended_run_equals_the_longer_run_bit_for_bit(tiny_model: Path, tmp_path: Path) -> None:
    whole = Trainer(train_recipe(tiny_model, tmp_path / "whole", *CONSTANT, "max_steps=6")).train()
    short = Trainer(train_recipe(tiny_model, tmp_path / "run", *CONSTANT, "max_steps=4")).train()
    assert weights(short) != weights(whole)
    Trainer(train_recipe(tiny_model, tmp_path / "run", *CONSTANT, "max_steps=6"), resume=True).train()
    assert metrics(short) == metrics(whole)
    assert weights(short) == weights(whole)
    assert "extended" not in json.loads((short / "run.json").read_text())


@pytest.mark.slow
def test_a_finished_pretraining_can_be_extended_too(tmp_path: Path) -> None:
    constant = "optim.lr_schedule=constant"
    whole = pretrain(pretrain_recipe(tmp_path / "whole", constant, "max_steps=6"))
    short = pretrain(pretrain_recipe(tmp_path / "run", constant, "max_steps=4"))
    pretrain(pretrain_recipe(tmp_path / "run", constant, "max_steps=6"), resume=True)
    assert metrics(short) == metrics(whole)
    assert weights(short) == weights(whole)


@pytest.mark.slow
def test_a_schedule_that_depends_on_the_length_is_extended_with_a_warning_that_the_card_repeats(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = ("optim.lr_schedule=linear", "optim.lr_floor=0.1")
    folder = Trainer(train_recipe(tiny_model, tmp_path / "run", *settings, "max_steps=4")).train()
    before = metrics(folder)
    Trainer(train_recipe(tiny_model, tmp_path / "run", *settings, "max_steps=8"), resume=True).train()
    [warning] = [message for message in caplog.messages if "max_steps" in message]
    assert "up to step 4 the learning rate followed max_steps = 4, and from now on it follows max_steps = 8" in warning
    assert "The learning rate changes from 0.1 to 0.55 of its peak." in warning
    after = metrics(folder)
    assert after[: len(before)] == before
    assert after[-1]["step"] == 8
    assert (
        "| extended | up to step 4 the learning rate followed max_steps = 4" in (folder / "final/README.md").read_text()
    )


def test_a_run_cannot_be_shortened(tiny_model: Path, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    with raises(RunError, "has a checkpoint of step 6, which is more than max_steps = 4"):
        Trainer(
            train_recipe(tiny_model, tmp_path / "run", "evaluation.split=validation", "max_steps=4"), resume=True
        ).train()


# --- checkpoints of other runs ---


@pytest.mark.slow
def test_a_checkpoint_of_another_run_of_the_same_shape_is_refused(tiny_model: Path, run: Path, tmp_path: Path) -> None:
    other = Trainer(train_recipe(tiny_model, tmp_path / "other", "seed=1", "max_steps=8")).train()
    mine = unended(run, tmp_path / "mine")
    shutil.copytree(other / "checkpoints" / "step-00000008", mine / "checkpoints" / "step-00000008")
    settings = train_recipe(tiny_model, mine, "evaluation.split=validation", "max_steps=8")
    with raises(RunError, "step-00000008 does not belong to the run", "mine. Remove this folder"):
        Trainer(settings, resume=True).train()
    assert (mine / "checkpoints" / "step-00000008").is_dir()
    # The run does not stand for a model of another run either.
    with raises(ModelError, "step-00000008, belongs to another run"):
        locate(mine)
    shutil.rmtree(mine / "checkpoints" / "step-00000008")
    assert locate(mine) == str(mine / "checkpoints" / "step-00000006")


def test_a_checkpoint_under_the_name_of_another_step_is_refused(tiny_model: Path, run: Path, tmp_path: Path) -> None:
    mine = unended(run, tmp_path / "mine")
    (mine / "checkpoints" / "step-00000004").rename(mine / "checkpoints" / "step-00000008")
    settings = train_recipe(tiny_model, mine, "evaluation.split=validation", "max_steps=8")
    with raises(RunError, "its manifest.json belongs to step 4"):
        Trainer(settings, resume=True).train()


def test_copies_beside_checkpoints_are_ignored_and_kept(tiny_model: Path, run: Path, tmp_path: Path) -> None:
    mine = unended(run, tmp_path / "mine")
    shutil.rmtree(mine / "checkpoints" / "step-00000006")
    shutil.copytree(mine / "checkpoints" / "step-00000004", mine / "checkpoints" / "step-00000006.bak")
    (mine / "checkpoints" / "step-abc").mkdir()
    (mine / "checkpoints" / "notes.txt").write_text("mine")
    Trainer(train_recipe(tiny_model, mine, "evaluation.split=validation"), resume=True).train()
    assert weights(mine) == weights(run)
    names = {path.name for path in (mine / "checkpoints").iterdir()}
    assert names == {"step-00000004", "step-00000006", "step-00000006.bak", "step-abc", "notes.txt"}


def test_a_run_without_its_id_is_refused(tiny_model: Path, run: Path, tmp_path: Path) -> None:
    mine = unended(run, tmp_path / "mine")
    (mine / "run.json").unlink()
    with raises(RunError, "run.json is missing or has no id"):
        Trainer(train_recipe(tiny_model, mine, "evaluation.split=validation"), resume=True).train()

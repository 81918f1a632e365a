"""The best model is chosen on the validation split alone, is the same after a resume, and is
complete or absent."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.runs import metrics, train_recipe
from unmask import Trainer
from unmask.evaluation.evaluate import Evaluation
from unmask.models import load_model
from unmask.runs.folder import RunFolder
from unmask.trainer.best import Best, best_of, better

pytestmark = pytest.mark.slow

VALIDATION = ("evaluation.split=validation", "evaluation.eval_steps=2", "evaluation.temperatures=[0.0,0.9]")


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list of accuracies that the evaluations report in turn, instead of those that they
    measure."""
    import unmask.trainer.steps as steps

    accuracies: list[float] = []
    evaluate = steps.evaluate

    def faked(*arguments: Any, **options: Any) -> Evaluation:
        from dataclasses import replace

        return replace(evaluate(*arguments, **options), accuracy=accuracies.pop(0))

    monkeypatch.setattr(steps, "evaluate", faked)
    return accuracies


def weights_of(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_the_model_of_the_highest_mean_accuracy_is_saved(
    tiny_model: Path, tmp_path: Path, scripted: list[float]
) -> None:
    # Means after steps 0, 2, 4 and 6: .2, .35, .35, .1. Of equal means the earlier stays, even if a
    # temperature is higher later.
    scripted += [0.2, 0.2, 0.3, 0.4, 0.5, 0.2, 0.1, 0.1]
    overrides = [*VALIDATION, "save_steps=2", "save_total_limit=9"]
    folder = Trainer(train_recipe(tiny_model, tmp_path / "run", *overrides)).train()
    lines = {line["step"]: line for line in metrics(folder)}
    assert [lines[step]["eval/best_step"] for step in (0, 2, 4, 6)] == [0, 2, 2, 2]
    assert lines[6]["eval/best_accuracy"] == pytest.approx(0.35)
    assert "eval/best_step" not in lines[1]
    checkpoint = load_file(folder / "checkpoints" / "step-00000002" / "state-00000.safetensors")
    best, final = (load_file(folder / name / "model.safetensors") for name in ("best", "final"))
    assert all(torch.equal(checkpoint[f"weight:backbone.{name}"], tensor) for name, tensor in best.items())
    assert not all(torch.equal(final[name], tensor) for name, tensor in best.items())
    load_model(folder / "best")
    assert not list(folder.glob("**/.incomplete-*"))


def test_a_base_that_training_never_beats_is_the_best(tiny_model: Path, tmp_path: Path, scripted: list[float]) -> None:
    scripted += [0.5, 0.5, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]
    folder = Trainer(train_recipe(tiny_model, tmp_path / "run", *VALIDATION)).train()
    assert metrics(folder)[-1]["eval/best_step"] == 0
    assert weights_of(folder / "best") == weights_of(tiny_model)


def test_nothing_is_chosen_on_the_test_split(tiny_model: Path, tmp_path: Path, scripted: list[float]) -> None:
    scripted += [0.1, 0.9, 0.1]
    folder = Trainer(train_recipe(tiny_model, tmp_path / "run", "evaluation.temperatures=[0.0]")).train()
    assert not (folder / "best").exists()
    assert not any("best" in key for line in metrics(folder) for key in line)
    assert metrics(folder)[-1]["eval/test@0/accuracy"] == 0.1


def test_a_resumed_run_has_the_best_model_of_the_uninterrupted_one(
    tiny_model: Path, tmp_path: Path, scripted: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = [0.1, 0.1, 0.4, 0.4, 0.2, 0.2, 0.3, 0.3]
    scripted += accuracies
    whole = Trainer(train_recipe(tiny_model, tmp_path / "whole", *VALIDATION, "save_steps=3")).train()

    class Killed(BaseException):
        pass

    # Killed after the line of the evaluation after step 4 is written; the newest checkpoint is that
    # of step 3.
    log = RunFolder.log

    def dying(self: RunFolder, line: dict[str, Any]) -> None:
        log(self, line)
        if line["step"] == 4 and "eval/best_step" in line:
            raise Killed

    scripted[:] = accuracies[:6]
    recipe = train_recipe(tiny_model, tmp_path / "run", *VALIDATION, "save_steps=3")
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "log", dying)
        trainer = Trainer(recipe)
        with pytest.raises(Killed):
            trainer.train()
    scripted[:] = accuracies[4:]
    resumed = Trainer(recipe, resume=True).train()
    assert metrics(resumed) == metrics(whole)
    assert metrics(resumed)[-1]["eval/best_step"] == 2
    assert weights_of(resumed / "best") == weights_of(whole / "best")


def test_a_save_that_fails_leaves_the_earlier_best_model(
    tiny_model: Path, tmp_path: Path, scripted: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    import unmask.models.adapter_folders as adapters

    scripted += [0.1, 0.1, 0.9, 0.9]
    save, saved = adapters.save_model, []

    def failing(denoiser: Any, tokenizer: Any, folder: Path, *rest: Any) -> None:
        save(denoiser, tokenizer, folder, *rest)
        saved.append(folder)
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(adapters, "save_model", failing)
    trainer = Trainer(train_recipe(tiny_model, tmp_path / "run", *VALIDATION))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert weights_of(tmp_path / "run" / "best") == weights_of(tiny_model)


def test_the_best_adapter_is_written_alone_and_merged_once_at_the_end(
    tiny_model: Path, tmp_path: Path, scripted: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    import unmask.models.adapter_folders as adapters

    save, saved = adapters.save_model, []
    stands_for: list[dict[str, torch.Tensor]] = []

    def counted(denoiser: Any, tokenizer: Any, folder: Path, *rest: Any) -> None:
        saved.append(folder.name)
        # Until the end of the run, best/ holds the adapter alone, and stands for the whole model.
        assert [path.name for path in (tmp_path / "run" / "best").iterdir()] == ["adapter"]
        stands_for.append(load_model(tmp_path / "run" / "best").denoiser.state_dict())
        save(denoiser, tokenizer, folder, *rest)

    monkeypatch.setattr(adapters, "save_model", counted)
    scripted += [0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.2, 0.2]
    overrides = ("lora.r=3", "lora.alpha=6", "save_steps=2", "save_total_limit=9")
    folder = Trainer(train_recipe(tiny_model, tmp_path / "run", *VALIDATION, *overrides)).train()
    # A run without its final model is not finished, so that comes first.
    assert saved == [".incomplete-final", ".incomplete-best"]
    assert metrics(folder)[-1]["eval/best_step"] == 4
    best = load_model(folder / "best").denoiser.state_dict()
    checkpoint = load_model(folder / "checkpoints" / "step-00000004").denoiser.state_dict()
    final = load_model(folder / "final").denoiser.state_dict()
    assert all(torch.equal(checkpoint[name], tensor) for name, tensor in best.items())
    assert all(torch.equal(stands_for[0][name], tensor) for name, tensor in best.items())
    assert not all(torch.equal(final[name], tensor) for name, tensor in best.items())


def test_the_end_of_a_run_needs_no_file_of_the_base_model_and_saves_in_the_precision_of_the_run(
    tiny_model: Path, tmp_path: Path, scripted: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_model, tmp_path / "base")
    log = RunFolder.log

    def removing(self: RunFolder, line: dict[str, Any]) -> None:
        log(self, line)
        if line["step"] == 6:
            shutil.rmtree(tmp_path / "base", ignore_errors=True)

    monkeypatch.setattr(RunFolder, "log", removing)
    scripted += [0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.2, 0.2]
    # The base model's file is float32.
    overrides = ("lora.r=3", "lora.alpha=6", "precision=bf16", "save_steps=2", "save_total_limit=9")
    folder = Trainer(train_recipe(tmp_path / "base", tmp_path / "run", *VALIDATION, *overrides)).train()
    shutil.copytree(tiny_model, tmp_path / "base")
    best = load_file(folder / "best" / "model.safetensors")
    assert {value.dtype for value in best.values()} == {torch.bfloat16}
    # The same bits as the checkpoint of its step, which is loaded from the base model.
    checkpoint = load_model(folder / "checkpoints" / "step-00000004").denoiser.backbone.state_dict()
    assert all(torch.equal(checkpoint[name], value) for name, value in best.items())
    final = load_file(folder / "final" / "model.safetensors")
    assert not all(torch.equal(final[name], value) for name, value in best.items())


def test_the_best_of_lines_is_the_earliest_highest_validation_accuracy() -> None:
    key = "eval/validation@0/accuracy"
    lines = [{"step": 0, key: 0.1}, {"step": 1}, {"step": 2, key: 0.3}, {"step": 4, key: 0.3}, {"step": 6, key: 0.2}]
    assert best_of(lines) == Best(2, 0.3)
    assert best_of([{"step": 1, "eval/test@0/accuracy": 1.0}]) is None
    assert better(Best(2, 0.3), 8, {key: 0.3}) is None
    assert better(None, 8, {key: 0.0}) == Best(8, 0.0)

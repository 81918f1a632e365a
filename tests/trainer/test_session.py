"""The run shell: pretraining has the same watch over its ranks as training, and a finished run
stays as it is."""

from __future__ import annotations

import contextlib
import itertools
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.messages import raises
from tests.helpers.processes import StoreOfOne, exit_codes_of_two, printed, said
from tests.helpers.runs import metrics, pretrain_recipe, train_recipe, weights
from unmask.core.errors import LostProcessError, RunError
from unmask.runs.folder import RunFolder
from unmask.runs.metrics import evaluations, read_metric_lines, read_metrics
from unmask.trainer import Trainer
from unmask.trainer.corpus import Corpus
from unmask.trainer.distributed.progress import Position, Progress
from unmask.trainer.pretrain import pretrain

LOSS = Corpus.loss


def slow_loss(self: Corpus, *arguments: Any) -> torch.Tensor:
    """Compute the loss of a part of a batch, and take a second for it."""
    time.sleep(1.0)
    return LOSS(self, *arguments)


def pretrain_slowly(rank: int, folder: Path) -> None:
    Corpus.loss = slow_loss  # type: ignore[method-assign]
    # Each rank owns 8 rows of 33 tokens, one at a time, so a step takes longer than stuck_timeout.
    overrides = ("batch_size=16", "max_tokens_per_forward=33", "max_steps=1", "stuck_timeout=6")
    pretrain(pretrain_recipe(folder, *overrides))


@pytest.mark.slow
def test_a_pretraining_step_that_is_longer_than_the_timeout_is_not_stuck(tmp_path: Path) -> None:
    assert exit_codes_of_two(pretrain_slowly, tmp_path / "run") == [0, 0]
    (line,) = read_metrics(tmp_path / "run")
    assert line["time/step"] > 6


def pretrain_and_hang(rank: int, folder: Path) -> None:
    losses = 0

    def loss_or_hang(self: Corpus, *arguments: Any) -> torch.Tensor:
        nonlocal losses
        losses += 1
        if (rank, losses) == (1, 3):
            signal.pause()
        return LOSS(self, *arguments)

    Corpus.loss = loss_or_hang  # type: ignore[method-assign]
    with printed(folder, rank).open("w") as file, contextlib.redirect_stderr(file):
        pretrain(pretrain_recipe(folder, "stuck_timeout=4"))


@pytest.mark.slow
def test_a_rank_that_hangs_in_pretraining_is_named_with_its_step_and_phase(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert exit_codes_of_two(pretrain_and_hang, folder) == [LostProcessError.exit_code] * 2
    (message,) = said(folder)
    assert message.startswith("LostProcessError: no rank has made progress for 4 s. ")
    assert "wait for rank 1 (step 3, update)" in message
    assert "loss_or_hang" in printed(folder, 1).read_text()


@pytest.mark.slow
def test_an_evaluation_is_a_line_of_its_own_which_readers_merge_with_that_of_its_step(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder = Trainer(train_recipe(tiny_model, tmp_path / "run")).train()
    lines = read_metric_lines(folder)
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 3, 4, 5, 6, 6]
    assert [bool(evaluations(line)) for line in lines] == [i in (0, 4, 8) for i in range(9)]
    merged = read_metrics(folder)
    assert [line["step"] for line in merged] == list(range(7))
    assert merged[3] == lines[3] | lines[4]


@pytest.mark.slow
def test_every_layer_and_every_file_of_a_final_model_counts_as_progress(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers.modeling_utils as transformers_saving

    from unmask.models import adapters, loading

    merge, save_file, begin = adapters.merged_weight, transformers_saving.safe_save_file, Progress.begin
    seen: dict[str, list[Position]] = {}
    mine: list[Progress] = []

    def noted(self: Progress, step: int, phase: str) -> None:
        mine[:] = [self]
        begin(self, step, phase)

    def published() -> None:
        (progress,) = mine
        progress._store = progress._store or StoreOfOne()
        (position,) = progress._exchange()
        seen.setdefault(f"{position.step} {position.phase}", []).append(position)

    def merge_slowly(*arguments: Any) -> torch.Tensor:
        published()
        return merge(*arguments)

    def save_slowly(*arguments: Any, **options: Any) -> None:
        save_file(*arguments, **options)
        published()

    monkeypatch.setattr(Progress, "begin", noted)
    monkeypatch.setattr(adapters, "merged_weight", merge_slowly)
    monkeypatch.setattr(transformers_saving, "safe_save_file", save_slowly)
    monkeypatch.setattr(loading, "SHARD_BYTES", 4000)
    recipe = train_recipe(
        tiny_model, tmp_path / "run", "lora={r: 2, alpha: 4}", "max_steps=1", "evaluation.split=validation"
    )
    folder = Trainer(recipe).train()
    for name in ("final", "best"):
        positions = seen[f"1 writing {name}/"]
        layers = len(load_file(folder / name / "adapter" / "adapter_model.safetensors")) // 2
        files = len(list((folder / name).glob("model-*.safetensors")))
        assert files > 3
        assert len(positions) == layers + files
        assert all(a.signs < b.signs for a, b in itertools.pairwise(positions))


@pytest.mark.slow
def test_an_extended_run_that_dies_before_its_final_model_is_not_taken_for_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("optim.lr_schedule=constant", "optim.warmup_steps=0")
    whole = pretrain(pretrain_recipe(tmp_path / "whole", *settings, "max_steps=8"))
    folder = pretrain(pretrain_recipe(tmp_path / "run", *settings))
    shorter, written_aside = weights(folder), RunFolder.written_aside

    def fail_for_final(self: RunFolder, target: Path) -> Any:
        if target == self.final:
            raise RunError("the disk is full.")
        return written_aside(self, target)

    extended = pretrain_recipe(tmp_path / "run", *settings, "max_steps=8")
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "written_aside", fail_for_final)
        with raises(RunError, "disk", snapshot=False):
            pretrain(extended, resume=True)
    assert metrics(folder)[-1]["step"] == 8
    assert weights(folder) == shorter
    pretrain(extended, resume=True)
    assert weights(folder) == weights(whole) != shorter

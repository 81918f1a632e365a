"""An error of torch that no memory is left becomes a message that names the settings to change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.helpers.messages import raises
from unmask.recipes.load import load, load_recipe
from unmask.recipes.schema import PretrainRecipe, TrainRecipe
from unmask.trainer.distributed.progress import Progress
from unmask.trainer.out_of_memory import MemoryFullError, memory_explained

TRAIN = load_recipe("sudoku-tiny", {"model": "none"})
PRETRAIN = load(PretrainRecipe, "sudoku-tiny-base")


def progress_in(tmp_path: Path, phase: str) -> Progress:
    progress = Progress(0, 1, 600.0, tmp_path)
    progress.begin(3, phase)
    return progress


@pytest.mark.parametrize(
    ("recipe", "phase", "word"),
    [
        (TRAIN, "update", "views_per_forward"),
        (TRAIN, "rollout and rewards", "rollout_batch_size"),
        (TRAIN, "evaluation", "evaluation.batch_size"),
        (TRAIN, "exchange of rollouts", "smaller model"),
        (PRETRAIN, "update", "lower max_tokens_per_forward or set"),
    ],
)
def test_the_message_names_the_phase_and_the_setting_to_change(
    tmp_path: Path, recipe: TrainRecipe | PretrainRecipe, phase: str, word: str
) -> None:
    with (
        raises(MemoryFullError, "no memory is left", word),
        memory_explained(progress_in(tmp_path, phase), recipe, lambda: "there is no checkpoint yet"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 33.00 GiB.")


def test_a_tensor_that_the_host_cannot_hold_is_explained_too(tmp_path: Path) -> None:
    with (
        pytest.raises(MemoryFullError, match="step 3, update: no memory is left"),
        memory_explained(progress_in(tmp_path, "update"), TRAIN, lambda: "there is no checkpoint yet"),
    ):
        torch.empty(2**55, dtype=torch.uint8)


def test_other_errors_pass_unchanged(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="shapes cannot be multiplied"),
        memory_explained(progress_in(tmp_path, "update"), TRAIN, lambda: "there is no checkpoint yet"),
    ):
        torch.ones(2, 3) @ torch.ones(2, 3)

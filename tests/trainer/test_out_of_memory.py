"""An error of torch that no memory is left becomes a message that names the settings to change."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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


NO_SHARDS = SimpleNamespace(distributed_type="MULTI_GPU")
SHARDS = SimpleNamespace(distributed_type="FSDP")
ZERO2 = SimpleNamespace(distributed_type="DEEPSPEED", deepspeed_plugin=SimpleNamespace(zero_stage=2))


def explained(
    tmp_path: Path, recipe: TrainRecipe | PretrainRecipe, phase: str, accelerator: Any = NO_SHARDS
) -> AbstractContextManager[None]:
    progress = progress_in(tmp_path, phase)
    return memory_explained(progress, recipe, accelerator, lambda: "there is no checkpoint yet")


@pytest.mark.parametrize(
    ("recipe", "phase", "word"),
    [
        (TRAIN, "update", "views_per_forward"),
        (TRAIN, "rollout and rewards", "rollout_batch_size"),
        (TRAIN, "evaluation", "evaluation.batch_size"),
        (TRAIN, "exchange of rollouts", "smaller model"),
        (PRETRAIN, "update", "set max_tokens_per_forward below"),
    ],
)
def test_the_message_names_the_phase_and_the_setting_to_change(
    tmp_path: Path, recipe: TrainRecipe | PretrainRecipe, phase: str, word: str
) -> None:
    with raises(MemoryFullError, "no memory is left", word), explained(tmp_path, recipe, phase):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 33.00 GiB.")


LORA = "lora={r: 2, alpha: 4}"
FOUR_BITS = "lora={r: 2, alpha: 4, quantize: 4bit}"
REFERENCE = "method.beta=0.04"


@pytest.mark.parametrize(
    ("phase", "overrides", "accelerator", "named", "not_named"),
    [
        # A limit of tokens replaces both numbers of rows.
        ("update", ["max_tokens_per_forward=4096"], NO_SHARDS, "lower max_tokens", "views_per_forward"),
        ("rollout and rewards", ["max_tokens_per_forward=4096"], NO_SHARDS, "lower max_tokens", "rollout_batch_size"),
        ("evaluation", ["max_tokens_per_forward=auto"], NO_SHARDS, "max_tokens.json", "batch_size"),
        # The measurement is refused where a rank that fails would block the others.
        ("rollout and rewards", [], ZERO2, "lower rollout_batch_size", "auto"),
        # What the recipe has already.
        ("update", ["gradient_checkpointing=true"], NO_SHARDS, "views_per_forward", "gradient_checkpointing"),
        ("update", [REFERENCE], NO_SHARDS, "set reference_offload = true", "rollout"),
        ("update", [REFERENCE, "reference_offload=true"], NO_SHARDS, "views_per_forward", "reference_offload"),
        ("update", [REFERENCE, LORA], NO_SHARDS, "views_per_forward", "reference_offload"),
        # Weights of rollouts.
        ("rollout and rewards", [LORA], NO_SHARDS, "set rollout_weights = whole", "sharded"),
        ("evaluation", [LORA, "rollout_weights=whole"], NO_SHARDS, "batch_size", "rollout_weights"),
        ("evaluation", [], NO_SHARDS, "batch_size", "rollout_weights"),
        ("rollout and rewards", [FOUR_BITS], SHARDS, "rollout_batch_size", "rollout_weights"),
        ("rollout and rewards", [LORA], SHARDS, "set rollout_weights = sharded", "whole"),
        ("rollout and rewards", ["rollout_weights=sharded"], SHARDS, "rollout_batch_size", "rollout_weights"),
        # What a resumed run cannot change.
        ("set-up", ["precision=float32"], NO_SHARDS, "also set precision = bf16 or lora, which", "4bit"),
        ("set-up", ["precision=bf16", LORA], NO_SHARDS, "the preset fsdp2", "precision"),
        ("set-up", ["precision=bf16", LORA], NO_SHARDS, "lora.quantize = 4bit", "reference_offload"),
        ("set-up", ["precision=bf16", LORA], SHARDS, "smaller model", "4bit"),
    ],
)
def test_the_advice_follows_from_the_values_of_the_recipe(
    tmp_path: Path, phase: str, overrides: list[str], accelerator: Any, named: str, not_named: str
) -> None:
    recipe = load_recipe("sudoku-tiny", ["model=none", *overrides])
    with pytest.raises(MemoryFullError) as caught, explained(tmp_path, recipe, phase, accelerator):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    assert named in str(caught.value)
    assert not_named not in str(caught.value)


def test_a_tensor_that_the_host_cannot_hold_is_explained_too(tmp_path: Path) -> None:
    with (
        pytest.raises(MemoryFullError, match="step 3, update: no memory is left"),
        explained(tmp_path, TRAIN, "update"),
    ):
        torch.empty(2**55, dtype=torch.uint8)


def test_other_errors_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), explained(tmp_path, TRAIN, "update"):
        torch.ones(2, 3) @ torch.ones(2, 3)

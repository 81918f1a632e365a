"""What the trainer promises of every method alike: a run that was cut off ends as one that was not; memory of one chunk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from tests.helpers.interrupted import Interrupted
from tests.helpers.messages import raises
from tests.helpers.rollouts import collect
from tests.helpers.runs import SWITCHES, method_overrides, steps_saved, train_recipe, weights
from unmask.core.errors import RewardError
from unmask.functional.noise import named_generator
from unmask.methods import METHODS
from unmask.models import Denoiser, char_tokenizer
from unmask.rewards import per_completion
from unmask.rewards.scorer import Scorer
from unmask.tasks import Sudoku
from unmask.trainer import Trainer
from unmask.trainer.learn import Learner
from unmask.trainer.metrics import Tally
from unmask.trainer.reference import FrozenCopy
from unmask.trainer.view_batches import ViewBatches

pytestmark = pytest.mark.slow

SETTINGS = (
    "max_steps=2",
    "save_steps=1",
    "num_prompts=4",
    "num_generations=3",
    "num_iterations=2",
    "num_minibatches=2",
    "views_per_forward=7",
    "sampler.top_p=0.95",
    "evaluation.eval_steps=0",
    "evaluation.num_rows=2",
    "optim.learning_rate=1.0e-3",
)


@per_completion
def ones(completions: list[str], **_: Any) -> list[float]:
    return [text.count("1") + 0.1 * len(text) for text in completions]


@pytest.mark.parametrize("method", [*METHODS, *SWITCHES])
def test_a_run_that_was_cut_off_ends_bit_for_bit_as_one_that_was_not(
    method: str, tiny_model: Path, tmp_path: Path
) -> None:
    settings = method_overrides(method)
    whole = Trainer(train_recipe(tiny_model, tmp_path / "whole", *SETTINGS, *settings), [ones]).train()
    recipe = train_recipe(tiny_model, tmp_path / "cut", *SETTINGS, *settings)
    needs = recipe.method.needs()
    # In the second step: a call of its own scores one-step completions and branches.
    calls = 2 if needs.greedy or needs.branches else 1
    with raises(RewardError, "answers", snapshot=False):
        Trainer(recipe, [Interrupted(ones, calls + 1)]).train()
    assert steps_saved(tmp_path / "cut") == [1]
    resumed = Trainer(recipe, [ones], resume=True).train()
    assert weights(resumed) == weights(whole)
    assert weights(whole) != (tiny_model / "model.safetensors").read_bytes(), "it learnt something"


class Saved:
    """Counts the bytes that autograd holds, from when it saves a tensor until it lets go of it."""

    live = peak = 0

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
        Saved.live += self.size
        Saved.peak = max(Saved.peak, Saved.live)

    def __del__(self) -> None:
        Saved.live -= self.size


def peak_of_an_update(denoiser: Denoiser, folder: Path, method: str) -> int:
    """Bytes that autograd holds at most at one time in the trainer's own update."""
    tokenizer = char_tokenizer(Sudoku().alphabet)
    order = "sampler.order=" + ("plackett_luce" if "mask_aware" in method else "random")
    shape = ("sampler.num_steps=16", "num_minibatches=1", "views_per_forward=8")
    recipe = train_recipe(folder, folder, *SETTINGS, *shape, order, method)
    rows = Sudoku().rows("train", 4)
    rollout = collect(denoiser, tokenizer, Scorer({"ones": ones}), recipe, rows, 0, slice(None), Tally())
    accelerator = Accelerator()
    optimizer = accelerator.prepare(torch.optim.AdamW(denoiser.parameters(), lr=1e-6))
    reference = FrozenCopy.of(denoiser, "cpu")
    learner = Learner(accelerator, denoiser, optimizer, reference, recipe)
    Saved.live = Saved.peak = 0
    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        learner.update(rollout, 0, named_generator(0, "update", 0), Tally())
    return Saved.peak


@pytest.mark.parametrize(
    ("method", "option", "few", "many"),
    [
        ("espo", "num_samples", 1, 16),
        ("gdpo", "num_nodes", 2, 32),
        ("spg", "num_views", 2, 32),
        ("vrpo", "num_samples", 2, 32),
        ("mask_aware", "num_segments: 0, num_sampled", 2, 16),
        ("egspo", "num_selected", 2, 16),
    ],
)
def test_memory_at_32_views_of_a_completion_is_that_at_2(
    lively: Denoiser, tmp_path: Path, method: str, option: str, few: int, many: int
) -> None:
    small, large = (
        peak_of_an_update(lively, tmp_path, f"method={{type: {method}, {option}: {number}}}") for number in (few, many)
    )
    assert small > 1e5
    assert large <= 1.1 * small


def test_the_measure_of_memory_can_fail(lively: Denoiser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    espo = "method={type: espo, num_samples: 4}"
    chunked = peak_of_an_update(lively, tmp_path, espo)
    whole = ViewBatches.of
    monkeypatch.setattr(ViewBatches, "of", lambda views, path, *_, **__: whole(views, path, len(views), None))
    assert peak_of_an_update(lively, tmp_path, espo) > 3 * chunked

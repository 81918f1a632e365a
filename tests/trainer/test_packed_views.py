"""Tests of updates of a block-causal model, whose views share forward passes: the loss and the
gradient are those of one view in each forward pass, and the tokens are fewer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from tests.helpers.rollouts import collect, trajectory
from tests.helpers.runs import OWN_SETTINGS, train_recipe
from unmask.core.config import LoraConfig
from unmask.core.records import Trajectory, Views
from unmask.functional.noise import named_generator
from unmask.models import Denoiser, TinyConfig, char_tokenizer, tiny_denoiser
from unmask.models.adapters import Adapters
from unmask.rewards import per_completion
from unmask.rewards.scorer import Scorer
from unmask.sampling.noisy_copies import Packing
from unmask.tasks import Sudoku
from unmask.trainer.learn import Learner
from unmask.trainer.metrics import Tally, TokenPasses
from unmask.trainer.model_limits import packing_of
from unmask.trainer.reference import FrozenCopy
from unmask.trainer.view_batches import ViewBatches

TOKENIZER = char_tokenizer(Sudoku().alphabet)
SETTINGS = (
    "sampler.num_steps=8",
    "sampler.block_length=4",
    "num_prompts=2",
    "num_generations=2",
    "optim.learning_rate=1.0",
    "optim.warmup_steps=0",
    "max_steps=1",
)


@per_completion
def ones(completions: list[str], **_: Any) -> list[float]:
    return [text.count("1") + 0.1 * len(text) for text in completions]


def block_causal(layers: int = 2) -> Denoiser:
    """Return a small block-causal denoiser whose logits depend on every input."""
    denoiser = tiny_denoiser(TinyConfig(num_layers=layers, width=16, num_heads=2), TOKENIZER, seed=0)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            if parameter.dim() > 1:
                parameter.mul_(20.0)
    denoiser.block_length = 4
    # No token is EOS, so every step commits tokens.
    denoiser.eos_id = -1
    return denoiser.eval()


def updated(folder: Path, *overrides: str, change: Any = None) -> tuple[dict[str, float], torch.Tensor, int]:
    """Return the metrics of a training step, the change of the weights under plain gradient descent,
    and the token passes of the update."""
    recipe = train_recipe(folder, folder, *SETTINGS, *overrides)
    denoiser, accelerator, tally = block_causal(), Accelerator(), Tally()
    if change is not None:
        change(denoiser)
    rollout = collect(denoiser, TOKENIZER, Scorer({"ones": ones}), recipe, Sudoku().rows("train", 2))
    before = [weight.detach().clone() for weight in denoiser.parameters()]
    weights = [weight for weight in denoiser.parameters() if weight.requires_grad]
    optimizer = accelerator.prepare(torch.optim.SGD(weights, lr=1e-3))
    reference = FrozenCopy.of(block_causal(), "cpu")
    passes = TokenPasses(denoiser)
    limit = recipe.max_tokens_per_forward
    assert limit != "auto"
    learner = Learner(accelerator, denoiser, optimizer, reference, recipe, limit)
    learner.update(rollout, 0, named_generator(0, "update", 0), tally)
    moved = torch.cat([(a - b).detach().flatten() for a, b in zip(denoiser.parameters(), before, strict=True)])
    return tally.reduce(accelerator), moved, passes.take()


RUNS: dict[str, tuple[str, ...]] = {
    **{
        method: (f"method.type={method}", *OWN_SETTINGS.get(method, ()))
        for method in ("agrpo", "coupled_grpo", "dispo", "egspo_ca", "espo", "just_grpo", "spg", "step_merge", "vrpo")
    },
    "all states": ("method={type: egspo, step_choice: all, beta: 0.04, kl: exact}", "num_minibatches=2"),
    "mask_aware": (
        "method={type: mask_aware, num_segments: 0, num_sampled: 4}",
        "sampler.order=plackett_luce",
        "num_iterations=2",
    ),
    "guidance": ("method={type: egspo, step_choice: all, beta: 0}", "sampler.guidance=0.5"),
    "support": ("method={type: agrpo, mc_samples: 4}", "sampler.top_k=4", "sampler.top_p=0.9"),
    "weights of completions": ("method={type: espo, num_samples: 2}", "behaviour={level: sequence, normalise: true}"),
}


def assert_same(one: tuple[dict[str, float], torch.Tensor, int], other: tuple[dict[str, float], torch.Tensor, int]):
    """Assert that two updates agree to rounding."""
    assert one[1].norm() > 1e-6, "it learnt something"
    assert (one[1] - other[1]).norm() < 1e-4 * other[1].norm()
    same = {name: value for name, value in one[0].items() if not name.startswith("time")}
    assert same == pytest.approx(other[0], rel=1e-4, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_an_update_with_packed_views_is_that_of_one_view_in_each_forward_pass(name: str, tmp_path: Path) -> None:
    packed = updated(tmp_path, *RUNS[name])
    alone = updated(tmp_path, *RUNS[name], "views_per_forward=1")
    assert_same(packed, alone)
    # Rows of a batch are padded to the longest.
    assert packed[2] <= 1.05 * alone[2]


@pytest.mark.parametrize("overrides", [("max_tokens_per_forward=60",), ("views_per_forward=5",)], ids=str)
def test_limits_change_the_batches_and_not_the_update(overrides: tuple[str, ...], tmp_path: Path) -> None:
    settings = ("method={type: egspo, step_choice: all, beta: 0}",)
    assert_same(updated(tmp_path, *settings, *overrides), updated(tmp_path, *settings))


def test_adapters_and_checkpoints_score_packed_views_alike(tmp_path: Path) -> None:
    def adapted(denoiser: Denoiser) -> None:
        Adapters(denoiser, LoraConfig(r=2, alpha=4.0))
        with torch.no_grad():
            for weight in denoiser.parameters():
                if weight.requires_grad:
                    weight.add_(0.1)

    def checkpointed(denoiser: Denoiser) -> None:
        adapted(denoiser)
        denoiser.checkpoint_gradients()

    settings = ("method={type: egspo, step_choice: all, beta: 0}",)
    packed = updated(tmp_path, *settings, change=adapted)
    assert_same(updated(tmp_path, *settings, change=checkpointed), packed)
    assert_same(packed, updated(tmp_path, *settings, "views_per_forward=1", change=adapted))


def test_all_states_of_a_path_take_a_fraction_of_the_tokens(tmp_path: Path) -> None:
    settings = ("method={type: egspo, step_choice: all, beta: 0}",)
    packed, alone = (updated(tmp_path, *settings, *more)[2] for more in ((), ("views_per_forward=1",)))
    # Eight states of a completion with a prompt of 17 tokens: one row of 17 + 12 + 8 x 4 columns, or
    # eight of 17 + 4, 17 + 4, 17 + 8, ..., 17 + 16.
    assert packed / alone == pytest.approx(61 / 216)


# Batches


def views_of_states(num_completions: int) -> Views:
    """Return the 8 states of each completion of 16 positions in blocks of four."""
    row = torch.arange(num_completions).repeat_interleave(8)
    step = torch.arange(8).repeat(num_completions).unsqueeze(-1)
    when = torch.arange(16) // 2
    ones = torch.ones(len(row))
    return Views(row, when >= step, when == step, ones, torch.zeros_like(row))


def paths(num_completions: int) -> Trajectory:
    """Return completions of 16 positions with prompts of 3 tokens."""
    path = trajectory(num_completions, greedy=False)
    long = {name: torch.zeros(num_completions, 16) for name in ("logprob", "entropy")}
    long |= {name: torch.full((num_completions, 16), 5) for name in ("tokens", "unmask_step")}
    return replace(path, prompt_mask=torch.ones(num_completions, 3, dtype=torch.bool), **long)


@pytest.mark.parametrize("max_tokens", [None, 50, 100, 150, 1000])
@pytest.mark.parametrize("by_completion", [False, True])
def test_batches_of_packs_keep_to_the_limit_and_hold_every_view_once(
    max_tokens: int | None, by_completion: bool
) -> None:
    views, path, packing = views_of_states(6), paths(6), Packing(4, 16)
    batches = ViewBatches.of(views, path, 20, max_tokens, by_completion=by_completion, packing=packing)
    assert sorted(torch.cat(batches.indices).tolist()) == list(range(48))
    for index, batch in batches:
        assert batch.pack is not None
        _, sizes = packing.packs(views.take(index), path, 20, max_tokens)
        columns = len(batch.pack.unique()) * max(map(sum, sizes))
        if max_tokens is None:
            assert len(index) <= 20
        elif not by_completion or max_tokens > 60:
            assert columns <= max_tokens
        if by_completion:
            assert set(batch.row.bincount().tolist()) <= {0, 8}
        assert index.tolist() == sorted(index.tolist())


def test_only_block_causal_models_have_packs(lively: Denoiser) -> None:
    assert packing_of(lively) is None
    assert packing_of(block_causal()) == Packing(4, 16)
    assert packing_of(torch.nn.Linear(1, 1)) is None


PASTS = {
    **dict.fromkeys(("bgpo", "diffu_grpo", "ebpo", "espo", "mask_aware", "step_merge", "unigrpo", "vrpo"), {True}),
    **dict.fromkeys(("agrpo", "egspo", "egspo_ca", "spg"), {False}),
    "dispo": {True, False},
}
"""What blocks are conditioned on under a method: the clean past, or the masks of the view."""


def test_a_likelihood_has_the_clean_past_and_a_state_shows_what_the_policy_saw(tmp_path: Path) -> None:
    for method, expected in PASTS.items():
        recipe = train_recipe(tmp_path, tmp_path, *SETTINGS, f"method.type={method}", *OWN_SETTINGS.get(method, ()))
        rollout = collect(block_causal(1), TOKENIZER, Scorer({"ones": ones}), recipe, Sudoku().rows("train", 2))
        clean = recipe.method.plan(rollout, torch.Generator().manual_seed(0)).sees_clean_past
        assert ({False} if clean is None else set(clean.tolist())) == expected, method

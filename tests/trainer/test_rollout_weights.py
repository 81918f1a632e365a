"""Tests of the weights that rollouts read: merged adapters change no trajectory, and training
weights stay as they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from tests.helpers.adapters import train_by_hand
from tests.helpers.runs import metrics, train_recipe
from unmask.core.records import Trajectory
from unmask.models import Policy
from unmask.recipes.schema import TrainRecipe
from unmask.sampling.engine import BatchLimits, LocalEngine
from unmask.trainer import Trainer
from unmask.trainer.distributed.ranks import Ranks
from unmask.trainer.distributed.shards import holder_of
from unmask.trainer.policy import TrainedPolicy, make_policy
from unmask.trainer.rollout_weights import RolloutWeights

LORA = "lora={r: 2, alpha: 16}"


def adapted(model: Path, *overrides: str) -> tuple[TrainRecipe, TrainedPolicy]:
    """Return a recipe, and a policy with adapters that change its predictions."""
    recipe = train_recipe(model, Path("unused"), LORA, *overrides)
    policy = make_policy(recipe, torch.device("cpu"))
    assert policy.adapters is not None
    train_by_hand(policy.adapters)
    return recipe, policy


def engine_of(recipe: TrainRecipe, policy: TrainedPolicy) -> tuple[LocalEngine, RolloutWeights]:
    accelerator = Accelerator(cpu=True)
    weights = RolloutWeights(policy, recipe, accelerator)
    holder, ranks = holder_of(accelerator, policy.denoiser, policy.optimizers), Ranks(accelerator)
    opened = lambda: weights.opened(holder, ranks)  # noqa: E731
    return LocalEngine(Policy(policy.denoiser, policy.tokenizer), BatchLimits(3), opened), weights


def rollout(engine: LocalEngine, recipe: TrainRecipe) -> Trajectory:
    prompts = ["1=", "12", "0=3", "4", "2=0"] * 2
    return engine.rollout(prompts, recipe.sampler, torch.arange(len(prompts)))


def test_merged_and_separate_adapters_give_the_same_trajectories(tiny_model: Path) -> None:
    recipe, policy = adapted(tiny_model)
    engine, weights = engine_of(recipe, policy)
    assert policy.adapters is not None
    with torch.no_grad():
        separate = rollout(engine, recipe)
        with policy.adapters.off():
            without = rollout(engine, recipe)
        with engine.session():
            merged = rollout(engine, recipe)
    assert torch.equal(merged.tokens, separate.tokens)
    assert torch.equal(merged.unmask_step, separate.unmask_step)
    torch.testing.assert_close(merged.logprob, separate.logprob, rtol=0, atol=1e-5)
    # The adapters matter in this comparison, and the merged weights are not those of training.
    assert not torch.equal(without.tokens, separate.tokens)
    assert not torch.equal(merged.logprob, separate.logprob)
    assert [type(module).__name__ for module in weights.modules()] == ["Denoiser"]


def test_a_block_of_rollouts_leaves_no_trace_in_the_weights_of_training(tiny_model: Path) -> None:
    recipe, policy = adapted(tiny_model)
    engine, weights = engine_of(recipe, policy)
    (shell,) = weights.modules()
    before = [(name, p, p.data_ptr(), p.detach().clone()) for name, p in policy.denoiser.named_parameters()]
    with torch.no_grad(), engine.session():
        rollout(engine, recipe)
        inside = dict(shell.named_parameters())
        assert not any("lora" in name or "base_layer" in name for name in inside)
        # Only the adapted layers have weights of their own.
        own = {name for name, p in inside.items() if p.data_ptr() not in {address for _, _, address, _ in before}}
        assert own == {
            name.replace(".base_layer.", ".")
            for name, _ in policy.denoiser.named_parameters()
            if name.endswith("base_layer.weight")
        }
    assert all(p.is_meta for p in shell.parameters())
    for (name, p, address, value), (name_after, after) in zip(before, policy.denoiser.named_parameters(), strict=True):
        assert (name, address) == (name_after, after.data_ptr())
        assert p is after
        assert torch.equal(after, value)


def test_rollouts_read_the_model_itself_where_nothing_is_merged_or_gathered(tiny_model: Path) -> None:
    for overrides in (["rollout_weights=whole"], ["rollout_weights=sharded"]):
        recipe, policy = adapted(tiny_model, *overrides)
        assert engine_of(recipe, policy)[1].modules() == []
    recipe, policy = adapted(tiny_model)
    # What transformers sets for weights in 4 bits, into which nothing can be added.
    policy.denoiser.backbone.is_quantized = True
    assert engine_of(recipe, policy)[1].modules() == []
    recipe = train_recipe(tiny_model, Path("unused"))
    assert engine_of(recipe, make_policy(recipe, torch.device("cpu")))[1].modules() == []


@torch.no_grad()
def test_merged_bfloat16_weights_keep_an_update_below_their_spacing(tiny_model: Path) -> None:
    recipe = train_recipe(tiny_model, Path("unused"), LORA, "precision=bf16")
    policy = make_policy(recipe, torch.device("cpu"))
    assert policy.adapters is not None
    train_by_hand(policy.adapters)
    layers = {name: module for name, module in policy.denoiser.named_modules() if hasattr(module, "base_layer")}
    for layer in layers.values():
        # Training makes updates of this size at first, and bfloat16 numbers around 0.02 are 1e-4 apart.
        layer.lora_B["default"].weight *= 1e-5 / layer.get_delta_weight("default").abs().mean()
    updates = {name: layer.get_delta_weight("default").float() for name, layer in layers.items()}
    own = policy.denoiser.backbone.state_dict()
    to_nearest = policy.adapters.merging(own, torch.Tensor.detach, at_random=False)
    nearest = {f"backbone.{name}": weight for name, weight in to_nearest}
    saved = {f"backbone.{name}": weight for name, weight in policy.adapters.merged().items()}
    engine, weights = engine_of(recipe, policy)
    (shell,) = weights.modules()
    with engine.session():
        read = dict(shell.named_parameters())

    def kept(merged: Mapping[str, torch.Tensor]) -> float:
        """Return the projection of the change of the weights on the update; 1 keeps all of it."""
        change = {name: merged[f"{name}.weight"].float() - layers[name].base_layer.weight.float() for name in updates}
        along = sum((change[name] * update).sum() for name, update in updates.items())
        return float(along / sum(update.square().sum() for update in updates.values()))

    assert kept(read) == pytest.approx(1.0, abs=0.15)
    # A saved model has the same bits.
    assert all(torch.equal(read[f"{name}.weight"], saved[f"{name}.weight"]) for name in updates)
    # Negative control: rounding to the nearest number drops much of the update.
    assert kept(nearest) < 0.7


@pytest.mark.slow
def test_a_run_with_merged_rollouts_is_that_with_separate_adapters_up_to_rounding(
    tiny_model: Path, tmp_path: Path
) -> None:
    settings = (LORA, "optim.learning_rate=1e-2", "max_steps=3", "method.beta=0.04", "evaluation.temperatures=[0.9]")
    lines, adapted = {}, Counter[str]()
    for value in ("merged", "whole"):
        recipe = train_recipe(tiny_model, tmp_path / value, *settings, f"rollout_weights={value}")

        def count(layer: nn.Module, *_: object, value: str = value) -> None:
            adapted[value] += hasattr(layer, "lora_A") and not torch.is_grad_enabled()

        handle = nn.modules.module.register_module_forward_hook(count)
        Trainer(recipe).train()
        handle.remove()
        lines[value] = metrics(tmp_path / value)
    # The setting has an effect: merged rollouts run no adapters.
    assert 0 < adapted["merged"] < adapted["whole"] / 2
    for merged, whole in zip(lines["merged"], lines["whole"], strict=True):
        assert merged.keys() == whole.keys()
        for name, number in whole.items():
            assert merged[name] == pytest.approx(number, rel=1e-4, abs=1e-5), name

"""The critic: its features, what it learns from which steps, and its metrics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from tests.helpers.adapters import build
from tests.helpers.rollouts import collect, trajectory
from tests.helpers.runs import metrics, train_recipe
from unmask.core.records import Rollout, Views
from unmask.functional.least_squares import ridge_regression, second_moments
from unmask.models import Denoiser, TinyConfig, char_tokenizer, tiny_denoiser
from unmask.rewards import per_completion
from unmask.rewards.scorer import Scorer
from unmask.sampling.pooled_states import pooled_states
from unmask.tasks import Sudoku
from unmask.trainer import Trainer
from unmask.trainer.critic import Critic, blank_moments
from unmask.trainer.distributed.ranks import Ranks
from unmask.trainer.learn import Learner
from unmask.trainer.metrics import Tally
from unmask.trainer.passes import UpdatePasses
from unmask.trainer.reference import FrozenCopy


@per_completion
def ones(completions: list[str], **_: object) -> list[float]:
    return [text.count("1") / 4 + 0.1 * len(text) for text in completions]


def rollout_of(denoiser: Denoiser, folder: Path, step: int = 0, method: str = "{type: egspo, baseline: critic}"):
    """Return the recipe of a method with a critic, and the rollout of a training step."""
    settings = ("num_prompts=4", "num_generations=4", "sampler.num_steps=8", "sampler.order=random")
    recipe = train_recipe(folder, folder, f"method={method}", *settings)
    tokenizer, rows = char_tokenizer(Sudoku().alphabet), Sudoku().rows("train", 4)
    return recipe, collect(denoiser, tokenizer, Scorer({"ones": ones}), recipe, rows, step)


def critic_of(denoiser: Denoiser, recipe, size: int | None = None) -> Critic:
    passes = UpdatePasses(recipe.model_copy(update={"views_per_forward": size}))
    return Critic(denoiser, blank_moments(denoiser, "cpu"), recipe, passes, Ranks(Accelerator()))


def state_views(rollout: Rollout, steps: torch.Tensor) -> Views:
    row, slot = (steps >= 0).nonzero(as_tuple=True)
    hidden = rollout.trajectory.unmask_step[row] >= steps[row, slot].unsqueeze(-1)
    return Views(row=row, hidden=hidden, target=hidden, weight=torch.ones(len(row)), slot=slot)


# Features


def test_the_features_are_the_mean_of_the_last_hidden_states_over_the_completion(lively, tmp_path):
    recipe, rollout = rollout_of(lively, tmp_path)
    path = rollout.trajectory
    views = state_views(rollout, recipe.method.critic_steps(rollout))
    state = path.tokens[views.row].masked_fill(views.hidden, path.mask_id)
    ids = torch.cat([path.prompt_ids[views.row], state], dim=1)
    with torch.no_grad():
        hidden = lively.backbone.base_model(input_ids=ids).last_hidden_state
        pooled = pooled_states(lively, path, views)
    torch.testing.assert_close(pooled, hidden[:, -state.shape[1] :].mean(1), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(pooled, hidden.mean(1), atol=1e-2)


@torch.no_grad()
def test_they_depend_on_the_state_alone(lively, tmp_path):
    recipe, rollout = rollout_of(lively, tmp_path)
    path = rollout.trajectory
    views = state_views(rollout, torch.full((16, 1), 4))
    before = pooled_states(lively, path, views)
    # Other tokens at masked positions are the action and what follows; they are not seen.
    to_come = torch.where(views.hidden, path.eos_id, path.tokens)
    assert torch.equal(pooled_states(lively, replace(path, tokens=to_come), views), before)
    committed = torch.where(views.hidden, path.tokens, path.eos_id)
    assert not torch.allclose(pooled_states(lively, replace(path, tokens=committed), views), before)
    padded = {
        "prompt_ids": torch.nn.functional.pad(path.prompt_ids, (3, 0)),
        "prompt_mask": torch.nn.functional.pad(path.prompt_mask, (3, 0)),
    }
    torch.testing.assert_close(pooled_states(lively, replace(path, **padded), views), before)


@torch.no_grad()
def test_a_state_of_a_block_causal_model_shows_its_later_blocks_as_masks(tmp_path):
    denoiser = build("Qwen3ForCausalLM")
    denoiser.block_length = 4
    generator = torch.Generator().manual_seed(0)
    path = trajectory(4, prompt_length=4, greedy=False)
    path = replace(
        path,
        tokens=torch.randint(3, 9, (4, 8), generator=generator),
        unmask_step=torch.tensor([[0, 1, 0, 1, 2, 2, 2, 2]] * 4).int(),
        logprob=torch.zeros(4, 8),
        entropy=torch.zeros(4, 8),
        prompt_mask=torch.ones(4, 4, dtype=torch.bool),
    )
    hidden = path.unmask_step >= 1
    views = Views(torch.arange(4), hidden, hidden, torch.ones(4), torch.zeros(4, dtype=torch.long))
    pooled = pooled_states(denoiser, path, views)
    other = replace(path, tokens=torch.where(hidden, 8, path.tokens))
    assert torch.equal(pooled_states(denoiser, other, views), pooled)
    shown = replace(path, tokens=torch.where(hidden, path.tokens, 8))
    assert not torch.allclose(pooled_states(denoiser, shown, views), pooled)


# Learning


def test_the_values_come_from_the_returns_of_earlier_steps_alone(lively, tmp_path):
    recipe, rollout = rollout_of(lively, tmp_path)
    critic, method = critic_of(lively, recipe), recipe.method
    first = critic.valued(rollout)
    assert not first.rollout.value.any()
    critic.learn(first, [], Tally())
    recipe, later = rollout_of(lively, tmp_path, step=1)
    expected = torch.zeros(())
    moments = torch.zeros_like(critic.moments)
    for number, each in enumerate((rollout, later)):
        views = state_views(each, method.critic_steps(each))
        with torch.no_grad():
            features = pooled_states(lively, each.trajectory, views)
        if number:
            intercept, slopes = ridge_regression(moments, recipe.critic.ridge)
            expected = (intercept + features.double() @ slopes).float()
        # Each completion weighs 1.
        sums = second_moments(features, each.reward[views.row], 1 / views.row.bincount()[views.row])
        moments = recipe.critic.decay * moments + sums
    # In batches of seven states.
    valued = critic_of(lively, recipe, 7)
    valued.moments.copy_(critic.moments)
    value = valued.valued(later).rollout.value
    torch.testing.assert_close(value[views.row, views.slot], expected, rtol=1e-4, atol=1e-5)
    assert value.std() > 1e-3
    critic.learn(critic.valued(later), [], Tally())
    torch.testing.assert_close(critic.moments, moments, rtol=1e-6, atol=1e-6)


def test_it_learns_a_return_that_its_features_show(lively, tmp_path):
    # The share of masked positions is visible in a state, and so is a return made of it.
    recipe, _ = rollout_of(lively, tmp_path)
    recipe = recipe.model_copy(update={"critic": recipe.critic.model_copy(update={"ridge": 1.0, "decay": 1.0})})
    critic, tallies = critic_of(lively, recipe), []
    for step in range(6):
        _, rollout = rollout_of(lively, tmp_path, step)
        valued = critic.valued(rollout)
        views = state_views(rollout, recipe.method.critic_steps(rollout))
        returns = views.hidden.float().mean(-1)
        tallies.append(Tally())
        errors = returns - valued.rollout.value[views.row, views.slot]
        critic.learn(valued, [(views, errors)], tallies[-1])
    explained = [tally.reduce(Accelerator())["critic/explained_variance"] for tally in tallies]
    assert explained[0] == 0
    assert explained[-1] > 0.6


def test_further_updates_of_a_rollout_do_not_change_what_the_critic_learns(lively, tmp_path):
    # The soft returns are those of the policy that drew the paths, and not of the weights of the last update.
    method = "{type: trajectory_balance, subpath_steps: 2, alpha: 0.5}"
    recipe, rollout = rollout_of(lively, tmp_path, method=method)
    fast = recipe.optim.model_copy(update={"learning_rate": 0.01, "warmup_steps": 0})
    recipe = recipe.model_copy(update={"optim": fast})
    reference = FrozenCopy.of(
        tiny_denoiser(TinyConfig(num_layers=2, width=16, num_heads=2), char_tokenizer(Sudoku().alphabet), 1), "cpu"
    )
    learned, start = [], {name: value.clone() for name, value in lively.state_dict().items()}
    for settings in ({"num_iterations": 1}, {"num_iterations": 3}, {"num_minibatches": 2}):
        lively.load_state_dict(start)
        optimizer, moments = torch.optim.AdamW(lively.parameters()), blank_moments(lively, "cpu")
        accelerator = Accelerator()
        arguments = (accelerator, lively, accelerator.prepare(optimizer), reference, recipe.model_copy(update=settings))
        learner = Learner(*arguments, critic=moments)
        learner.update(rollout, 0, torch.Generator().manual_seed(0), Tally())
        learned.append(moments)
    for other in learned[1:]:
        torch.testing.assert_close(other, learned[0], rtol=1e-5, atol=1e-5)
    assert max(float((value - start[name]).abs().max()) for name, value in lively.state_dict().items()) > 5e-3
    rewards = rollout.reward.double().square().sum()
    assert (learned[0][-1, -1] - rewards).abs() > 1, "soft returns are not the rewards"


def test_the_metrics_are_those_of_the_values_before_they_learn(lively, tmp_path):
    recipe, rollout = rollout_of(lively, tmp_path)
    critic, tally = critic_of(lively, recipe), Tally()
    generator = torch.Generator().manual_seed(0)
    valued = critic.valued(rollout)
    values = torch.rand(valued.is_valued.shape, generator=generator)
    critic.learn(replace(valued, rollout=replace(valued.rollout, value=values)), [], tally)
    found = tally.reduce(Accelerator())
    is_valued = recipe.method.critic_steps(rollout) >= 0
    value, returns = values[is_valued], rollout.reward.unsqueeze(-1).expand_as(values)[is_valued]
    assert found["critic/loss"] == pytest.approx(float((value - returns).square().mean()), rel=1e-5)
    assert found["critic/value"] == pytest.approx(float(value.mean()), rel=1e-5)
    explained = 1 - float((returns - value).var() / returns.var())
    assert found["critic/explained_variance"] == pytest.approx(explained, rel=1e-5)
    correlation = float(torch.corrcoef(torch.stack([value, returns]))[0, 1])
    assert found["critic/correlation"] == pytest.approx(correlation, rel=1e-4)


def test_equal_returns_have_no_explained_variance(lively, tmp_path):
    recipe, rollout = rollout_of(lively, tmp_path)
    critic, tally = critic_of(lively, recipe), Tally()
    valued = critic.valued(replace(rollout, reward=torch.ones_like(rollout.reward)))
    critic.learn(valued, [], tally)
    assert tally.reduce(Accelerator()).keys() == {"critic/loss", "critic/value"}


# Runs


@pytest.mark.slow
def test_a_run_with_a_critic_starts_each_update_at_ratio_one(tiny_model, tmp_path):
    settings = ("method={type: egspo, num_selected: 2, baseline: critic}", "num_generations=1", "num_prompts=4")
    recipe = train_recipe(tiny_model, tmp_path / "run", *settings, "num_iterations=2", "evaluation.eval_steps=0")
    lines = [line for line in metrics(Trainer(recipe, [ones]).train()) if "loss" in line]
    assert all(line["policy/first_log_ratio_max"] < 1e-5 for line in lines)
    # 4 completions of 33 tokens with 2 states each: a rollout of 4 steps, then the critic, the old policy, the reference
    # and two updates see the states.
    assert {line["compute/token_passes"] for line in lines} == {4 * 33 * (4 + 2 + 2 + 2 + 2 * 2 * 3)}
    assert lines[0]["critic/value"] == 0
    assert all(line["critic/value"] > 0 for line in lines[1:])
    # A group of one has signal, because its advantage is the reward less a value.
    assert all(line["advantage/frac_flat_groups"] == 0 for line in lines)

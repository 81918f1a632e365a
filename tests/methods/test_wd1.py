"""Tests of wd1: its weights, its expectation, and the differences from diffu-GRPO."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.helpers.mean_field import EXACT, OneUpdate, PromptToy, scored, surrogate_gradient, token_logprobs
from tests.helpers.messages import raises
from tests.helpers.records import make_inputs
from tests.helpers.toy import distance, expected_gradient
from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError
from unmask.core.records import Needs, Rollout
from unmask.functional.advantage import softmax_advantage
from unmask.methods import METHODS
from unmask.methods.wd1 import WD1

PLAIN = WD1(prompt_mask_ratio=0.0)


def test_the_defaults_are_the_published_settings():
    assert METHODS["wd1"]().model_dump() == {"type": "wd1", "prompt_mask_ratio": 0.15}
    assert WD1().needs() == Needs(), "no reference, no one-step completions"
    with raises(ConfigError, "num_generations = 1"):
        WD1().check(SamplerConfig(), 1)


# Weights


@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_the_advantage_is_the_difference_of_two_softmaxes_over_the_group(scale):
    reward = scale * torch.rand(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    advantage = softmax_advantage(reward, 4).view(3, 4)
    for row, found in zip(reward.view(3, 4), advantage, strict=True):
        up, down = row.exp() / row.exp().sum(), (-row).exp() / (-row).exp().sum()
        torch.testing.assert_close(found, 4 * (up - down), rtol=0, atol=1e-12)
    torch.testing.assert_close(advantage.sum(-1), torch.zeros(3).double(), rtol=0, atol=1e-12)
    assert advantage.abs().max() < 4


def test_an_added_constant_changes_no_weight_and_equal_rewards_have_zero_weight():
    reward = torch.tensor([0.3, 0.1, 0.9, 0.9, 0.9, 0.9])
    torch.testing.assert_close(softmax_advantage(reward, 3), softmax_advantage(reward + 100, 3), rtol=0, atol=1e-4)
    assert softmax_advantage(reward, 3)[3:].tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="group_size = 4 does not divide the 6 rows"):
        softmax_advantage(reward, 4)


def test_for_small_differences_of_rewards_it_is_twice_the_group_advantage():
    reward = torch.tensor([0.0, 1.0, 0.5, 0.2], dtype=torch.float64)
    small = softmax_advantage(1e-5 * reward, 4) / 1e-5
    torch.testing.assert_close(small, 2 * (reward - reward.mean()), rtol=0, atol=1e-5)
    assert (softmax_advantage(4 * reward, 4) - 8 * (reward - reward.mean())).abs().max() > 0.5


# Plan and loss


def test_every_scored_token_has_the_same_weight_in_any_batch(toy):
    small = toy(eos=True)
    rollout, _ = small.groups(small.paths()[::9], 2)
    views = PLAIN.plan(rollout, torch.Generator())
    assert (views.weight == 1).all()
    assert views.hidden.all()
    members = small.paths()[::9]
    pairs = [path for a in members for b in members for path in (a, b)]
    assert torch.equal(views.target, scored(small, pairs))
    assert not views.target.all()
    assert WD1().plan(rollout, torch.Generator().manual_seed(0)).prompt_hidden.float().mean() > 0


def test_the_loss_has_no_ratio():
    given = make_inputs(
        [[-1.0, -2.0], [-0.5, 0.0]],
        old=torch.full((2, 2), -9.0),
        target=[[True, True], [True, False]],
        advantage=[2.0, -4.0],
    )
    output = WD1().loss(given)
    assert output.loss.tolist() == [6.0, -2.0]
    output.loss.sum().backward()
    assert given.new.grad.tolist() == [[-2.0, -2.0], [4.0, 4.0]]


# Expectation


@pytest.mark.parametrize("options", [{}, {"order": "left_to_right"}, {"eos": True}], ids=str)
def test_it_estimates_the_mean_field_gradient_weighted_by_tanh_of_half_the_difference_in_pairs(toy, options):
    small = toy(num_tokens=2, **options)
    paths = small.paths()
    estimate = expected_gradient(small, PLAIN, *small.groups(paths, 2))
    likelihood = (token_logprobs(small, paths, [True] * 3) * scored(small, paths)).sum(-1)
    probability, reward = small.probability(paths).detach(), small.reward(paths)
    # G (softmax(a)_1 - softmax(-a)_1) for G = 2.
    weight = 2 * ((reward.unsqueeze(1) - reward.unsqueeze(0)) / 2).tanh()
    total = (probability.unsqueeze(1) * probability.unsqueeze(0) * weight * likelihood.unsqueeze(1)).sum()
    (expected,) = torch.autograd.grad(total, small.denoiser.table, retain_graph=True)
    assert expected.norm() > 0.01
    torch.testing.assert_close(estimate, expected, **EXACT)


def test_its_bias_against_the_policy_gradient_is_that_of_the_mean_field_and_that_of_the_weights(toy):
    small = toy()
    paths = small.paths()
    rollout, weight = small.groups(paths, 2)
    estimate, gradient = expected_gradient(small, PLAIN, rollout, weight), small.grad_j()
    assert distance(estimate, gradient) == pytest.approx(2.302383, rel=1e-6)
    linear = surrogate_gradient(small, paths, token_logprobs(small, paths, [True] * 3).sum(-1))
    assert distance(estimate, linear) == pytest.approx(0.047478, rel=1e-5)
    # Rewards of a tenth of the size: the gradient is not a tenth, but the weights approach 2
    # (r - r̄) = r - r'.
    tenth = expected_gradient(small, PLAIN, Rollout(rollout.trajectory, 2, rollout.reward / 10), weight)
    assert distance(10 * tenth, linear) < 0.02 * distance(estimate, linear)


def test_the_expectation_is_over_every_mask_of_the_prompt(table_denoiser):
    small = PromptToy(table_denoiser(2, 3, 99, seed=0), num_steps=3)
    paths = small.paths()
    rollout, weight = small.groups(paths, 2)
    plain = PLAIN.plan(rollout, torch.Generator())
    tokens = torch.tensor([path.tokens for path in paths])
    probability, reward = small.probability(paths).detach(), small.reward(paths)
    pair = probability.unsqueeze(1) * probability.unsqueeze(0) * 2 * ((reward.unsqueeze(1) - reward) / 2).tanh()
    total, expected = 0.0, 0.0
    for pattern in range(4):
        hidden = torch.tensor([bool(pattern & 1), bool(pattern & 2)])
        chance = float((0.15 * hidden + 0.85 * ~hidden).prod())
        views = replace(plain, prompt_hidden=hidden.expand(len(plain), 2))
        total = total + chance * expected_gradient(small, PLAIN, rollout, weight, views=views)
        empty = small.denoiser.table[small.index([2, 2, 2])] * small.denoiser.factor[pattern]
        each = (empty[:, :2] / small.temperature).log_softmax(-1)
        likelihood = each.expand(len(paths), 3, 2).gather(-1, tokens.unsqueeze(-1)).sum((1, 2))
        expected = expected + chance * small.gradient((pair.sum(1) * likelihood).sum())
    torch.testing.assert_close(total, expected, **EXACT)
    assert distance(expected_gradient(small, PLAIN, rollout, weight, views=plain), total) > 0.05, "the masks matter"


# In the trainer


def test_later_passes_do_not_compare_with_the_policy_at_the_start_and_chunks_change_nothing(lively, tmp_path):
    update = OneUpdate(lively, tmp_path)
    rollout = update.rollout(update.recipe(WD1()))
    runs = [update(WD1(), f"views_per_forward={n}", rollout=rollout) for n in (256, 5, 1)]
    assert runs[0][1].norm() > 1e-4
    for _, gradient in runs[1:]:
        assert distance(gradient, runs[0][1]) < 1e-5
    assert "policy/ratio_max" not in runs[0][0]

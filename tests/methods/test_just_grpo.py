"""Tests of JustGRPO: the exact gradient of the left-to-right sampler, and the effect of dividing by
the deviation."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from tests.helpers.messages import raises
from tests.helpers.records import make_inputs
from tests.helpers.regions import REGION
from tests.helpers.toy import distance, expected_gradient, pinned
from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError
from unmask.core.records import Needs, Rollout
from unmask.methods import METHODS
from unmask.methods.just_grpo import JustGRPO

EXACT = {"rtol": 0.0, "atol": 1e-10}


def estimate(small, baseline):
    """Return the expected gradient with weights 1 / L in float64; in the plan's float32, 1/3 is off
    by 1e-8."""
    rollout, weight = small.groups(small.paths(), 2)
    chosen = JustGRPO(baseline=baseline)
    views = chosen.plan(rollout, torch.Generator())
    torch.testing.assert_close(views.weight, torch.full_like(views.weight, 1 / small.L))
    exact = torch.full(views.weight.shape, 1 / small.L, dtype=torch.float64)
    return expected_gradient(small, chosen, rollout, weight, views=replace(views, weight=exact))


def autoregressive_gradient(small):
    """Compute ∇ Σ_y r(y) Π_t p(y_t | y_<t), with the completion's tokens before t and masks after
    it."""
    table = small.logprobs(small.temperature)
    total = torch.zeros((), dtype=torch.float64)
    for tokens in itertools.product(range(small.V), repeat=small.L):
        terms = [
            table[small.index(tokens[:t] + (small.V,) * (small.L - t)), t, token] for t, token in enumerate(tokens)
        ]
        total = total + torch.stack(terms).sum().exp() * small.reward_table[tokens]
    return small.gradient(total)


def test_the_defaults_are_the_published_settings():
    assert METHODS["just_grpo"]().model_dump() == {
        "type": "just_grpo",
        "baseline": "z_score",
        "epsilon": 0.2,
        "epsilon_high": 0.2,
        **REGION,
    }
    assert JustGRPO().needs() == Needs()


@pytest.mark.parametrize(
    ("wrong", "advice"),
    [
        ({"order": "random"}, "Set sampler.order = left_to_right."),
        ({"num_steps": 4}, "Set sampler.num_steps = 8."),
        (
            {"order": "random", "num_steps": 4},
            "Set sampler.order = left_to_right and sampler.num_steps = 8.",
        ),
    ],
)
def test_another_order_or_more_than_one_token_per_step_is_refused(wrong, advice):
    settings = {"max_completion_length": 8, "num_steps": 8, "order": "left_to_right"}
    JustGRPO().check(SamplerConfig(**settings), 2)
    with raises(ConfigError, advice):
        JustGRPO().check(SamplerConfig(**settings | wrong), 2)
    with raises(ConfigError, "Set num_generations to 2 or more"):
        JustGRPO().check(SamplerConfig(**settings), 1)


def test_each_view_has_one_target_given_the_tokens_before_it(toy):
    small = toy(eos=True, order="left_to_right")
    ended = next(path for path in small.paths() if path.when == (0, 1, 3))
    whole = next(path for path in small.paths() if path.when == (0, 1, 2))
    rollout = Rollout(small.trajectory([whole, ended]), 2, torch.zeros(2))
    views = JustGRPO().plan(rollout, torch.Generator())
    assert views.row.tolist() == [0, 0, 0, 1, 1]
    assert views.hidden.int().tolist() == [[1, 1, 1], [0, 1, 1], [0, 0, 1], [1, 1, 1], [0, 1, 1]]
    assert views.target.int().tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize(("baseline", "share"), [("leave_one_out", 1.0), ("group_mean", 0.5)])
def test_it_is_the_autoregressive_policy_gradient_over_the_length(toy, baseline, share):
    small = toy(order="left_to_right")
    expected = autoregressive_gradient(small) / small.L
    torch.testing.assert_close(estimate(small, baseline), share * expected, **EXACT)
    assert expected.norm() > 0.01


def test_completions_that_end_early_are_exact_too(toy):
    small = toy(order="left_to_right", eos=True)
    torch.testing.assert_close(estimate(small, "leave_one_out"), small.grad_j() / small.L, **EXACT)


def test_rollouts_in_another_order_are_biased(toy):
    small = toy(order="random")
    assert distance(estimate(small, "leave_one_out"), autoregressive_gradient(small) / small.L) > 0.5


def test_dividing_by_the_deviation_gives_the_gradient_of_beating_another_completion(toy):
    # In a group of two, (r - mean) / s is the sign of the difference over √2, up to the floor of
    # 1e-4.
    small = toy(order="left_to_right")
    paths = small.paths()
    reward, probability = small.reward(paths), small.probability(paths).detach()
    half = (reward.unsqueeze(1) - reward.unsqueeze(0)) / 2
    wins = (probability * half / (half.abs() * 2**0.5 + 1e-4)).sum(-1)
    found = estimate(small, "z_score")
    torch.testing.assert_close(found, pinned(small, paths, lambda b, k: wins[b]) / small.L, **EXACT)
    signs = (probability * half.sign()).sum(-1) / 2**0.5
    ideal = pinned(small, paths, lambda b, k: signs[b]) / small.L
    assert distance(found, ideal) < 0.01
    gradient = small.grad_j()
    aligned = gradient * (found * gradient).sum() / gradient.square().sum()
    assert distance(found, aligned) == pytest.approx(0.459, abs=0.001)


def test_the_ratio_of_each_token_is_clipped_separately():
    given = make_inputs(
        [[0.3, 0.0], [0.1, 0.0]], old=torch.zeros(2, 2), row=[0, 0], target=[[True, False]] * 2, weight=0.5
    )
    output = JustGRPO().loss(given)
    torch.testing.assert_close(output.loss, -0.5 * torch.stack([torch.tensor(1.2), torch.tensor(0.1).exp()]))
    assert output.metrics["clip_ratio/high_mean"].tolist() == [1.0, 0.0]

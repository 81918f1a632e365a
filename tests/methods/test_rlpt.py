"""Reinforcement learning with promising tokens on the enumerable toy: with the support of the rollout, the ratio stays
an importance weight when the policy moves, and with a support of its own it does not.

The toy `small` is the policy after it has moved, and `other` sampled the rollout with top_k = 2. Everything is committed
in one step, so the ratio of the step is that of the whole path.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.helpers.any_order import another
from tests.helpers.messages import raises
from tests.helpers.runs import train_recipe
from tests.helpers.toy import distance
from unmask.core.errors import ConfigError
from unmask.core.records import LossInputs
from unmask.methods.egspo import EGSPO
from unmask.sampling import LogprobSettings, view_logprobs

METHOD = EGSPO(step_choice="all", beta=0.0, baseline="leave_one_out", trust_region="none")


def possible(small):
    """Return the paths that top-k allows."""
    paths = small.paths()
    return [path for path, p in zip(paths, small.probability(paths).tolist(), strict=True) if p > 0]


def estimate(small, other, *, keeps_support):
    """Return the expected gradient over the groups of `other`, per token."""
    rollout, probability = other.groups(possible(other), 2, dtype=torch.float64)
    path = rollout.trajectory
    if not keeps_support:
        path = replace(path, support=None)
    views, settings = METHOD.plan(rollout, torch.Generator()), LogprobSettings.of(path, "sampling")
    new = view_logprobs(small.denoiser, path, views, settings).logprob
    with torch.no_grad():
        old = view_logprobs(other.denoiser, path, views, settings).logprob
    advantage = METHOD.advantage(rollout)[views.row]
    loss = METHOD.loss(LossInputs(new, old, None, None, views.row, views.target, views.weight, advantage)).loss
    return -small.gradient((probability[views.row // 2] * loss).sum() / 2) / views.weight[0].double()


def restricted_gradient(small, other):
    """Return ∇ Σ_y π(y) r(y) over the completions that `other` could draw, where the moved policy is renormalised over
    the tokens that `other` allows at each position."""
    allowed = torch.isfinite(other.logprobs(other.temperature))
    logits = (small.denoiser.table[..., : small.V] / small.temperature).masked_fill(~allowed, -torch.inf)
    paths = possible(other)
    logprob = small.gather(logits.log_softmax(-1), [path.draws for path in paths])
    return small.gradient((logprob.exp() * other.reward(paths)).sum())


@pytest.fixture
def pair(toy, table_denoiser):
    other = toy(num_tokens=3, length=3, num_steps=1, top_k=2)
    small = another(other, table_denoiser)
    small.top_k = 2
    with torch.no_grad():
        small.denoiser.table.lerp_(other.denoiser.table, 0.5)
    return small, other


def test_the_recorded_support_makes_the_estimate_the_gradient_of_the_policy_over_the_promising_tokens(pair):
    small, other = pair
    expected = restricted_gradient(small, other)
    assert expected.norm() > 0.01
    torch.testing.assert_close(estimate(small, other, keeps_support=True), expected, rtol=0, atol=1e-10)


def test_a_support_of_the_policys_own_is_another_objective(pair):
    small, other = pair
    assert distance(estimate(small, other, keeps_support=False), restricted_gradient(small, other)) > 0.05


def test_until_the_policy_moves_both_are_the_policy_gradient(pair):
    _, other = pair
    for keeps_support in (True, False):
        estimated = estimate(other, other, keeps_support=keeps_support)
        torch.testing.assert_close(estimated, other.grad_j(), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "method",
    [
        "{type: egspo, num_selected: 2, beta: 0.1, kl: exact}",
        "{type: egspo, num_selected: 2, trust_region: divergence, divergence: kl}",
    ],
)
def test_an_exact_kl_needs_the_same_tokens_under_both_policies(method, tmp_path):
    train_recipe(tmp_path, tmp_path, f"method={method}", "sampler.top_k=4")
    train_recipe(tmp_path, tmp_path, f"method={method}", "sampler.top_k=4", "sampler.top_p=0.9")
    with raises(ConfigError, "compares whole distributions", "Set sampler.top_k too"):
        train_recipe(tmp_path, tmp_path, f"method={method}", "sampler.top_p=0.9")

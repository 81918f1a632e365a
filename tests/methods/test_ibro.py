"""The information-bottleneck term of methods with a ratio: the entropy of the trained tokens, weighted by their advantage,
at its exact expectation on the enumerable toy."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.mean_field import OneUpdate
from tests.helpers.messages import raises
from tests.helpers.toy import distance, expected_gradient
from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError
from unmask.functional.distribution import token_entropy
from unmask.methods import METHODS
from unmask.methods.egspo import EGSPO
from unmask.methods.egspo_ca import EGSPOCA
from unmask.methods.step_merge import StepMerge

EXACT = {"rtol": 0.0, "atol": 1e-10}
WEIGHT = 0.7
EVERY_STEP = EGSPO(step_choice="all", beta=0.0, baseline="leave_one_out", entropy_weight=WEIGHT)
TOKENS = StepMerge(num_segments=0, beta=0.0, baseline="leave_one_out", entropy_weight=WEIGHT)


def estimate(small, method, stepwise=False):
    """Return the expected gradient without the constant of the plan: Σ_k A_k ∇ (log π_k + γ H_k), as in theory."""
    rollout, weight = small.groups(small.paths(), 2, stepwise=stepwise)
    per_view = method.plan(rollout, torch.Generator()).weight[0].double()
    return expected_gradient(small, method, rollout, weight) / per_view


def entropy_gradient(small, weight_of):
    """Return Σ_τ p(τ) Σ_k w(τ, k) ∇ H_k with p held fixed, from the tables; H_k is the joint entropy of the tokens that
    step k committed."""
    paths, probability = small.paths(), small.probability(small.paths()).detach()
    entropy = token_entropy(small.logprobs(small.temperature))
    total = torch.zeros((), dtype=torch.float64)
    for b, path in enumerate(paths):
        for step, state, i, _ in path.draws:
            total = total + probability[b] * weight_of(b, step) * entropy[state, i]
    return small.gradient(total)


def centred(small):
    """Return r - E r of each path."""
    reward, probability = small.reward(small.paths()), small.probability(small.paths()).detach()
    return reward - (probability * reward).sum()


@pytest.mark.parametrize("method", [EVERY_STEP, TOKENS], ids=["egspo", "step_merge"])
@pytest.mark.parametrize(
    "options", [{"num_steps": 2}, {"order": "plackett_luce", "num_steps": 2}, {"top_k": 2}], ids=str
)
def test_the_term_adds_the_covariance_of_the_reward_with_the_gradient_of_the_entropy(toy, method, options):
    small = toy(**({"num_tokens": 2} if "top_k" not in options else {}), **options)
    advantage = centred(small)
    term = entropy_gradient(small, lambda b, _: advantage[b])
    assert term.norm() > 0.01
    torch.testing.assert_close(estimate(small, method), small.grad_j() + WEIGHT * term, **EXACT)
    plain = method.model_copy(update={"entropy_weight": 0.0})
    torch.testing.assert_close(estimate(small, plain), small.grad_j(), **EXACT)
    # An entropy bonus, which has no advantage, is another vector.
    assert distance(term, entropy_gradient(small, lambda *_: 1.0)) > 0.5


def test_unlike_the_policy_gradient_the_term_depends_on_the_baseline(toy):
    # The entropy is a function of the state alone, so what a state's value takes from the advantage is missing here.
    small = toy(num_tokens=2, num_steps=3)
    paths, probability, advantage = small.paths(), small.probability(small.paths()).detach(), centred(small)
    value = torch.tensor(
        [[float(small.reward_table[small.greedy(p, k)]) for k in range(3)] for p in paths], dtype=torch.float64
    )
    value = value - (probability.unsqueeze(-1) * value).sum(0)
    method = EVERY_STEP.model_copy(update={"stepwise_weight": 1.0})
    term = entropy_gradient(small, lambda b, k: advantage[b] - 0.5 * value[b, k])
    torch.testing.assert_close(estimate(small, method, stepwise=True), small.grad_j() + WEIGHT * term, **EXACT)
    assert distance(term, entropy_gradient(small, lambda b, _: advantage[b])) > 0.05


def test_with_the_exact_value_of_each_state_and_its_positions_the_term_vanishes(toy):
    small = toy(num_tokens=2, num_steps=3)
    paths, probability, reward = small.paths(), small.probability(small.paths()).detach(), small.reward(small.paths())
    states = [
        [tuple((t if w < k else -1, w == k) for t, w in zip(p.tokens, p.when, strict=True)) for k in range(3)]
        for p in paths
    ]
    mass, total = {}, {}
    for b, row in enumerate(states):
        for state in row:
            mass[state] = mass.get(state, 0.0) + probability[b]
            total[state] = total.get(state, 0.0) + probability[b] * reward[b]
    term = entropy_gradient(small, lambda b, k: reward[b] - total[states[b][k]] / mass[states[b][k]])
    assert term.norm() < 1e-12 < 0.01 < entropy_gradient(small, lambda b, _: centred(small)[b]).norm()


def test_equal_rewards_of_a_group_leave_nothing(toy):
    small = toy(num_tokens=2, num_steps=2)
    small.reward_table = torch.ones_like(small.reward_table)
    assert estimate(small, EVERY_STEP).norm() == 0.0


@pytest.mark.parametrize("trust_region", ["clip", "divergence", "none"])
def test_the_trainer_adds_the_term_in_any_chunks(trust_region, lively, tmp_path):
    update = OneUpdate(lively, tmp_path)
    region = {"trust_region": trust_region, "beta": 0.0, "num_selected": 2}
    settings = ("num_iterations=1", "sampler.top_k=5")
    _, plain = update(EGSPO(**region), *settings)
    metrics, whole = update(EGSPO(**region, entropy_weight=0.5), *settings)
    _, chunks = update(EGSPO(**region, entropy_weight=0.5), *settings, "views_per_forward=3")
    assert distance(whole, plain) > 0.05
    assert distance(chunks, whole) < 1e-5
    assert 0 < metrics["policy/entropy"] < torch.tensor(5.0).log()


def test_losses_without_one_advantage_for_each_token_refuse_the_term():
    sampler = SamplerConfig(max_completion_length=8, num_steps=4)
    for method in (EGSPOCA(entropy_weight=0.1), METHODS["espo"](entropy_weight=0.1)):
        with raises(ConfigError, "method.entropy_weight needs one advantage for each token of a path"):
            method.check(sampler, 2)
    EGSPO(num_selected=2, entropy_weight=0.1).check(sampler, 2)
    METHODS["diffu_grpo"](entropy_weight=0.1).check(sampler, 2)

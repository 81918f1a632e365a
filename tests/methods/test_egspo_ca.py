"""Tests of counterfactual advantages, by enumeration of paths and of the actions at a state."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from tests.helpers.any_order import another
from tests.helpers.messages import raises
from tests.helpers.records import make_inputs, make_trajectory
from tests.helpers.toy import distance, expected_gradient, pinned
from unmask.core.branches import Branches
from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError
from unmask.core.records import Rollout
from unmask.methods.egspo_ca import EGSPOCA
from unmask.recipes.behaviour import BehaviourConfig
from unmask.trainer.behaviour import Comparison
from unmask.trainer.distributed.ranks import Ranks
from unmask.trainer.metrics import Tally

EXACT = {"rtol": 0.0, "atol": 1e-10}


def actions_at(small, path, step, scope):
    """Return the positions drawn again at a step of a path, the state's index, and every action
    with its probability."""
    state = [small.V if when >= step else token for token, when in zip(path.tokens, path.when, strict=True)]
    positions = [i for i, when in enumerate(path.when) if (when >= step if scope == "all" else when == step)]
    table = small.logprobs(small.temperature).detach()[small.index(state)].exp()
    actions = []
    for tokens in itertools.product(range(small.V), repeat=len(positions)):
        probability = 1.0
        for i, token in zip(positions, tokens, strict=True):
            probability *= float(table[i, token])
        actions.append((tokens, probability))
    return positions, actions


def fill_of(small, path, step, positions, action):
    """Return the one-step completion of the state, overwritten with an action."""
    fill = list(small.greedy(path, step))
    for i, token in zip(positions, action, strict=True):
        fill[i] = token
    return tuple(fill)


def counterfactuals(small, step, *, scope="step", with_taken=False, behaviour=None, num_draws=2):
    """Return every path with all pairs of actions at one of its steps, as groups of one, and their
    probabilities.

    Args:
        small: the toy that draws the actions.
        step: the step.
        scope: positions that an action covers.
        with_taken: True to put the action of the path first.
        behaviour: the toy that samples the paths; default `small`.
        num_draws: number of actions in place of two.
    """
    behaviour = behaviour or small
    paths = behaviour.paths()
    of_path = behaviour.probability(paths).detach()
    rows, branches, weight = [], [], []
    for b, path in enumerate(paths):
        positions, actions = actions_at(small, path, step, scope)
        taken = [fill_of(small, path, step, positions, [path.tokens[i] for i in positions])] if with_taken else []
        for draws in itertools.product(actions, repeat=num_draws):
            drawn = [fill_of(small, path, step, positions, action) for action, _ in draws]
            rows.append(b)
            branches.append([*taken, *drawn])
            weight.append(float(of_path[b]) * math.prod(p for _, p in draws))
    reward = torch.stack([torch.stack([small.reward_table[fill] for fill in row]) for row in branches])
    path = replace(
        behaviour.trajectory(paths, dtype=torch.float64).rows(torch.tensor(rows)),
        selected_step=torch.full((len(rows), 1), step, dtype=torch.int32),
        branch_tokens=torch.tensor(branches, dtype=torch.int32).unsqueeze(1),
    )
    rollout = Rollout(path, 1, small.reward(paths)[rows], branch_reward=reward.unsqueeze(1))
    return rollout, torch.tensor(weight, dtype=torch.float64)


def estimate_of(small, method, step, **options):
    """Return the expectation of the method at one step, without the plan's constant T / L in
    float32."""
    rollout, weight = counterfactuals(small, step, **options)
    return expected_gradient(small, method, rollout, weight) / torch.tensor(small.num_steps / small.L).double()


def one_step_gradient(small, step, scope):
    """Compute Σ_τ p(τ) ∇ E_{a ~ p(.|x_k)}[Q̂(x_k, a)] action by action, with path and one-step
    completion held fixed."""
    paths = small.paths()
    of_path = small.probability(paths).detach()
    table = small.logprobs(small.temperature)
    total = torch.zeros((), dtype=torch.float64)
    for b, path in enumerate(paths):
        positions, actions = actions_at(small, path, step, scope)
        state = small.index([small.V if w >= step else t for t, w in zip(path.tokens, path.when, strict=True)])
        for action, _ in actions:
            logprob = sum(table[state, i, token] for i, token in zip(positions, action, strict=True))
            value = small.reward_table[fill_of(small, path, step, positions, action)]
            total = total + of_path[b] * value * logprob.exp()
    return small.gradient(total)


def share_of_step(small, step):
    """Compute Σ_τ p(τ) r(τ) ∇ log p(tokens of the step), the step's share of the policy gradient if
    the order ignores θ."""
    paths = small.paths()
    reward = small.reward(paths)
    return pinned(small, paths, lambda b, k: float(reward[b]) if k == step else 0.0)


SHAPES = [{"num_tokens": 3, "length": 2, "num_steps": 2}, {"num_tokens": 2, "length": 3, "num_steps": 2}]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scope", ["step", "all"])
@pytest.mark.parametrize("step", [0, 1])
def test_drawn_actions_estimate_the_gradient_of_the_one_step_value_of_their_state(toy, shape, scope, step):
    small = toy(**shape)
    estimate = estimate_of(small, EGSPOCA(num_actions=2, scope=scope), step, scope=scope)
    expected = one_step_gradient(small, step, scope)
    assert expected.norm() > 0.01
    torch.testing.assert_close(estimate, expected, **EXACT)


@pytest.mark.parametrize("scope", ["step", "all"])
def test_at_the_last_step_the_one_step_value_is_the_reward_and_the_estimate_exact(toy, scope):
    small = toy(num_tokens=3, length=2, num_steps=2)
    estimate = estimate_of(small, EGSPOCA(num_actions=2, scope=scope), 1, scope=scope)
    torch.testing.assert_close(estimate, share_of_step(small, 1), **EXACT)


def test_before_the_last_step_the_estimate_has_the_bias_of_the_one_step_completion(toy):
    small = toy(num_tokens=3, length=2, num_steps=2)
    estimate = estimate_of(small, EGSPOCA(num_actions=2), 0)
    assert distance(estimate, share_of_step(small, 0)) > 0.2


@pytest.mark.parametrize("order", ["random", "left_to_right", "plackett_luce"])
@pytest.mark.parametrize("step", [0, 1])
def test_with_the_action_taken_the_estimate_is_the_steps_share_of_the_policy_gradient(toy, order, step):
    # Under Plackett-Luce U_k does not depend on the drawn tokens, so the token term is exact; the
    # choice has another term.
    small = toy(num_tokens=3, length=2, num_steps=2, order=order)
    estimate = estimate_of(small, EGSPOCA(num_actions=2, form="unbiased"), step, with_taken=True)
    torch.testing.assert_close(estimate, share_of_step(small, step), **EXACT)


@pytest.mark.parametrize("order", ["random", "left_to_right"])
@pytest.mark.parametrize("step", [0, 1])
def test_a_weight_of_the_action_taken_restores_its_estimate_in_the_states_of_another_policy(
    toy, table_denoiser, order, step
):
    small = toy(num_tokens=2, length=3, num_steps=2, order=order)
    other = another(small, table_denoiser)
    method = EGSPOCA(num_actions=2, form="unbiased")
    rollout, weight = counterfactuals(small, step, with_taken=True, behaviour=other)
    path, views = rollout.trajectory, method.plan(rollout, torch.Generator())
    comparison = Comparison(BehaviourConfig(cap=0.0), "step", True, path, Ranks(Accelerator()), Tally())
    correction = comparison.weights(views, None, None).applied
    per_view = torch.tensor(small.num_steps / small.L).double()
    estimate = expected_gradient(small, method, rollout, weight, correction=correction) / per_view
    # The old policy takes the tokens of the step, and the other policy all others.
    paths = other.paths()
    of_path, reward = other.probability(paths).detach(), small.reward(paths)
    draws = [tuple(draw for draw in p.draws if draw[0] == step) for p in paths]
    log_ratio = small.gather(small.logprobs(small.temperature), draws)
    log_ratio = log_ratio - other.gather(other.logprobs(other.temperature), draws).detach()
    expected = small.gradient((of_path * log_ratio.exp() * reward).sum())
    torch.testing.assert_close(estimate, expected, **EXACT)
    bias = distance(expected_gradient(small, method, rollout, weight) / per_view, expected)
    # At the last step the one-step value is the reward, so the term of the action taken is 0.
    assert bias > 0.02 if step == 0 else bias < 1e-10


@pytest.mark.parametrize("order", ["random", "left_to_right"])
def test_over_all_steps_the_unbiased_form_is_the_policy_gradient(toy, order):
    small = toy(num_tokens=2, length=3, num_steps=2, order=order)
    method = EGSPOCA(num_actions=2, form="unbiased")
    total = sum(estimate_of(small, method, step, with_taken=True) for step in (0, 1))
    torch.testing.assert_close(total, small.grad_j(), **EXACT)
    biased = sum(estimate_of(small, EGSPOCA(num_actions=2), step) for step in (0, 1))
    assert distance(biased, small.grad_j()) > 0.005


def test_actions_that_are_not_drawn_from_the_policy_are_biased(toy):
    small = toy(num_tokens=3, length=2, num_steps=2)
    method = EGSPOCA(num_actions=2, form="unbiased")
    rollout, weight = counterfactuals(small, 0, with_taken=True)
    uniform = torch.full_like(weight, 1.0) / len(weight)
    estimate = expected_gradient(small, method, rollout, uniform)
    assert distance(estimate, share_of_step(small, 0)) > 0.3


def test_under_low_confidence_even_the_unbiased_form_is_biased(toy):
    # U_k depends on the drawn tokens, so new tokens at U_k have another distribution.
    small = toy(num_tokens=2, length=2, num_steps=2, order="low_confidence")
    method = EGSPOCA(num_actions=2, form="unbiased")
    total = sum(estimate_of(small, method, step, with_taken=True) for step in (0, 1))
    assert distance(total, small.grad_j()) > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 1])
def test_the_combination_with_the_group_is_unbiased_for_any_gain_from_other_groups(toy, step):
    small = toy(num_tokens=2, length=2, num_steps=2)
    method = EGSPOCA(num_actions=2, form="combined")
    single, weight = counterfactuals(small, step, with_taken=True)
    # Groups of two rows, each with a fixed second group on which the gain is fitted.
    pairs = torch.cartesian_prod(torch.arange(len(weight)), torch.arange(len(weight)))
    gains = []
    for other in ((0, 17), (5, 30)):
        advantage = []
        for pair in pairs.tolist():
            rows = torch.tensor([*pair, *other])
            batch = Rollout(
                single.trajectory.rows(rows), 2, single.reward[rows], branch_reward=single.branch_reward[rows]
            )
            advantage.append(method.advantage(batch)[:2])
        by_row = torch.cat(advantage)
        gains.append(float(by_row[..., 1:].abs().max()))
        rows = pairs.flatten()
        groups = Rollout(single.trajectory.rows(rows), 2, single.reward[rows], branch_reward=single.branch_reward[rows])
        estimate = expected_gradient(small, method, groups, weight[pairs].prod(-1), advantage=by_row)
        torch.testing.assert_close(estimate, share_of_step(small, step), **EXACT)
    assert abs(gains[0] - gains[1]) > 0.05, "the two groups suggest different gains"


@pytest.mark.parametrize(("scope", "step"), [("step", 0), ("step", 1), ("all", 1)])
def test_the_unique_form_counts_each_different_action_once(toy, scope, step):
    # T-SPMO at a shared state: the mean over the different actions u of A(u) ∇ log p(u), whatever their frequency.
    small = toy(num_tokens=3, length=2, num_steps=2)
    table, of_path = small.logprobs(small.temperature), small.probability(small.paths()).detach()
    total = torch.zeros((), dtype=torch.float64)
    for b, path in enumerate(small.paths()):
        positions, actions = actions_at(small, path, step, scope)
        state = small.index([small.V if w >= step else t for t, w in zip(path.tokens, path.when, strict=True)])
        for draws in itertools.product(actions, repeat=3):
            value = {a: float(small.reward_table[fill_of(small, path, step, positions, a)]) for a, _ in draws}
            mean = sum(value[a] for a, _ in draws) / 3
            weight = float(of_path[b]) * math.prod(p for _, p in draws) / len(value)
            for action, q in value.items():
                logprob = sum(table[state, i, token] for i, token in zip(positions, action, strict=True))
                total = total + weight * (q - mean) * logprob
    expected = small.gradient(total)
    options = {"num_actions": 3, "scope": scope, "trust_region": "none"}
    unique = estimate_of(small, EGSPOCA(form="unique", **options), step, scope=scope, num_draws=3)
    torch.testing.assert_close(unique, expected, **EXACT)
    # It is not the gradient of the one-step value at any scale.
    exact = estimate_of(small, EGSPOCA(**options), step, scope=scope, num_draws=3)
    torch.testing.assert_close(exact, one_step_gradient(small, step, scope), **EXACT)
    assert distance(exact * (unique * exact).sum() / exact.square().sum(), unique) > 0.01


def test_draws_that_agree_outside_the_action_alone_are_the_same_action():
    # Further denoising gives the draws of one action other tokens elsewhere: its value is their mean.
    path = make_trajectory([[5, 6, 7]], unmask_step=[[0, 1, 1]], selected_step=torch.zeros(1, 1, dtype=torch.int32))
    branches = torch.tensor([[5, 6, 7], [5, 9, 9], [8, 6, 7]], dtype=torch.int32).view(1, 1, 3, 3)
    path = replace(path, branch_tokens=branches)
    rollout = Rollout(path, 1, torch.ones(1), branch_reward=torch.tensor([[[1.0, 0.0, 1.0]]]))
    advantage = EGSPOCA(form="unique", finish="rollout").advantage(rollout)
    torch.testing.assert_close(advantage, torch.tensor([[[(0.5 - 2 / 3) / 2, 0.0, (1 - 2 / 3) / 2]]]))
    whole = EGSPOCA(form="unique", scope="all").advantage(rollout)
    torch.testing.assert_close(whole, torch.tensor([[[1.0, -2.0, 1.0]]]) / 9)


def continued(small, step, action, path):
    """Return every continuation after an action at a step, left to right: completions with their
    probabilities."""
    table = small.logprobs(small.temperature).detach().exp()
    tokens = [token if when < step else small.V for token, when in zip(path.tokens, path.when, strict=True)]
    (position,) = [i for i, when in enumerate(path.when) if when == step]
    tokens[position] = action
    ways = [(tuple(tokens), 1.0)]
    for i in range(position + 1, small.L):
        ways = [
            ((*way[:i], token, *way[i + 1 :]), p * float(table[small.index(way), i, token]))
            for way, p in ways
            for token in range(small.V)
        ]
    return ways


@pytest.mark.parametrize("step", [0, 1])
def test_actions_with_further_denoising_estimate_the_steps_share_of_the_policy_gradient(toy, step):
    small = toy(num_tokens=2, length=2, num_steps=2, order="left_to_right")
    paths = small.paths()
    of_path, table = small.probability(paths).detach(), small.logprobs(small.temperature).detach().exp()
    rows, branches, weight = [], [], []
    for b, path in enumerate(paths):
        state = small.index(
            [small.V if when >= step else token for token, when in zip(path.tokens, path.when, strict=True)]
        )
        for one, other in itertools.product(range(small.V), repeat=2):
            drawn = float(table[state, step, one] * table[state, step, other])
            for (first, p), (second, q) in itertools.product(
                continued(small, step, one, path), continued(small, step, other, path)
            ):
                rows.append(b)
                branches.append([first, second])
                weight.append(float(of_path[b]) * drawn * p * q)
    reward = torch.stack([torch.stack([small.reward_table[fill] for fill in row]) for row in branches])
    record = replace(
        small.trajectory(paths).rows(torch.tensor(rows)),
        selected_step=torch.full((len(rows), 1), step, dtype=torch.int32),
        branch_tokens=torch.tensor(branches, dtype=torch.int32).unsqueeze(1),
    )
    rollout = Rollout(record, 1, small.reward(paths)[rows], branch_reward=reward.unsqueeze(1))
    weight = torch.tensor(weight, dtype=torch.float64)
    assert float(weight.sum()) == pytest.approx(1, abs=1e-12)
    method = EGSPOCA(num_actions=2, finish="rollout")
    estimate = expected_gradient(small, method, rollout, weight) / torch.tensor(small.num_steps / small.L).double()
    torch.testing.assert_close(estimate, share_of_step(small, step), **EXACT)


# By hand


def test_states_of_largest_spread_are_selected_and_empty_slots_are_not(toy):
    method = EGSPOCA(step_choice="spread", num_selected=2, num_actions=3)
    assert method.needs().selection == ("all", 2)
    assert method.needs().branches == Branches(3, "step", "greedy", with_taken=False)
    small = toy()
    path = small.trajectory(small.paths()[:2])
    path = replace(
        path,
        selected_step=torch.tensor([[0, 1, 2], [0, 2, -1]], dtype=torch.int32),
        branch_tokens=torch.zeros(2, 3, 3, 3, dtype=torch.int32),
    )
    value = torch.tensor([[[0, 0, 0], [0, 9, 0], [0, 2, 0]], [[1, 1, 1], [0, 1, 0], [0, 0, 0]]]).float()
    views = method.plan(Rollout(path, 1, torch.zeros(2), branch_reward=value), torch.Generator())
    # The first row's steps 1 and 2; the second's steps 2 and 0, in the slots 1 and 0; its empty
    # slot never.
    assert list(zip(views.row.tolist(), views.slot.tolist(), strict=True)) == [(0, 1), (0, 2), (1, 1), (1, 0)]
    step = [path.unmask_step[b][target].tolist() for b, target in zip(views.row, views.target, strict=True)]
    assert step == [[1], [2], [2], [0]]


def test_the_loss_is_a_clipped_ratio_for_each_action_summed_over_actions():
    old = torch.tensor([[[-1.0, -0.5], [-2.0, 0.0], [-1.0, -1.0]]])
    new = (old + torch.tensor([[[0.3, 0.3], [0.1, 0.0], [-0.5, 0.0]]])).requires_grad_()
    inputs = make_inputs(new, old=old, weight=0.5, advantage=[[1.0, 0.5, -1.5]])
    output = EGSPOCA(num_actions=3).loss(inputs)
    # ρ = e^.6 is clipped at 1.5, ρ = e^.1 is not, ρ = e^-.5 = .61 under a negative advantage is
    # clipped at .8.
    expected = 0.5 * (-1.5 * 1.0 - torch.tensor(0.1).exp() * 0.5 + 0.8 * 1.5)
    torch.testing.assert_close(output.loss, expected.view(1))
    assert output.metrics["clip_ratio/region_mean"].tolist() == [[1.0, 0.0, 1.0]]
    output.loss.sum().backward()
    assert (new.grad[0, 1] < 0).all()
    assert (new.grad[0, [0, 2]] == 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scope": "all", "form": "unbiased"}, "draws every masked position. Set method.scope to step"),
        ({"scope": "all", "finish": "sampled"}, "method.finish = sampled"),
        ({"num_selected": 5}, "num_selected = 5 is more than the 4 denoising steps"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        EGSPOCA(**options).check(SamplerConfig(max_completion_length=8, num_steps=4), 1)


def test_only_the_combination_needs_a_group():
    sampler = SamplerConfig(max_completion_length=8, num_steps=4)
    EGSPOCA().check(sampler, 1)
    with raises(ConfigError, "num_generations = 1"):
        EGSPOCA(form="combined").check(sampler, 1)

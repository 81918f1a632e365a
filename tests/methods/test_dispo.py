"""Tests of DiSPO by enumeration: the terminal term is that of the mean field, the state term that
of the branches."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from tests.helpers.toy import distance, expected_gradient
from unmask.core.branches import Branches
from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError
from unmask.core.records import Rollout
from unmask.methods.dispo import DiSPO

EXACT = {"rtol": 0.0, "atol": 1e-10}


def with_fills(small, step, group_size):
    """Return groups of every path with every pair of branches of its state before `step`, and their
    probabilities."""
    paths = small.paths()
    table = small.logprobs(small.temperature).detach().exp()
    rows, branches, weight = [], [], []
    of_path = small.probability(paths).detach()
    for b, path in enumerate(paths):
        state = [small.V if when >= step else token for token, when in zip(path.tokens, path.when, strict=True)]
        hidden = [i for i, token in enumerate(state) if token == small.V]
        every = []
        for drawn in itertools.product(range(small.V), repeat=len(hidden)):
            fill, probability = list(state), 1.0
            for i, token in zip(hidden, drawn, strict=True):
                fill[i] = token
                probability *= float(table[small.index(state), i, token])
            every.append((tuple(fill), probability))
        for (one, p), (other, q) in itertools.product(every, repeat=2):
            rows.append(b)
            branches.append([one, other])
            weight.append(float(of_path[b]) * p * q)
    reward = torch.stack([torch.stack([small.reward_table[fill] for fill in row]) for row in branches]).unsqueeze(1)
    path = replace(
        small.trajectory(paths).rows(torch.tensor(rows)),
        selected_step=torch.full((len(rows), 1), step, dtype=torch.int32),
        branch_tokens=torch.tensor(branches, dtype=torch.int32).unsqueeze(1),
    )
    single = Rollout(path, 1, small.reward(paths)[rows], branch_reward=reward)
    members = torch.cartesian_prod(*[torch.arange(len(rows))] * group_size).view(-1, group_size)
    index = members.flatten()
    groups = Rollout(path.rows(index), group_size, single.reward[index], branch_reward=reward[index])
    return groups, torch.tensor(weight, dtype=torch.float64)[members].prod(-1)


def one_step_gradient(small, step):
    """Compute Σ_τ p(τ) ∇ E_{branch ~ p(.|x_k)}[r(branch)] with the state held fixed."""
    paths = small.paths()
    of_path, table = small.probability(paths).detach(), small.logprobs(small.temperature)
    total = torch.zeros((), dtype=torch.float64)
    for b, path in enumerate(paths):
        state = [small.V if when >= step else token for token, when in zip(path.tokens, path.when, strict=True)]
        hidden = [i for i, token in enumerate(state) if token == small.V]
        for drawn in itertools.product(range(small.V), repeat=len(hidden)):
            fill = list(state)
            logprob = torch.zeros((), dtype=torch.float64)
            for i, token in zip(hidden, drawn, strict=True):
                fill[i] = token
                logprob = logprob + table[small.index(state), i, token]
            total = total + of_path[b] * small.reward_table[tuple(fill)] * logprob.exp()
    return small.gradient(total)


def mean_field_gradient(small):
    """Compute Σ_τ p(τ) (r(τ) - E r) ∇ Σ_i log p(x_i | all masked) / 2, as the mean of a group of
    two contains the sample."""
    paths = small.paths()
    of_path, reward = small.probability(paths).detach(), small.reward(paths)
    table = small.logprobs(small.temperature)[small.index((small.V,) * small.L)]
    logprob = torch.stack([sum(table[i, token] for i, token in enumerate(path.tokens)) for path in paths])
    return small.gradient(0.5 * (of_path * (reward - (of_path * reward).sum()) * logprob).sum())


@pytest.mark.parametrize("step", [0, 1])
def test_the_state_term_is_the_gradient_of_the_branch_reward_over_the_length(toy, step):
    small = toy(num_tokens=3, length=2, num_steps=2)
    method = DiSPO(num_fills=2, terminal_weight=0.0)
    estimate = expected_gradient(small, method, *with_fills(small, step, 1))
    expected = one_step_gradient(small, step) / small.L
    assert expected.norm() > 0.01
    torch.testing.assert_close(estimate, expected, **EXACT)


@pytest.mark.parametrize("state_weight", [0.0, 1.0, 2.0])
def test_both_terms_are_added_with_their_weights(toy, state_weight):
    small = toy(num_tokens=2, length=2, num_steps=2)
    method = DiSPO(num_fills=2, state_weight=state_weight)
    estimate = expected_gradient(small, method, *with_fills(small, 1, 2))
    expected = (mean_field_gradient(small) + state_weight * one_step_gradient(small, 1)) / small.L
    torch.testing.assert_close(estimate, expected, **EXACT)


def test_the_terminal_term_trains_only_sampled_tokens_up_to_the_first_eos(toy):
    small = toy(num_tokens=2, length=3, num_steps=3, eos=True, order="left_to_right")
    groups, _ = with_fills(small, 0, 1)
    views = DiSPO(num_fills=2).plan(groups, torch.Generator())
    is_terminal = views.slot == 0
    path = groups.trajectory
    tokens, when = path.tokens[views.row[is_terminal]], path.unmask_step[views.row[is_terminal]]
    before_end = (tokens == path.eos_id).cumsum(-1) - (tokens == path.eos_id).int() == 0
    assert torch.equal(views.target[is_terminal], before_end)
    filled = when == path.num_steps
    assert filled.any()
    assert not (views.target[is_terminal] & filled).any()
    assert views.hidden[is_terminal].all()


def test_it_is_not_the_policy_gradient(toy):
    small = toy(num_tokens=2, length=2, num_steps=2)
    estimate = expected_gradient(small, DiSPO(num_fills=2), *with_fills(small, 0, 2))
    gradient = small.grad_j()
    aligned = gradient * (estimate * gradient).sum() / gradient.square().sum()
    assert distance(estimate, aligned) > 0.1


def test_its_needs_follow_from_the_options():
    assert DiSPO().needs().branches == Branches(4, "all")
    assert DiSPO(num_states=2).needs().selection == ("uniform", 2)
    assert DiSPO().needs().group
    assert not DiSPO(terminal_weight=0).needs().group


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_states": 5}, "num_states = 5 is more than the 4 denoising steps"),
        ({"state_weight": 0, "terminal_weight": 0}, "are both 0"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        DiSPO(**options).check(SamplerConfig(max_completion_length=8, num_steps=4), 2)

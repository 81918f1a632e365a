"""Tests of RLDF: clean targets, the floor of their probability, ratios of tokens, and the bias of
its choice of steps with and without inverse weights."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

from tests.helpers.any_order import EXACT, against_the_mean
from tests.helpers.messages import raises
from tests.helpers.records import make_inputs, make_trajectory
from tests.helpers.regions import REGION
from tests.helpers.toy import distance, expected_gradient, pinned
from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError
from unmask.core.records import GIVEN, Needs, Rollout
from unmask.functional import surprisal
from unmask.functional.selection import inclusion_probability
from unmask.functional.surprisal import mean_surprisal, surprisal_mass
from unmask.methods import METHODS
from unmask.methods.rldf import RLDF
from unmask.methods.views import step_views

PLAIN = {"beta": 0.0, "baseline": "leave_one_out", "target_floor": 0.0}


def test_the_defaults_are_the_published_settings():
    assert METHODS["rldf"]().model_dump() == {
        "type": "rldf",
        "num_selected": 4,
        "step_choice": "surprisal",
        "choice_temperature": 1.0,
        "targets": "clean",
        "target_floor": 0.6,
        "baseline": "z_score",
        "beta": 0.01,
        "epsilon": 0.2,
        "epsilon_high": 0.2,
        **REGION,
    }
    assert RLDF().needs() == Needs(reference="logprob")
    assert RLDF(beta=0.0, targets="step").needs() == Needs(choice=True)


def test_more_selected_steps_than_steps_are_refused():
    with raises(ConfigError, "num_selected = 4 is more than the 2 denoising steps"):
        RLDF().check(SamplerConfig(max_completion_length=8, num_steps=2), 2)


def test_approximate_rollouts_are_corrected_at_the_level_of_the_ratio():
    sampler = SamplerConfig()
    assert RLDF().behaviour_levels(sampler) == ("sequence",)
    assert RLDF(targets="step").behaviour_levels(sampler) == ("token", "step", "sequence")


# Plan


def test_clean_targets_are_all_tokens_of_the_text_that_are_still_masked():
    path = make_trajectory(
        [[5, 6, 7, 2, 2, 8], [5, 6, 7, 8, 9, 4]],
        unmask_step=[[1, 0, 2, 0, 2, 4], [GIVEN, 3, 1, 0, 2, 1]],
        sampler=SamplerConfig(max_completion_length=6, num_steps=4, order="random"),
    )
    method = RLDF(step_choice="surprisal_sampled", num_selected=4)
    views = method.plan(Rollout(path, 2, torch.tensor([1.0, 0.0])), torch.Generator())
    assert views.row.tolist() == [0, 0, 0, 1, 1, 1, 1]
    # The text of the first completion ends with the EOS at position 3. A step's own tokens are
    # targets wherever they are.
    assert views.target.int().tolist() == [
        [1, 1, 1, 1, 0, 0],
        [1, 0, 1, 0, 0, 0],
        [0, 0, 1, 0, 1, 0],
        [0, 1, 1, 1, 1, 1],
        [0, 1, 1, 0, 1, 1],
        [0, 1, 0, 0, 1, 0],
        [0, 1, 0, 0, 0, 0],
    ]
    committed = [[0, 1, 0, 1, 0, 0], [1, 0, 0, 0, 0, 0], [0, 0, 1, 0, 1, 0]]
    assert views.committed is not None
    assert views.committed[:3].int().tolist() == committed
    assert views.hidden[0].all()
    assert views.weight.tolist() == [0.25] * 7


# Loss


def given(**changes):
    """Return a view with three targets, of which the step committed the first."""
    committed = torch.tensor([[True, False, False]])
    return make_inputs([[-3.0, -0.2, -2.0]], committed=committed, advantage=2.0, **changes)


def test_the_floor_leaves_out_unlikely_targets_but_not_those_of_the_step():
    inputs = given()
    RLDF(beta=0.0, target_floor=0.5).loss(inputs).loss.sum().backward()
    # exp(-0.2) = 0.82 and exp(-2) = 0.14: two of three targets are left, and the loss is their mean.
    assert inputs.new.grad.tolist() == [[-1.0, -1.0, 0.0]]
    inputs = given()
    RLDF(beta=0.0, target_floor=0.0).loss(inputs).loss.sum().backward()
    assert inputs.new.grad.tolist() == [pytest.approx([-2 / 3] * 3)]


def test_the_floor_reads_the_old_policy():
    inputs = given(old=[[-3.0, -2.0, -0.2]])
    output = RLDF(beta=0.0, target_floor=0.5, trust_region="none").loss(inputs)
    assert output.loss.tolist() == pytest.approx([-(1 + math.exp(-1.8))])
    assert output.metrics["policy/ratio_max"].tolist() == pytest.approx([1.0, math.exp(-1.8)])


def test_the_ratio_of_each_token_is_clipped_alone():
    new = [[0.3, -0.3, 0.1]]
    inputs = make_inputs(new, old=[[0.0] * 3], advantage=1.0)
    loss = RLDF(**PLAIN).loss(inputs).loss
    assert loss.tolist() == pytest.approx([-(1.2 + math.exp(-0.3) + math.exp(0.1)) / 3])


def test_the_kl_is_that_of_each_token():
    reference = [[-1.0, -2.0, -3.0]]
    inputs = make_inputs([[-1.5, -2.0, -2.5]], reference=reference, advantage=0.0)
    k3 = [math.exp(0.5) - 1.5, 0.0, math.exp(-0.5) - 0.5]
    output = RLDF(baseline="leave_one_out", target_floor=0.0, beta=0.3).loss(inputs)
    assert output.loss.tolist() == pytest.approx([0.3 * sum(k3) / 3])
    assert output.metrics["kl"].tolist() == pytest.approx(k3)


def test_weights_of_tokens_multiply_the_advantage():
    weight = torch.tensor([[1.0, 2.0, 0.0]])
    inputs = make_inputs([[-1.0, -2.0, -3.0]], advantage=1.0, token_weight=weight)
    RLDF(**PLAIN, targets="step").loss(inputs).loss.sum().backward()
    assert inputs.new.grad.tolist() == [[-1.0, -2.0, 0.0]]


# Expectation


def scores(small, paths):
    """Return the surprisal of the single token of each step, [paths, T], read off the table."""
    table = small.logprobs(small.temperature).detach()
    return torch.stack([torch.stack([-table[s, i, t] for _, s, i, t in path.draws]) for path in paths])


def test_drawn_by_surprisal_without_weights_the_gradient_is_biased_by_a_known_amount(toy):
    small = toy(order="left_to_right")
    paths = small.paths()
    rollout, weight = small.groups(paths, 2, dtype=torch.float64)
    method = RLDF(**PLAIN, targets="step", num_selected=1, choice_temperature=0.5)
    # A single draw is the step k with probability exp(s_k / τ) / Σ exp(s / τ).
    path = rollout.trajectory
    chance = surprisal_mass(mean_surprisal(path.logprob, path.unmask_step, 3), torch.ones(len(path), 3).bool(), 0.5)
    views = step_views(path, torch.arange(3).expand(len(path), -1), chance)
    estimate = expected_gradient(small, method, rollout, weight, views=views)
    advantage, drawn = against_the_mean(small, paths), (scores(small, paths) / 0.5).softmax(-1)
    expected = pinned(small, paths, lambda b, k: advantage[b] * drawn[b, k])
    torch.testing.assert_close(estimate, expected, **EXACT)
    gradient = small.grad_j()
    aligned = gradient * (estimate * gradient).sum() / gradient.square().sum()
    assert distance(estimate, aligned) > 0.2, "it is biased at any scale"


def over_draws(small, paths, num_selected, temperature, monkeypatch):
    """Yield the probability of every outcome of the systematic draw, which is in force meanwhile.

    All rows share the draw; the loss is linear in the views of each row, so its expectation is the
    same.
    """
    mass = surprisal_mass(scores(small, paths), torch.ones(len(paths), small.num_steps).bool(), temperature)
    chance = inclusion_probability(mass, torch.ones_like(mass, dtype=torch.bool), num_selected)
    edges = torch.cat([chance.cumsum(-1).flatten() % 1.0, torch.tensor([0.0, 1.0])]).unique().tolist()
    for low, high in itertools.pairwise(edges):
        noise = torch.tensor((low + high) / 2, dtype=torch.float64)
        monkeypatch.setattr(
            surprisal, "selection_noise", lambda seed, width, noise=noise: noise.expand(len(seed), width)
        )
        yield high - low, chance


@pytest.mark.parametrize("num_selected", [1, 2])
@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_with_inverse_weights_the_step_targets_estimate_the_policy_gradient(
    toy, num_selected, temperature, monkeypatch
):
    small = toy(num_tokens=2, order="left_to_right")
    paths = small.paths()
    rollout, weight = small.groups(paths, 2, dtype=torch.float64)
    options = {"targets": "step", "step_choice": "surprisal_sampled", "choice_temperature": temperature}
    method = RLDF(**PLAIN, **options, num_selected=num_selected)
    total, unweighted, covered = 0.0, 0.0, 0.0
    members = torch.cartesian_prod(*[torch.arange(len(paths))] * 2).flatten()
    for probability, chance in over_draws(small, paths, num_selected, temperature, monkeypatch):
        views = method.plan(rollout, torch.Generator())
        step = rollout.trajectory.unmask_step[views.row][views.target].long()
        exact = 1 / chance[members[views.row], step] / small.L
        torch.testing.assert_close(views.weight.double(), exact, rtol=1e-6, atol=0)
        views = replace(views, weight=exact)
        total += probability * expected_gradient(small, method, rollout, weight, views=views)
        equal = replace(views, weight=torch.full_like(exact, 1 / num_selected))
        unweighted += probability * expected_gradient(small, method, rollout, weight, views=equal)
        covered += probability
    assert covered == pytest.approx(1, abs=1e-9)
    torch.testing.assert_close(total, small.grad_j() / small.L, **EXACT)
    assert distance(unweighted, small.grad_j()) > 0.05, "without the weights it is biased"


def clean_gradient(small, paths, of_steps=None):
    """Compute (1/T) Σ_k E[A ∇ mean over the positions masked before step k of log p(y_i | x_k)] from
    the table."""
    table, values = small.logprobs(small.temperature), []
    for path in paths:
        draws = []
        for step in range(small.num_steps):
            hidden = [i for i, when in enumerate(path.when) if when >= step]
            state = small.index([small.V if i in hidden else token for i, token in enumerate(path.tokens)])
            draws.append(sum(table[state, i, path.tokens[i]] for i in hidden) / len(hidden))
        values.append(sum(draws) / small.num_steps)
    advantage, probability = against_the_mean(small, paths), small.probability(paths).detach()
    return small.gradient((probability * advantage * torch.stack(values)).sum())


def test_over_all_steps_clean_targets_estimate_the_mean_over_what_is_masked(toy):
    small = toy()
    paths = small.paths()
    rollout, weight = small.groups(paths, 2)
    method = RLDF(**PLAIN, step_choice="surprisal_sampled", num_selected=3)
    views = method.plan(rollout, torch.Generator())
    assert views.weight.tolist() == pytest.approx([1 / 3] * len(views))
    views = replace(views, weight=torch.full((len(views),), 1 / 3, dtype=torch.float64))
    estimate = expected_gradient(small, method, rollout, weight, views=views)
    torch.testing.assert_close(estimate, clean_gradient(small, paths), **EXACT)
    gradient = small.grad_j()
    aligned = gradient * (estimate * gradient).sum() / gradient.square().sum()
    assert distance(estimate, aligned) > 0.3, "it is not the policy gradient at any scale"


def test_with_inverse_weights_clean_targets_estimate_the_same_from_fewer_steps(toy, monkeypatch):
    small = toy(num_tokens=2, order="left_to_right")
    paths = small.paths()
    rollout, weight = small.groups(paths, 2, dtype=torch.float64)
    method = RLDF(**PLAIN, step_choice="surprisal_sampled", num_selected=1)
    total = 0.0
    for probability, _ in over_draws(small, paths, 1, 1.0, monkeypatch):
        total += probability * expected_gradient(small, method, rollout, weight)
    # The weights are float32.
    assert distance(total, clean_gradient(small, paths)) < 1e-6

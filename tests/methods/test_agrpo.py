"""Tests of AGRPO: its draws, its expectation, and the bias of the released horizon."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.helpers.records import make_inputs
from tests.helpers.regions import REGION
from tests.helpers.toy import distance, expected_gradient, pinned
from unmask.core.records import Needs, Rollout, Views
from unmask.methods import METHODS
from unmask.methods.agrpo import AGRPO

EXACT = {"rtol": 0.0, "atol": 1e-10}


def method(**options):
    return AGRPO(**({"baseline": "leave_one_out"} | options))


def candidates(small, path, horizon):
    """Return the steps that may be drawn, from the path."""
    steps = sorted({k for k, *_ in path.draws})
    with_text = [k for k, _, _, token in path.draws if token != small.denoiser.eos_id]
    if horizon == "scheduled" or not with_text:
        return steps
    return [k for k in steps if k <= max(with_text)]


def probabilities(small, paths, sampling="entropy", horizon="scheduled"):
    """Return the probability with which each step is drawn, [paths, T], from the enumeration."""
    rows = []
    for path in paths:
        entropy = small.entropy(path)
        mass = [(entropy[k] + 1e-8) if sampling == "entropy" else 1.0 for k in range(small.num_steps)]
        allowed = candidates(small, path, horizon)
        rows.append([m if k in allowed else 0.0 for k, m in enumerate(mass)])
    mass = torch.tensor(rows, dtype=torch.float64)
    return mass / mass.sum(-1, keepdim=True)


def average_length(small, paths, horizon):
    """Return the number of steps in the mean, [paths, 1]."""
    if horizon == "scheduled":
        return torch.full((len(paths), 1), float(small.num_steps), dtype=torch.float64)
    return torch.tensor([[float(len(candidates(small, path, horizon)))] for path in paths], dtype=torch.float64)


def all_outcomes(rollout, expected_weight):
    """Return one view for each step of each row, with the expectation of its weight over the draws."""
    path = rollout.trajectory
    row, step = (expected_weight > 0).nonzero(as_tuple=True)
    when = path.unmask_step[row]
    hidden, target = when >= step.unsqueeze(-1), when == step.unsqueeze(-1)
    return Views(row=row, hidden=hidden, target=target, weight=expected_weight[row, step], slot=step)


def estimate(small, method, weight_of_a_draw=None):
    """Return the expected gradient over groups and draws: the probability of each step times the
    weight of a draw."""
    paths = small.paths()
    rollout, weight = small.groups(paths, 2)
    p = probabilities(small, paths, method.step_sampling, method.horizon)
    if weight_of_a_draw is None:
        weight_of_a_draw = 1 / (average_length(small, paths, method.horizon) * p)
    expected = torch.where(p > 0, p * weight_of_a_draw, 0.0)
    members = torch.cartesian_prod(torch.arange(len(paths)), torch.arange(len(paths))).flatten()
    return expected_gradient(small, method, rollout, weight, views=all_outcomes(rollout, expected[members]))


# Plan


def test_the_defaults_are_the_published_settings_except_the_horizon():
    assert METHODS["agrpo"]().model_dump() == {
        "type": "agrpo",
        "mc_samples": 24,
        "step_sampling": "entropy",
        "draws": "low_discrepancy",
        "horizon": "scheduled",
        "baseline": "group_mean",
        "beta": 0.0,
        "epsilon": 0.2,
        "epsilon_high": 0.2,
        **REGION,
    }
    assert AGRPO().needs() == Needs(choice=True)
    assert AGRPO(beta=0.1).needs() == Needs(reference="logprob", choice=True)


@pytest.mark.parametrize("draws", ["low_discrepancy", "independent"])
@pytest.mark.parametrize("sampling", ["uniform", "entropy"])
@pytest.mark.parametrize("horizon", ["scheduled", "last_text"])
def test_a_draw_of_a_step_weighs_one_over_horizon_and_probability(toy, sampling, horizon, draws):
    small = toy(eos=True)
    paths = small.paths()
    rollout = Rollout(small.trajectory(paths), 2, small.reward(paths))
    chosen = method(mc_samples=5, step_sampling=sampling, horizon=horizon, draws=draws)
    views = chosen.plan(rollout, torch.Generator().manual_seed(1))
    p = probabilities(small, paths, sampling, horizon)[views.row, views.slot]
    counts = views.weight * 5 * p * average_length(small, paths, horizon)[views.row, 0]
    assert counts.min() > 0.5
    torch.testing.assert_close(counts, counts.round(), rtol=1e-5, atol=0)
    # Five draws for each completion, including completions of only EOS.
    drawn = torch.zeros(len(paths)).index_add(0, views.row, counts.round().float())
    assert drawn.tolist() == [5.0] * len(paths)
    assert any(all(token == small.denoiser.eos_id for token in path.tokens) for path in paths)
    # A view is the state before its step, with the tokens that the step committed.
    when = rollout.trajectory.unmask_step[views.row]
    assert torch.equal(views.hidden, when >= views.slot.unsqueeze(-1))
    assert torch.equal(views.target, when == views.slot.unsqueeze(-1))
    assert views.target.any(-1).all()


@pytest.mark.parametrize(("draws", "is_even"), [("low_discrepancy", True), ("independent", False)])
def test_low_discrepancy_draws_are_even_over_the_whole_batch(toy, draws, is_even):
    small = toy()
    path = small.paths()[17]
    rollout = Rollout(small.trajectory([path] * 500), 2, torch.zeros(500))
    chosen = method(mc_samples=4, draws=draws)
    views = chosen.plan(rollout, torch.Generator().manual_seed(2))
    p = probabilities(small, [path])[0]
    counts = torch.zeros(3).double().index_add(0, views.slot, views.weight * 4 * 3 * p[views.slot])
    # An interval of length p contains 2000 p of 2000 stratified numbers, up to two more or fewer.
    assert bool(((counts - 2000 * p).abs() < 2.01).all()) == is_even


@pytest.mark.slow
def test_each_completion_draws_its_steps_with_their_probabilities(toy):
    small = toy()
    path = small.paths()[17]
    rollout = Rollout(small.trajectory([path] * 4), 2, torch.zeros(4))
    chosen = method(mc_samples=1)
    drawn = torch.zeros(3).double()
    for seed in range(3000):
        views = chosen.plan(rollout, torch.Generator().manual_seed(seed))
        drawn[views.slot[0]] += 1
    p = probabilities(small, [path])[0]
    assert p.max() - p.min() > 0.1
    torch.testing.assert_close(drawn / 3000, p, rtol=0, atol=0.03)


def test_a_token_present_from_the_start_is_never_a_target(toy):
    small = toy()
    path = small.trajectory(small.paths()[:2])
    when = torch.tensor([[-1, 0, 2], [-1, -1, -1]], dtype=torch.int32)
    rollout = Rollout(replace(path, unmask_step=when), 2, torch.zeros(2))
    views = method().plan(rollout, torch.Generator())
    assert views.row.unique().tolist() == [0]
    assert not views.target[:, 0].any()
    assert views.slot.tolist() == [0, 2]


# Expectation


@pytest.mark.parametrize("sampling", ["uniform", "entropy"])
@pytest.mark.parametrize(
    "options",
    [{}, {"eos": True}, {"num_steps": 2}, {"order": "left_to_right", "eos": True}, {"order": "plackett_luce"}],
    ids=str,
)
@pytest.mark.slow
def test_over_its_draws_it_is_the_policy_gradient_divided_by_the_number_of_steps(toy, sampling, options):
    small = toy(**options)
    gradient = small.grad_j()
    torch.testing.assert_close(estimate(small, method(step_sampling=sampling)), gradient / small.num_steps, **EXACT)
    assert gradient.norm() > 0.03


def test_the_group_mean_shrinks_it(toy):
    small = toy()
    torch.testing.assert_close(estimate(small, AGRPO()), 0.5 * small.grad_j() / 3, **EXACT)


def test_entropy_draws_without_weights_are_biased(toy):
    small = toy()
    unweighted = estimate(small, method(), weight_of_a_draw=torch.ones((), dtype=torch.float64))
    gradient = small.grad_j()
    aligned = gradient * (unweighted * gradient).sum() / gradient.square().sum()
    assert distance(unweighted, aligned) > 0.1


@pytest.mark.parametrize("sampling", ["uniform", "entropy"])
@pytest.mark.parametrize(("order", "astray"), [("random", 0.497), ("left_to_right", 0.344)])
def test_the_released_horizon_drops_late_steps_and_divides_by_a_length_of_the_path(toy, sampling, order, astray):
    small = toy(eos=True, order=order)
    paths = small.paths()
    reward = small.reward(paths)
    mean = float((small.probability(paths).detach() * reward).sum())
    allowed = [candidates(small, path, "last_text") for path in paths]
    biased = pinned(small, paths, lambda b, k: (float(reward[b]) - mean) / len(allowed[b]) if k in allowed[b] else 0.0)
    found = estimate(small, method(horizon="last_text", step_sampling=sampling))
    torch.testing.assert_close(found, biased, **EXACT)
    gradient = small.grad_j()
    aligned = gradient * (found * gradient).sum() / gradient.square().sum()
    assert distance(found, aligned) == pytest.approx(astray, abs=0.001)


def test_without_early_ends_the_two_horizons_agree(toy):
    small = toy()
    torch.testing.assert_close(estimate(small, method(horizon="last_text")), small.grad_j() / 3, **EXACT)


# Loss


def test_each_token_has_its_own_ratio_and_clip():
    up = torch.tensor(1.5).log().item()
    new = torch.tensor([[up, 0.1, 9.0], [up, -0.1, 9.0]], requires_grad=True)
    given = make_inputs(
        new,
        old=[[0.0, 0.0, 9.0]] * 2,
        target=[[True, True, False]] * 2,
        weight=[2.0, 0.5],
        advantage=[1.0, -1.0],
    )
    output = AGRPO().loss(given)
    e = torch.tensor([0.1, -0.1]).exp()
    torch.testing.assert_close(output.loss, torch.tensor([-2.0 * (1.2 + e[0]), 0.5 * (1.5 + e[1])]))
    assert output.metrics["clip_ratio/region_mean"].tolist() == [1.0, 0.0, 0.0, 0.0]
    output.loss.sum().backward()
    assert (new.grad != 0).tolist() == [[False, True, False], [True, True, False]]


def test_the_gradient_of_the_kl_term_is_that_of_the_kl_of_new_to_reference():
    # E_new[∇(ρ k3)] at ρ = 1 over a distribution of three tokens; k3 without ρ would give ∇
    # KL(reference || new).
    logits = torch.tensor([0.3, -0.4, 1.1], dtype=torch.float64, requires_grad=True)
    other = torch.tensor([0.9, 0.2, -0.5], dtype=torch.float64).log_softmax(-1)
    logp = logits.log_softmax(-1)
    (exact,) = torch.autograd.grad((logp.exp() * (logp - other)).sum(), logits, retain_graph=True)
    given = make_inputs(logp.unsqueeze(-1), reference=other.unsqueeze(-1), weight=logp.detach().exp(), advantage=0.0)
    output = AGRPO(beta=0.5).loss(given)
    (found,) = torch.autograd.grad(output.loss.sum(), logits)
    torch.testing.assert_close(found, 0.5 * exact, **EXACT)
    assert exact.norm() > 0.1
    assert not output.metrics["kl"].requires_grad

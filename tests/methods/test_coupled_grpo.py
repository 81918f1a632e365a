"""Tests of coupled-GRPO: the coupled masks, the averaged log-probability, and the expectation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.stats import binomtest, kstest

from tests.helpers.mean_field import EXACT, OneUpdate, all_masks, surrogate_gradient, token_logprobs
from tests.helpers.messages import raises
from tests.helpers.records import make_inputs
from tests.helpers.regions import REGION
from tests.helpers.toy import distance, expected_gradient
from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError
from unmask.core.records import GIVEN, Needs, Rollout, Views
from unmask.methods import METHODS
from unmask.methods.coupled_grpo import CoupledGRPO

METHOD = CoupledGRPO(beta=0.0)


def test_the_defaults_are_the_published_settings():
    assert METHODS["coupled_grpo"]().model_dump() == {
        "type": "coupled_grpo",
        "min_ratio": 0.2,
        "max_ratio": 0.8,
        "baseline": "leave_one_out",
        "epsilon": 0.5,
        "epsilon_high": 0.5,
        "beta": 0.01,
        **REGION,
    }
    assert CoupledGRPO().needs() == Needs(reference="logprob")
    assert METHOD.needs() == Needs()


def test_settings_that_do_not_fit_together_are_refused():
    sampler = SamplerConfig()
    CoupledGRPO().check(sampler, 2)
    with raises(ConfigError, "min_ratio = 0.9 is above method.max_ratio = 0.8. Swap them"):
        CoupledGRPO(min_ratio=0.9).check(sampler, 2)
    with raises(ConfigError, "weighted means of two likelihoods of a token. Set method.trust_region to clip or none"):
        CoupledGRPO(trust_region="divergence").check(sampler, 2)
    with raises(ConfigError, "num_generations = 1"):
        CoupledGRPO().check(sampler, 1)


# Plan


def many(toy, num_rows=3000, **options):
    small = toy(eos=True, **options)
    paths = small.paths()
    path = small.trajectory([paths[b % len(paths)] for b in range(num_rows)])
    return Rollout(path, 2, torch.rand(num_rows, generator=torch.Generator().manual_seed(0)))


def test_each_scored_token_is_a_target_given_nothing_and_in_exactly_one_of_two_halves(toy):
    rollout = many(toy, 600)
    views = METHOD.plan(rollout, torch.Generator().manual_seed(0))
    assert views.row.tolist() == [b for b in range(600) for _ in range(3)]
    whole, first, second = views.target.view(-1, 3, 3).unbind(1)
    is_eos = rollout.trajectory.tokens == 2
    assert torch.equal(whole, (is_eos.cumsum(-1) - is_eos.int()) == 0)
    assert torch.equal(first ^ second, whole)
    assert not (first & second).any()
    # After the first EOS everything is masked in all three views.
    assert torch.equal(views.hidden.view(-1, 3, 3), views.target.view(-1, 3, 3) | ~whole.unsqueeze(1))
    assert views.prompt_hidden is None


def test_the_set_masks_each_token_with_a_probability_drawn_between_the_two_ratios(toy):
    rollout = many(toy)
    views = METHOD.plan(rollout, torch.Generator().manual_seed(1))
    whole, first, second = views.weight.view(-1, 3).double().unbind(1)
    time = 0.5 / first
    assert (whole == 0.5).all()
    torch.testing.assert_close(0.5 / second, 1 - time, rtol=0, atol=1e-6)
    assert kstest(time.numpy(), "uniform", args=(0.2, 0.6)).pvalue > 1e-3
    assert kstest(time.numpy(), "uniform", args=(0.2, 0.7)).pvalue < 1e-3, "the comparison can fail"
    masked = views.target.view(-1, 3, 3)[:, 1, 0]
    for low, high in ((0.2, 0.4), (0.4, 0.6), (0.6, 0.8)):
        near = (time >= low) & (time < high)
        assert binomtest(int(masked[near].sum()), int(near.sum()), float(time[near].mean())).pvalue > 1e-3


def test_tokens_present_from_the_start_stay_visible_and_are_not_targets(toy):
    rollout = many(toy, 30)
    when = rollout.trajectory.unmask_step.clone()
    when[:, 0] = GIVEN
    views = METHOD.plan(replace(rollout, trajectory=replace(rollout.trajectory, unmask_step=when)), torch.Generator())
    assert not (views.hidden | views.target)[:, 0].any()


# Expectation


def coupled(num_rows, time, mask):
    """Return the plan's views with one draw for every row, in float64."""
    sets = torch.stack([torch.ones(3, dtype=torch.bool), mask, ~mask]).repeat(num_rows, 1)
    weight = torch.tensor([0.5, 0.5 / time, 0.5 / (1 - time)], dtype=torch.float64).repeat(num_rows)
    slot = torch.arange(3).repeat(num_rows)
    return Views(torch.arange(num_rows).repeat_interleave(3), sets, sets, weight, slot)


def given_others(small, paths, time):
    """Compute Σ_k E[log p(x_k | k masked, each other token masked with probability t)], token by
    token."""
    total = 0.0
    for mask in all_masks(3):
        each = token_logprobs(small, paths, mask)
        for k in range(3):
            others = [float(m) for i, m in enumerate(mask) if i != k]
            if mask[k]:
                total = total + each[:, k] * time ** sum(others) * (1 - time) ** (2 - sum(others))
    return total


@pytest.mark.parametrize("time", [0.2, 0.5, 0.7])
@pytest.mark.parametrize(("baseline", "share"), [("leave_one_out", 1.0), ("group_mean", 0.5)])
def test_it_estimates_half_the_mean_field_plus_two_halves_given_others_for_every_ratio(toy, time, baseline, share):
    small = toy(num_tokens=2, order="left_to_right")
    paths = small.paths()
    rollout, weight = small.groups(paths, 2)
    method = CoupledGRPO(beta=0.0, baseline=baseline)
    total = 0.0
    for mask in all_masks(3):
        count = int(mask.sum())
        views = coupled(len(rollout.reward), time, mask)
        chance = time**count * (1 - time) ** (3 - count)
        total = total + chance * expected_gradient(small, method, rollout, weight, views=views)
    nothing = token_logprobs(small, paths, [True] * 3).sum(-1)
    averaged = (nothing + given_others(small, paths, time) + given_others(small, paths, 1 - time)) / 2
    expected = share * surrogate_gradient(small, paths, averaged) / 3
    assert expected.norm() > 0.01
    torch.testing.assert_close(total, expected, **EXACT)
    # Its weights sum to 1.5: half from the fully masked completion, and one from the two halves.
    assert distance(total, share * surrogate_gradient(small, paths, nothing) / 3) > 0.1


def test_the_distance_from_the_policy_gradient_is_known(toy):
    small = toy(num_tokens=2)
    paths = small.paths()
    node, half = 0.6 / 3**0.5 / 2, 0.0
    for time in (0.5 - node, 0.5 + node):
        # Gauss's rule with two nodes over the ratios, exact for the expectation, which is a cubic.
        half = half + given_others(small, paths, time) / 2
    averaged = token_logprobs(small, paths, [True] * 3).sum(-1) / 2 + half
    estimate, gradient = surrogate_gradient(small, paths, averaged), small.grad_j()
    assert distance(estimate, gradient) == pytest.approx(3.035939, rel=1e-5)
    aligned = gradient * (estimate * gradient).sum() / gradient.square().sum()
    assert distance(estimate, aligned) > 0.2


# Loss


def test_the_ratio_is_of_the_averaged_log_probability_and_the_batch_shares_its_tokens():
    generator = torch.Generator().manual_seed(2)
    new, old, reference = (-torch.rand(6, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    target = torch.tensor(
        [[1, 1, 1, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]], dtype=torch.bool
    )
    new, old, reference = (values * target for values in (new, old, reference))
    new.requires_grad_()
    weight = torch.tensor([0.5, 1.25, 0.5 / 0.6, 0.5, 2.5, 0.625], dtype=torch.float64)
    advantage = torch.tensor([1.0, -2.0], dtype=torch.float64)
    given = make_inputs(
        new,
        old=old,
        reference=reference,
        row=[4, 4, 4, 7, 7, 7],
        target=target,
        weight=weight,
        advantage=advantage.repeat_interleave(3),
    )
    output = CoupledGRPO(beta=0.1).loss(given)
    losses, ratios = [], []
    for b in range(2):
        n, o, r = ((weight.unsqueeze(-1) * v)[3 * b : 3 * b + 3].sum(0) for v in (new, old, reference))
        ratio, a = (n - o).exp(), advantage[b]
        each = -torch.minimum(ratio * a, ratio.clamp(0.5, 1.5) * a) + 0.1 * ((r - n).exp() - (r - n) - 1)
        ratios.append(ratio[target[3 * b]])
        losses.append((each * target[3 * b]).sum() * 2 / 6)
    assert output.loss.shape == (2,)
    torch.testing.assert_close(output.loss, torch.stack(losses))
    by_hand = torch.autograd.grad(sum(losses), new, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(output.loss.sum(), new)[0], by_hand)
    torch.testing.assert_close(output.metrics["policy/ratio_max"], torch.cat(ratios).detach())
    assert output.metrics["kl"].numel() == 6


# In the trainer


def test_two_passes_give_the_gradient_of_one_graph_with_the_memory_of_one_chunk(lively, tmp_path):
    update = OneUpdate(lively, tmp_path)
    rollout = update.rollout(update.recipe(METHOD))
    whole = update.one_graph(METHOD, rollout)
    assert whole.norm() > 1e-4
    for size in (256, 5, 1):
        metrics, gradient = update(METHOD, f"views_per_forward={size}", "num_iterations=1", rollout=rollout)
        assert distance(gradient, whole) < 1e-6
        assert max(update.events[::2]) <= size
        assert update.events[1::2] == ["backward"] * (len(update.events) // 2), "no graph outlives its chunk"
        assert sum(update.events[::2]) == 36
        assert metrics["policy/ratio_max"] == 1.0


def test_a_token_by_token_loss_of_each_view_would_differ(lively, tmp_path):
    # The second pass is needed: after the first update the ratio is a product over views.
    update = OneUpdate(lively, tmp_path)
    rollout = update.rollout(update.recipe(METHOD))
    still, _ = update(METHOD, "num_iterations=3", "optim.learning_rate=1.0e-12", rollout=rollout)
    moved, _ = update(METHOD, "num_iterations=3", "optim.learning_rate=1.0e-2", rollout=rollout)
    assert still["policy/ratio_max"] == pytest.approx(1.0, abs=1e-5)
    assert moved["policy/ratio_max"] > 1.01

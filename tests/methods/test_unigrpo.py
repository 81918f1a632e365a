"""Tests of UniGRPO: its masks, its expectation, and the bias of the mean over masked tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.stats import binomtest, kstest

from tests.helpers.mean_field import EXACT, OneUpdate, all_masks, scored, surrogate_gradient, token_logprobs
from tests.helpers.messages import raises
from tests.helpers.records import make_inputs
from tests.helpers.regions import REGION
from tests.helpers.toy import distance, expected_gradient
from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError
from unmask.core.records import Needs, Rollout, Views
from unmask.methods import METHODS, unigrpo
from unmask.methods.unigrpo import UniGRPO

METHOD = UniGRPO(beta=0.0, baseline="leave_one_out")


def test_the_defaults_are_the_published_settings():
    assert METHODS["unigrpo"]().model_dump() == {
        "type": "unigrpo",
        "num_views": 1,
        "min_ratio": 0.1,
        "max_ratio": 0.9,
        "baseline": "group_mean",
        "epsilon": 0.2,
        "epsilon_high": 0.2,
        "beta": 0.01,
        **REGION,
    }
    assert UniGRPO().needs() == Needs(reference="logprob")
    assert METHOD.needs() == Needs()


@pytest.mark.parametrize("ratios", [{"min_ratio": 0.95}, {"min_ratio": 0.0, "max_ratio": 0.0}], ids=str)
def test_a_range_of_ratios_that_masks_nothing_is_refused(ratios):
    UniGRPO(min_ratio=0.0, max_ratio=1.0).check(SamplerConfig(), 2)
    with raises(ConfigError, "leave no share of tokens to mask. Set 0 <= min_ratio <= max_ratio"):
        UniGRPO(**ratios).check(SamplerConfig(), 2)


# Plan


def many(toy, num_rows, **options):
    small = toy(**options)
    paths = small.paths()
    path = small.trajectory([paths[b % len(paths)] for b in range(num_rows)])
    return small, Rollout(path, 2, torch.rand(num_rows, generator=torch.Generator().manual_seed(0)))


@pytest.mark.slow
def test_masked_tokens_are_the_targets_and_all_after_the_first_eos_is_masked(toy):
    small, rollout = many(toy, 324, eos=True)
    views = UniGRPO(num_views=2).plan(rollout, torch.Generator().manual_seed(0))
    valid = scored(small, [small.paths()[b % len(small.paths())] for b in range(324)]).repeat_interleave(2, dim=0)
    assert not (views.target & ~valid).any()
    assert torch.equal(views.hidden, views.target | ~valid)
    assert views.prompt_hidden is None
    count = views.target.sum(-1)
    assert set(count.tolist()) == {0, 1, 2, 3}
    expected = torch.where(count > 0, 1 / (2 * count.clamp(min=1)), 0.5)
    torch.testing.assert_close(views.weight, expected)


def test_the_ratios_of_a_completions_views_are_evenly_spaced_and_each_is_uniform(toy, monkeypatch):
    _, rollout = many(toy, 2000)
    seen, mask = [], unigrpo.mask_at_times
    monkeypatch.setattr(unigrpo, "mask_at_times", lambda t, *rest: (seen.append(t), mask(t, *rest))[1])
    views = UniGRPO(num_views=4).plan(rollout, torch.Generator().manual_seed(1))
    place = ((seen[0] - 0.1) / 0.8).view(-1, 4).double()
    for m in range(4):
        assert kstest(place[:, m].numpy(), "uniform").pvalue > 1e-3
    gaps = place.sort(-1).values.diff(dim=-1)
    torch.testing.assert_close(gaps, torch.full_like(gaps, 0.25), rtol=0, atol=1e-5)
    # Each token is masked with the probability of its view: one half in the mean over all.
    for column in range(3):
        assert binomtest(int(views.target[:, column].sum()), 8000, 0.5).pvalue > 1e-3
    near = seen[0] > 0.8
    assert binomtest(int(views.target[near, 0].sum()), int(near.sum()), 0.85).pvalue > 1e-3
    assert binomtest(int(views.target[near, 0].sum()), int(near.sum()), 0.7).pvalue < 1e-3, "the comparison can fail"


# Expectation


def with_mask(rollout, mask, weight):
    num = len(rollout.reward)
    sets = mask.expand(num, 3)
    return Views(
        torch.arange(num),
        sets,
        sets,
        torch.full((num,), weight, dtype=torch.float64),
        torch.zeros(num, dtype=torch.long),
    )


def over_masks(small, rollout, weight, weight_of, low=0.1, high=0.9):
    """Return the expectation over masks, for uniform ratios, by Gauss's rule with two nodes, which
    is exact for a cubic."""
    total = 0.0
    for sign in (-1, 1):
        time = (low + high) / 2 + sign * (high - low) / 2 / 3**0.5
        for mask in all_masks(3)[1:]:
            count = int(mask.sum())
            views = with_mask(rollout, mask, weight_of(count))
            chance = time**count * (1 - time) ** (3 - count) / 2
            total = total + chance * expected_gradient(small, METHOD, rollout, weight, views=views)
    return total


def expected_value(small, paths, weight_of):
    """Compute the same surrogate from the table, with the integral over the ratio in closed form."""
    total = 0.0
    for mask in all_masks(3)[1:]:
        count = int(mask.sum())
        # ∫ t^c (1 - t)^(3 - c) dt / 0.8 over (0.1, 0.9).
        integral = {
            1: lambda t: t**2 / 2 - 2 * t**3 / 3 + t**4 / 4,
            2: lambda t: t**3 / 3 - t**4 / 4,
            3: lambda t: t**4 / 4,
        }
        chance = (integral[count](0.9) - integral[count](0.1)) / 0.8
        total = total + chance * weight_of(count) * (token_logprobs(small, paths, mask) * mask).sum(-1)
    return total


@pytest.mark.parametrize("options", [{}, {"order": "low_confidence", "num_steps": 2}], ids=str)
def test_it_estimates_the_gradient_of_the_mean_over_masked_tokens(toy, options):
    small = toy(num_tokens=2, **options)
    paths = small.paths()
    rollout, weight = small.groups(paths, 2)
    estimate = over_masks(small, rollout, weight, lambda count: 1 / count)
    expected = surrogate_gradient(small, paths, expected_value(small, paths, lambda count: 1 / count))
    assert expected.norm() > 0.01
    torch.testing.assert_close(estimate, expected, **EXACT)


def elbo(small, paths):
    """Compute Σ_l E_{|S| = l}[Σ_S log p] / l, [paths], with graph."""
    total = 0.0
    for mask in all_masks(3)[1:]:
        count = int(mask.sum())
        total = total + (token_logprobs(small, paths, mask) * mask).sum(-1) / count / {1: 3, 2: 3, 3: 1}[count]
    return total


def test_with_ratios_from_0_to_1_it_is_the_elbos_gradient_over_the_number_of_tokens_plus_one(toy):
    # Every count from 0 to L is then equally likely, and the empty set contributes nothing.
    small = toy(num_tokens=2)
    paths = small.paths()
    estimate = over_masks(small, *small.groups(paths, 2), lambda count: 1 / count, 0.0, 1.0)
    torch.testing.assert_close(estimate, surrogate_gradient(small, paths, elbo(small, paths)) / 4, **EXACT)


def test_views_of_a_completion_share_its_weight(toy):
    small = toy(num_tokens=2)
    rollout, weight = small.groups(small.paths(), 2)
    method = UniGRPO(beta=0.0, num_views=3, min_ratio=1.0, max_ratio=1.0, baseline="leave_one_out")
    three = expected_gradient(small, method, rollout, weight)
    one = expected_gradient(small, METHOD, rollout, weight, views=with_mask(rollout, torch.ones(3).bool(), 1 / 3))
    # The plan's weights are float32.
    assert distance(three, one) < 1e-6


def test_a_mean_over_masked_tokens_favours_the_tokens_of_short_completions_and_that_is_a_bias(toy):
    small = toy(num_tokens=2, eos=True)
    paths = small.paths()
    rollout, weight = small.groups(paths, 2)
    method = UniGRPO(beta=0.0, min_ratio=1.0, max_ratio=1.0, baseline="leave_one_out")
    views = method.plan(rollout, torch.Generator())
    length = views.target.sum(-1)
    assert length.unique().tolist() == [1, 2, 3]
    torch.testing.assert_close(views.weight, 1 / length)
    estimate = expected_gradient(small, method, rollout, weight, views=replace(views, weight=1 / length.double()))
    valid = scored(small, paths)
    total = (token_logprobs(small, paths, [True] * 3) * valid).sum(-1)
    torch.testing.assert_close(estimate, surrogate_gradient(small, paths, total / valid.sum(-1)), **EXACT)
    evenly = surrogate_gradient(small, paths, total)
    aligned = evenly * (estimate * evenly).sum() / evenly.square().sum()
    assert distance(estimate, aligned) > 0.05


def test_the_distances_from_the_policy_gradient_and_the_elbos_gradient_are_known(toy):
    small = toy(num_tokens=2)
    paths = small.paths()
    estimate = surrogate_gradient(small, paths, expected_value(small, paths, lambda count: 1 / count))
    gradient = small.grad_j()

    def off(target):
        """Return the distance from the nearest multiple of `target`, which no learning rate can
        remove."""
        aligned = target * (estimate * target).sum() / target.square().sum()
        return distance(estimate, aligned)

    assert off(gradient) == pytest.approx(1.324413, rel=1e-5)
    # With ratios over (0, 1), 1 / count is the weight of the ELBO up to the number of tokens; the
    # range makes the difference.
    assert off(surrogate_gradient(small, paths, elbo(small, paths))) == pytest.approx(0.147718, rel=1e-5)
    assert off(estimate) < 1e-12, "the measure itself"


# Loss


def test_each_masked_token_has_its_own_ratio_and_clip():
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(4, 5, generator=generator) < 0.6
    new, old, reference = (-3 * torch.rand(4, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    advantage = torch.tensor([1.0, -1.0, 0.5, -2.0], dtype=torch.float64)
    weight = torch.tensor([0.5, 0.25, 1.0, 0.1], dtype=torch.float64)
    new.requires_grad_()
    given = make_inputs(new, old=old, reference=reference, target=target, weight=weight, advantage=advantage)
    output = UniGRPO(beta=0.3).loss(given)
    ratio, a = (new - old).exp(), advantage.unsqueeze(-1)
    each = -torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a) + 0.3 * (
        (reference - new).exp() - (reference - new) - 1
    )
    by_hand = weight * (each * target).sum(-1)
    torch.testing.assert_close(output.loss, by_hand)
    gradients = [torch.autograd.grad(x.sum(), new, retain_graph=True)[0] for x in (output.loss, by_hand)]
    torch.testing.assert_close(*gradients)


# In the trainer


def test_the_ratio_is_one_at_the_first_update_and_each_pass_has_its_own_masks(lively, tmp_path, monkeypatch):
    plans, plan = [], UniGRPO.plan

    def recorded(self, rollout, generator):
        plans.append(plan(self, rollout, generator))
        return plans[-1]

    monkeypatch.setattr(UniGRPO, "plan", recorded)
    update = OneUpdate(lively, tmp_path)
    rollout = update.rollout(update.recipe(METHOD))
    metrics, _ = update(METHOD, "num_iterations=3", "optim.learning_rate=1.0e-12", rollout=rollout)
    assert metrics["policy/ratio_max"] == pytest.approx(1.0, abs=1e-5)
    assert len({tuple(views.target.flatten().tolist()) for views in plans}) == 3


def test_chunks_of_views_give_the_whole_gradient(lively, tmp_path):
    update = OneUpdate(lively, tmp_path)
    rollout = update.rollout(update.recipe(METHOD))
    method = METHOD.model_copy(update={"num_views": 3})
    whole = update.one_graph(method, rollout)
    assert whole.norm() > 1e-4
    for size in (256, 5, 1):
        _, gradient = update(method, f"views_per_forward={size}", "num_iterations=1", rollout=rollout)
        assert distance(gradient, whole) < 1e-6

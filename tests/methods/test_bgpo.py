"""Tests of BGPO: a lower bound that touches the objective at the old policy, its masks, and its
scaled advantage."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.any_order import (
    EXACT,
    against_the_mean,
    all_views,
    another,
    elbos,
    loss_of,
    many,
    weighted_elbo_gradient,
    with_given,
)
from tests.helpers.records import make_inputs
from tests.helpers.regions import REGION
from tests.helpers.toy import distance, expected_gradient
from unmask.core.records import Needs
from unmask.methods import METHODS
from unmask.methods.bgpo import BGPO
from unmask.methods.espo import ESPO
from unmask.methods.views import scored_tokens

FREE = {"trust_region": "none", "scale": "none"}


def plain(length):
    """Return the weight of a set in the expectation over one draw: 1/n for its count, uniform in
    its size; n/(l L)."""
    return lambda count, n: 1 / n / math.comb(n, count) * n / count / length


def inputs(difference, advantage):
    """Return one view of two tokens for each difference d, with weight 1/2 and old
    log-probabilities of -1."""
    new = torch.tensor(difference, dtype=torch.float64).unsqueeze(-1).expand(-1, 2) - 1
    new, row = new.clone().requires_grad_(), torch.zeros(len(new), dtype=torch.long)
    return make_inputs(new, old=torch.full_like(new, -1.0), row=row, weight=0.5, advantage=advantage)


def test_the_defaults_are_the_published_settings():
    published = {"num_samples": 16, "baseline": "group_mean", "scale": "deviation", "epsilon": 0.2, "epsilon_high": 0.2}
    region = REGION | {"dual_clip": 3.0}
    assert METHODS["bgpo"]().model_dump() == {"type": "bgpo"} | published | region
    assert BGPO().needs() == Needs()
    assert BGPO.separable
    assert not BGPO.fresh_views


# Plan


def test_each_view_masks_a_count_of_the_tokens_up_to_the_first_eos_and_shows_the_rest(toy):
    small = toy(eos=True, order="left_to_right")
    rollout = many(small, 30)
    scored = scored_tokens(rollout.trajectory)
    assert not scored.all()
    views = BGPO(num_samples=6).plan(rollout, torch.Generator().manual_seed(0))
    assert torch.equal(views.hidden, views.target)
    assert not (views.hidden & ~scored[views.row]).any()
    assert torch.bincount(views.row).tolist() == [6] * 30
    count, n = views.hidden.sum(-1), scored.sum(-1)[views.row]
    torch.testing.assert_close(views.weight, n / (count * 3))
    for size in (1, 2, 3):
        mine = [torch.bincount(count[views.row == b])[1:].tolist() for b in range(30) if int(scored[b].sum()) == size]
        assert mine
        assert all(counts == [6 // size] * size for counts in mine), "a completion's counts are spread evenly"


def test_tokens_present_from_the_start_are_never_masked(toy):
    rollout = with_given(many(toy(), 2), 0, [1])
    views = BGPO(num_samples=12).plan(rollout, torch.Generator().manual_seed(0))
    assert not views.hidden[views.row == 0][:, 1].any()
    assert views.hidden[views.row == 1][:, 1].any()


# The bound


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=6), st.floats(-2, 2))
def test_the_mean_over_views_is_a_lower_bound_of_the_ratio_of_mean_elbos(differences, advantage):
    method = BGPO(num_samples=len(differences), **FREE)
    bound = -float(method.loss(inputs(differences, advantage)).loss.detach().sum())
    objective = math.exp(sum(differences) / len(differences)) * advantage
    assert bound <= objective + 1e-9


def test_the_bounds_of_the_two_signs_cannot_be_exchanged():
    # exp instead of the line for A > 0 is above the objective, by Jensen.
    differences = [-1.0, 1.0]
    assert sum(map(math.exp, differences)) / 2 > math.exp(0) + 0.1
    bound = -float(BGPO(num_samples=2, **FREE).loss(inputs(differences, 1.0)).loss.detach().sum())
    assert bound == pytest.approx(1.0)


@pytest.mark.parametrize("advantage", [1.5, -1.5])
def test_it_touches_the_objective_at_the_old_policy_in_value_and_gradient(advantage):
    views = inputs([0.0, 0.0], advantage)
    loss = BGPO(num_samples=2).loss(views).loss
    assert loss.tolist() == pytest.approx([-advantage / 2] * 2)
    loss.sum().backward()
    torch.testing.assert_close(views.new.grad, torch.full((2, 2), -advantage / 4, dtype=torch.float64))


def test_for_a_positive_advantage_the_line_continues_below_one_plus_d_of_zero():
    views = inputs([-3.0, -1.0, -0.5, -0.25], 2.0)
    loss = BGPO(num_samples=1).loss(views).loss
    assert loss.tolist() == pytest.approx([4.0, 0.0, -1.0, -1.5])
    loss.sum().backward()
    torch.testing.assert_close(views.new.grad, torch.full((4, 2), -1.0, dtype=torch.float64))


def test_each_view_is_clipped_separately_on_the_harmful_side():
    up = BGPO(num_samples=1).loss(inputs([0.1, 0.3], 1.0))
    assert up.loss.tolist() == pytest.approx([-1.1, -1.2])
    down = BGPO(num_samples=1).loss(inputs([-0.1, -0.3, 0.3, 2.0], -1.0))
    assert down.loss.tolist() == pytest.approx([math.exp(-0.1), 0.8, math.exp(0.3), 3.0])
    assert down.metrics["clip_ratio/region_mean"].tolist() == [0.0, 1.0, 0.0, 1.0]


def test_an_overflow_on_one_side_does_not_change_the_gradient_of_the_other():
    views = inputs([2000.0, -2000.0, 0.0], 1.0)
    BGPO(num_samples=3, **FREE).loss(views).loss.sum().backward()
    assert torch.isfinite(views.new.grad).all()


# Expectation


@pytest.mark.parametrize("options", [{}, {"eos": True}], ids=str)
@pytest.mark.parametrize(("baseline", "share"), [("leave_one_out", 1.0), ("group_mean", 0.5)])
def test_without_scaling_its_gradient_is_that_of_the_elbo_up_to_the_first_eos_weighted_by_advantage(
    toy, options, baseline, share
):
    small = toy(order="left_to_right", **options)
    paths, eos = small.paths(), small.denoiser.eos_id
    rollout, weight = small.groups(paths, 2)
    views = all_views(rollout, plain(small.L), scored_tokens(rollout.trajectory))
    method = BGPO(num_samples=1, scale="none", baseline=baseline)
    estimate = expected_gradient(small, method, rollout, weight, views=views)

    def until_eos(path):
        ends = path.tokens.index(eos) if eos in path.tokens else small.L - 1
        return tuple(range(ends + 1))

    stated = weighted_elbo_gradient(
        small, paths, against_the_mean(small, paths), elbos(small, paths, until_eos) / small.L
    )
    torch.testing.assert_close(estimate, share * stated, **EXACT)
    whole = weighted_elbo_gradient(small, paths, against_the_mean(small, paths)) / small.L
    assert (distance(stated, whole) > 0.1) == small.eos


def test_dividing_by_the_deviation_of_the_group_gives_a_different_gradient_of_known_value(toy):
    small = toy(num_tokens=2, length=2, num_steps=2, order="left_to_right")
    paths = small.paths()
    rollout, weight = small.groups(paths, 3)
    views = all_views(rollout, plain(small.L))
    estimate = expected_gradient(small, BGPO(num_samples=1), rollout, weight, views=views)
    reward, probability, values = small.reward(paths), small.probability(paths).detach(), elbos(small, paths)
    total = torch.zeros((), dtype=torch.float64)
    for group in itertools.product(range(len(paths)), repeat=3):
        members = torch.tensor(group)
        r = reward[members]
        scaled = (r - r.mean()) / (r.std() + 1e-6)
        total = total + probability[members].prod() * (scaled * values[members]).sum() / 3
    pinned = small.gradient(total) / small.L
    torch.testing.assert_close(estimate, pinned, **EXACT)
    plain_gradient = weighted_elbo_gradient(small, paths, against_the_mean(small, paths)) / small.L
    aligned = plain_gradient * (estimate * plain_gradient).sum() / plain_gradient.square().sum()
    assert distance(estimate, aligned) > 0.02, "not a matter of scale"


def test_at_the_old_policy_its_gradient_is_espos_on_the_same_sets_and_elsewhere_it_is_not(toy, table_denoiser):
    small = toy(num_tokens=2, length=4, num_steps=2)
    rollout = many(small, 8, group_size=4)
    method = BGPO(num_samples=5, **FREE)
    sequence = ESPO(beta=0.0, trust_region="none", baseline="group_mean")
    views = method.plan(rollout, torch.Generator().manual_seed(0))
    # ESPO's weights turn the views into an ELBO, and its loss divides by L.
    of_elbo = replace(views, weight=views.weight * small.L / 5)
    old = another(small, table_denoiser)
    gradients = {}
    for name, start in (("at the old policy", small), ("elsewhere", old)):
        ours = small.gradient(loss_of(small, method, rollout, views, old=start).loss.sum())
        theirs = small.gradient(loss_of(small, sequence, rollout, of_elbo, old=start).loss.sum())
        gradients[name] = distance(ours, theirs)
        assert theirs.norm() > 1e-3
    assert gradients["at the old policy"] < 1e-6
    assert gradients["elsewhere"] > 0.05


def test_the_loss_is_a_sum_over_views_for_any_chunks(toy, table_denoiser):
    small = toy(num_tokens=2, length=4, num_steps=2)
    rollout, old = many(small, 4, group_size=4), another(small, table_denoiser)
    views = BGPO().plan(rollout, torch.Generator().manual_seed(0))
    whole = loss_of(small, BGPO(), rollout, views, old=old).loss
    assert whole.shape == (len(views),)
    for chunk in (slice(0, 7), slice(7, None)):
        part = loss_of(small, BGPO(), rollout, views.take(chunk), old=old).loss
        torch.testing.assert_close(part, whole[chunk], rtol=0, atol=1e-12)

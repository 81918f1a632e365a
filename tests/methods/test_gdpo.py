"""Tests of GDPO: the masks at its nodes, the gradient of its quadrature, its distance from the
ELBO's, and its loss."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import chisquare

from tests.helpers.any_order import (
    EXACT,
    against_the_mean,
    all_masks,
    all_views,
    many,
    weighted_elbo_gradient,
    with_given,
)
from tests.helpers.records import make_inputs
from tests.helpers.regions import REGION
from tests.helpers.toy import distance, expected_gradient
from unmask.core.records import Needs
from unmask.functional.elbo import gauss_legendre
from unmask.methods import METHODS
from unmask.methods.gdpo import GDPO

TWO_NODES = (0.5 - 0.5 / math.sqrt(3), 0.5 + 0.5 / math.sqrt(3))


def bernoulli(mask, t):
    return math.prod(t if is_masked else 1 - t for is_masked in mask.tolist())


def node_weight(num_nodes):
    """Return the weight of a set in the expectation: its probability at each node times w / t."""
    nodes, weights = (values.tolist() for values in gauss_legendre(num_nodes))
    return lambda count, n: sum(w / t * t**count * (1 - t) ** (n - count) for t, w in zip(nodes, weights, strict=True))


def gains(small, paths, mask):
    """Return Σ log p of the masked tokens given the others, [paths], with graph."""
    table = small.logprobs(small.temperature)
    hidden = mask.nonzero().flatten().tolist()
    draws = []
    for path in paths:
        state = small.index([small.V if i in hidden else token for i, token in enumerate(path.tokens)])
        draws.append(tuple((0, state, i, path.tokens[i]) for i in hidden))
    return small.gather(table, draws)


def test_the_defaults_are_the_published_settings():
    published = {"num_nodes": 3, "baseline": "group_mean", "epsilon": 0.5, "epsilon_high": 0.5, "beta": 0.04}
    assert METHODS["gdpo"]().model_dump() == {"type": "gdpo"} | published | REGION
    assert GDPO().needs() == Needs(reference="logprob")
    assert GDPO(beta=0.0).needs() == Needs()
    assert GDPO.fresh_views
    assert not GDPO.separable


# Plan


def test_at_each_node_every_position_is_masked_with_the_probability_of_its_time(toy):
    rollout = many(toy(), 6000)
    views = GDPO(num_nodes=2).plan(rollout, torch.Generator().manual_seed(0))
    place = 2 ** torch.arange(3).flip(0)
    for node, t in enumerate(TWO_NODES):
        mine = views.slot == node
        seen = torch.bincount((views.hidden[mine] * place).sum(-1), minlength=8)[1:]
        for time, is_likely in ((t, True), (0.5, False)):
            expected = torch.tensor([bernoulli(mask, time) for mask in all_masks(3)]) * 6000
            assert (chisquare(seen, expected, sum_check=False).pvalue > 1e-3) == is_likely
        torch.testing.assert_close(views.weight[mine], torch.full((int(mine.sum()),), 0.5 / t))
    assert torch.equal(views.hidden, views.target)


def test_tokens_present_from_the_start_are_never_masked(toy):
    rollout = with_given(many(toy(), 2), 0, [1])
    views = GDPO(num_nodes=12).plan(rollout, torch.Generator().manual_seed(0))
    assert not views.hidden[views.row == 0][:, 1].any()
    assert views.hidden[views.row == 1][:, 1].any()


# Expectation


@pytest.mark.parametrize(("baseline", "share"), [("leave_one_out", 1.0), ("group_mean", 0.5)])
def test_two_nodes_on_three_positions_give_the_gradient_of_the_elbo(toy, baseline, share):
    small = toy(order="left_to_right")
    paths = small.paths()
    rollout, weight = small.groups(paths, 2)
    views = all_views(rollout, node_weight(2))
    estimate = expected_gradient(small, GDPO(beta=0.0, baseline=baseline), rollout, weight, views=views)
    stated = weighted_elbo_gradient(small, paths, against_the_mean(small, paths)) / small.L
    torch.testing.assert_close(estimate, share * stated, **EXACT)


def test_one_node_gives_the_gradient_of_half_masked_completions_and_not_of_the_elbo(toy):
    small = toy(order="left_to_right")
    paths = small.paths()
    rollout, weight = small.groups(paths, 2)
    method = GDPO(beta=0.0, baseline="leave_one_out")
    estimate = expected_gradient(small, method, rollout, weight, views=all_views(rollout, node_weight(1)))
    # One node is t = 1/2 with weight 1: each of 8 sets is equally likely, and its sum is divided by
    # 1/2.
    half_masked = torch.stack([gains(small, paths, mask) for mask in all_masks(3)]).sum(0) / 8 / 0.5
    advantage = against_the_mean(small, paths)
    pinned = weighted_elbo_gradient(small, paths, advantage, half_masked) / small.L
    torch.testing.assert_close(estimate, pinned, **EXACT)
    assert distance(estimate, weighted_elbo_gradient(small, paths, advantage) / small.L) > 0.1


@pytest.mark.slow
def test_the_bias_shrinks_with_the_nodes_until_half_as_many_as_positions_are_exact(toy):
    small = toy(num_tokens=2, length=5, num_steps=5, order="left_to_right")
    paths = small.paths()
    rollout, weight = small.groups(paths, 2)
    stated = weighted_elbo_gradient(small, paths, against_the_mean(small, paths)) / small.L
    method = GDPO(beta=0.0, baseline="leave_one_out")
    off = []
    for num_nodes in (1, 2, 3):
        views = all_views(rollout, node_weight(num_nodes))
        off.append(distance(expected_gradient(small, method, rollout, weight, views=views), stated))
    assert off[0] > 2 * off[1] > 0.02
    assert off[2] < 1e-10


# Loss


def inputs(new, old, advantage, reference=None):
    """Return the inputs of two completions of three tokens: one view each that hides all tokens,
    with weight 2."""
    new = torch.tensor(new, dtype=torch.float64, requires_grad=True)
    return make_inputs(new, old=old, advantage=advantage, reference=reference, weight=2.0)


def test_the_ratio_is_that_of_whole_elbos_and_the_length_divides_outside_the_clip():
    # ELBOs 0.6 apart: exp(0.6) = 1.82, past 1.5, where ESPO's ratio per position would be 1.22.
    given = inputs([[0.1] * 3] * 2, [[0.0] * 3] * 2, [1.0, -1.0])
    output = GDPO(beta=0.0).loss(given)
    assert output.loss.tolist() == pytest.approx([-1.5 / 3, math.exp(0.6) / 3])
    output.loss.sum().backward()
    assert (given.new.grad != 0).any(-1).tolist() == [False, True]


def test_the_kl_is_k2_of_the_elbos_divided_by_the_length():
    given = inputs([[-1.0] * 3] * 2, [[-1.0] * 3] * 2, [0.0, 3.0], reference=[[-1.5] * 3, [-1.0] * 3])
    output = GDPO(beta=0.5).loss(given)
    assert output.metrics["kl"].tolist() == pytest.approx([4.5 / 3, 0.0])
    assert output.loss.tolist() == pytest.approx([0.5 * 4.5 / 3, -1.0])
    assert not any(values.requires_grad for values in output.metrics.values())

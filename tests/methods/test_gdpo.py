"""Tests of GDPO: the masks at its nodes, the gradient of its quadrature, its distance from the
ELBO's, and its loss; and of EBPO, the same block by block."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

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
from unmask.core.records import Needs, Views
from unmask.functional.elbo import gauss_legendre
from unmask.methods import METHODS
from unmask.methods.gdpo import EBPO, GDPO

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
    published = {
        "num_nodes": 3,
        "by_block": False,
        "baseline": "group_mean",
        "epsilon": 0.5,
        "epsilon_high": 0.5,
        "beta": 0.04,
    }
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


# EBPO


def with_blocks(rollout, block_length):
    sampler = rollout.trajectory.sampler.model_copy(update={"block_length": block_length})
    return replace(rollout, trajectory=replace(rollout.trajectory, sampler=sampler))


def test_ebpo_is_gdpo_by_block_with_ppos_clip_and_without_a_kl():
    found = METHODS["ebpo"]().model_dump()
    assert found == GDPO().model_dump() | {
        "type": "ebpo",
        "by_block": True,
        "epsilon": 0.2,
        "epsilon_high": 0.2,
        "beta": 0.0,
    }
    assert EBPO().needs() == Needs()


def test_each_block_is_masked_in_part_with_the_blocks_before_it_visible(toy):
    rollout = with_blocks(many(toy(num_tokens=2, length=5, num_steps=5), 3000), 2)
    rollout = with_given(rollout, 0, [1, 4])
    plan = EBPO(num_nodes=2).plan(rollout, torch.Generator().manual_seed(0))
    block = torch.arange(5) // 2
    first = block.expand(plan.target.shape).masked_fill(~plan.target, 9).amin(-1, keepdim=True)
    assert torch.equal(plan.target, plan.hidden & (block == first)), "targets are those of a single block"
    given = rollout.trajectory.unmask_step[plan.row] == -1
    assert torch.equal(plan.hidden & (block != first), (block > first) & ~given)
    # Each position has the weight 1 on average: it is masked at node n with probability t_n, and
    # has the weight w_n / t_n then.
    total = (plan.weight.unsqueeze(-1) * plan.target)[plan.row > 0].sum(0) / 2999
    assert total.tolist() == pytest.approx([1.0] * 5, abs=0.1)
    by_node = [0.5 / TWO_NODES[0], 0.5 / TWO_NODES[1]]
    assert torch.equal(plan.weight, torch.tensor(by_node)[plan.slot // 3])


def test_blocks_of_one_position_give_the_policy_gradient_of_left_to_right_sampling(toy):
    small = toy(order="left_to_right")
    paths = small.paths()
    rollout, weight = small.groups(paths, 2)
    num_rows = len(rollout.reward)
    position = torch.arange(3).repeat(num_rows).unsqueeze(-1)
    hidden, target = torch.arange(3) >= position, torch.arange(3) == position
    row, ones = torch.arange(num_rows).repeat_interleave(3), torch.ones(3 * num_rows, dtype=torch.float64)
    views = Views(row, hidden, target, ones, torch.zeros_like(row))
    # These are the views of the plan, whose weights have the mean 1.
    plan = EBPO(num_nodes=2).plan(with_blocks(rollout, 1), torch.Generator().manual_seed(0))
    found = {tuple(mask) for mask in torch.cat([plan.hidden, plan.target], -1).int().tolist()}
    assert found == {tuple(mask) for mask in torch.cat([hidden, target], -1).int().tolist()}
    estimate = expected_gradient(small, EBPO(baseline="leave_one_out"), rollout, weight, views=views)
    torch.testing.assert_close(estimate, small.grad_j() / small.L, **EXACT)


def test_two_blocks_give_the_elbo_of_each_given_the_one_before(toy):
    small = toy(num_tokens=2, length=4, num_steps=4, order="left_to_right")
    paths = small.paths()
    rollout, weight = small.groups(paths, 2)
    sets = [torch.tensor([1, 1, 0, 0]), torch.tensor([1, 0, 0, 0]), torch.tensor([0, 1, 0, 0])]
    targets = torch.stack([mask.roll(shift) for shift in (0, 2) for mask in sets]).bool()
    hidden = targets | (torch.arange(4) >= 2) & targets[:, :2].any(-1, keepdim=True)
    each = torch.tensor([node_weight(2)(int(mask.sum()), 2) for mask in targets], dtype=torch.float64)
    num_rows = len(rollout.reward)
    row = torch.arange(num_rows).repeat_interleave(6)
    views = Views(row, hidden.repeat(num_rows, 1), targets.repeat(num_rows, 1), each.repeat(num_rows), row * 0)
    estimate = expected_gradient(small, EBPO(baseline="leave_one_out"), rollout, weight, views=views)

    table, values = small.logprobs(small.temperature), []
    for path in paths:
        value = 0.0
        for block, order in itertools.product(((0, 1), (2, 3)), ((0, 1), (1, 0))):
            shown = [token if i < block[0] else small.V for i, token in enumerate(path.tokens)]
            for i in (block[order[0]], block[order[1]]):
                value = value + table[small.index(shown), i, path.tokens[i]] / 2
                shown[i] = path.tokens[i]
        values.append(value)
    advantage = against_the_mean(small, paths)
    expected = weighted_elbo_gradient(small, paths, advantage, torch.stack(values)) / small.L
    torch.testing.assert_close(estimate, expected, **EXACT)
    whole = weighted_elbo_gradient(small, paths, advantage) / small.L
    assert distance(estimate, whole) > 0.05, "it is not the ELBO of the whole completion"

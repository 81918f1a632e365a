"""Tests of GDSD: its regression, its direction at the old policy, and its distance from the squared
error of exact scores."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.helpers.any_order import (
    EXACT,
    against_the_mean,
    all_masks,
    all_views,
    another,
    elbos,
    loss_of,
    many,
    weighted_elbo_gradient,
)
from tests.helpers.mean_field import OneUpdate
from tests.helpers.messages import raises
from tests.helpers.records import make_inputs
from tests.helpers.toy import distance, expected_gradient
from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError
from unmask.core.records import LossInputs, Needs, Rollout, Views
from unmask.methods import METHODS
from unmask.methods.gdsd import GDSD
from unmask.sampling import LogprobSettings, view_logprobs


def in_expectation(count, num_positions):
    """Return the weight of a set in the expectation of the score of a pair."""
    return 1 / math.comb(num_positions, count) / count


def test_the_defaults_are_the_published_settings():
    assert METHODS["gdsd"]().model_dump() == {
        "type": "gdsd",
        "num_samples": 1,
        "guidance": 0.04,
        "epsilon": 4e-4,
        "centred": False,
        "baseline": "leave_one_out",
        "beta": 0.001,
    }
    assert GDSD().needs() == Needs(reference="logprob")
    assert GDSD(beta=0.0, centred=True).needs() == Needs(centred=True)
    with raises(ConfigError, "method.beta = 0.001 measures a KL", "method.centred"):
        GDSD(centred=True).check(SamplerConfig(), 2)


def test_a_pair_masks_each_position_once(toy):
    rollout = many(toy(), 50)
    views = GDSD(num_samples=2).plan(rollout, torch.Generator().manual_seed(0))
    pair = views.row * 2 + views.slot // 2
    covered = torch.zeros(100, 3).index_add(0, pair, views.target.float())
    assert torch.equal(covered, torch.ones(100, 3))
    # Both halves of a pair enter with (n+1)/l of their log-probabilities, and their mean is the score.
    assert torch.equal(views.weight, 4 / views.target.sum(-1) / 2)


# Loss


def given(change, advantage, **changes):
    """Return a completion of two positions with two pairs: the scores of the pairs change by
    `change`."""
    new = torch.tensor([[change[0] / 2, 0.0], [0.0, change[0] / 2], [change[1], 0.0]], dtype=torch.float64)
    fields = {"row": [0, 0, 0], "slot": torch.tensor([0, 1, 2]), "old": [[0.0] * 2] * 3, "advantage": advantage}
    return make_inputs(new.requires_grad_(), **fields | changes)


def test_the_loss_is_the_squared_distance_of_the_change_per_position_from_the_guidance():
    output = GDSD(num_samples=2, guidance=0.5, epsilon=0.0, beta=0.0).loss(given([0.6, -0.2], 1.0))
    assert output.loss.tolist() == pytest.approx([(0.3 - 0.5) ** 2 / 2, (-0.1 - 0.5) ** 2 / 2])
    assert output.metrics["policy/elbo"].tolist() == pytest.approx([0.3, -0.1])


def test_a_change_beyond_its_bound_has_no_gradient():
    inputs = given([0.6, -0.2], 1.0)
    output = GDSD(num_samples=2, guidance=0.5, epsilon=0.3, beta=0.0).loss(inputs)
    assert output.loss.tolist() == pytest.approx([(math.log(1.3) / 2 - 0.5) ** 2 / 2, (-0.1 - 0.5) ** 2 / 2])
    output.loss.sum().backward()
    assert (inputs.new.grad != 0).any(-1).tolist() == [False, False, True]
    assert output.metrics["clip_ratio/region_mean"].tolist() == [1.0, 0.0]


def test_the_kl_is_k2_of_the_scores_of_a_pair_divided_by_the_length():
    inputs = given([0.0, 0.0], 0.0, reference=[[-1.0, 0.0], [0.0, 0.0], [2.0, 0.0]])
    output = GDSD(num_samples=2, beta=0.5).loss(inputs)
    assert output.metrics["kl"].tolist() == pytest.approx([0.5 / 2, 2.0 / 2])
    assert output.loss.tolist() == pytest.approx([0.5 * 0.25 / 2, 0.5 * 1.0 / 2])


# Expectation


@pytest.mark.parametrize(("baseline", "share"), [("leave_one_out", 1.0), ("group_mean", 0.5)])
def test_at_the_old_policy_its_gradient_is_that_of_the_elbo_times_the_guidance(toy, baseline, share):
    small = toy(order="left_to_right")
    paths = small.paths()
    rollout, weight = small.groups(paths, 2)
    method = GDSD(guidance=0.3, beta=0.0, baseline=baseline)
    estimate = expected_gradient(small, method, rollout, weight, views=all_views(rollout, in_expectation))
    elbo = weighted_elbo_gradient(small, paths, against_the_mean(small, paths))
    torch.testing.assert_close(estimate, 2 * 0.3 * share * elbo / small.L, **EXACT)
    gradient = small.grad_j()
    aligned = gradient * (estimate * gradient).sum() / gradient.square().sum()
    assert distance(estimate, aligned) > 0.1, "it is not the policy gradient"


def test_elsewhere_the_squared_error_of_the_scores_includes_the_variance_of_the_masks(toy, table_denoiser):
    small = toy(num_tokens=2, length=3)
    old = another(small, table_denoiser)
    path = small.paths()[3]
    rollout = Rollout(small.trajectory([path, path]), 2, torch.tensor([1.0, 0.0], dtype=torch.float64))
    method = GDSD(guidance=0.2, epsilon=0.0, beta=0.0)
    found, mean, square = 0.0, 0.0, 0.0
    for mask in [torch.zeros(3, dtype=torch.bool), *all_masks(3)]:
        count = int(mask.sum())
        chance = 1 / 4 / math.comb(3, count)
        hidden = torch.stack([part for part in (mask, ~mask) if part.any()])
        zero = torch.zeros(len(hidden), dtype=torch.long)
        views = Views(zero, hidden, hidden, 4 / hidden.sum(-1).double() / 2, torch.arange(len(hidden)))
        found = found + chance * loss_of(small, method, rollout, views, old=old).loss.sum()
        change = 0.0
        for part in hidden:
            where = part.nonzero().flatten().tolist()
            state = small.index([small.V if i in where else token for i, token in enumerate(path.tokens)])
            index = (state, where, [path.tokens[i] for i in where])
            gain = small.logprobs(small.temperature)[index] - old.logprobs(old.temperature)[index].detach()
            change = change + 4 / len(where) / 2 * gain.sum()
        mean, square = mean + chance * change / 3, square + chance * (change / 3 - 0.2).square()
    torch.testing.assert_close(found, square, **EXACT)
    exact = (elbos(small, [path]) - elbos(old, [path]))[0] / 3
    torch.testing.assert_close(mean, exact, **EXACT)
    assert found > (exact - 0.2).square() + 1e-3, "the variance of the scores is added"
    torch.testing.assert_close(small.gradient(found), small.gradient(square), **EXACT)


# Centred scores


def test_centred_scores_are_regressed_in_place_of_log_probabilities(toy):
    small = toy(order="left_to_right")
    paths = small.paths()
    rollout, weight = small.groups(paths, 2)
    method, views = GDSD(guidance=0.3, beta=0.0, centred=True), all_views(rollout, in_expectation)
    path = rollout.trajectory
    settings = replace(LogprobSettings.of(path, "sampling"), centred=True)
    new = view_logprobs(small.denoiser, path, views, settings).logprob
    advantage = method.advantage(rollout)[views.row]
    fields = {"row": views.row, "target": views.target, "weight": views.weight, "slot": views.slot}
    loss = method.loss(LossInputs(new, new.detach(), None, None, **fields, advantage=advantage, group_size=2)).loss
    estimate = -small.gradient((weight.repeat_interleave(2) * loss).sum()) / 2

    class Centred:
        """The toy with the mean over the tokens subtracted from its log-probabilities."""

        V, L, temperature, gather, index = small.V, small.L, small.temperature, small.gather, small.index

        @staticmethod
        def logprobs(temperature):
            table = small.logprobs(temperature)
            return table - table.mean(-1, keepdim=True)

    values = elbos(Centred, paths)
    expected = weighted_elbo_gradient(small, paths, against_the_mean(small, paths), values)
    torch.testing.assert_close(estimate, 2 * 0.3 * expected / small.L, **EXACT)
    plain = weighted_elbo_gradient(small, paths, against_the_mean(small, paths))
    assert distance(expected, plain) > 0.1, "the normaliser has a gradient of its own"


def test_the_trainer_scores_the_views_as_the_option_says(lively, tmp_path):
    update = OneUpdate(lively, tmp_path)
    options = {"beta": 0.0, "epsilon": 0.0}
    rollout = update.rollout(update.recipe(GDSD(**options)))
    plain, centred = (update(GDSD(**options, centred=value), rollout=rollout) for value in (False, True))
    assert "diffusion/mismatch_max" not in centred[0]
    assert centred[0]["policy/elbo"] > plain[0]["policy/elbo"] + 1, "the mean over the tokens is negative"
    assert distance(plain[1], centred[1]) > 0.01

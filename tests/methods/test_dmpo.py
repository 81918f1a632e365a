"""Tests of DMPO: its masks, the weights of its target distribution, and its expectation at and away
from the reference policy."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy.stats import binomtest

from tests.helpers.any_order import EXACT, another, loss_of, many, with_given
from tests.helpers.mean_field import token_logprobs
from tests.helpers.toy import Toy, distance
from unmask.core.config import SamplerConfig
from unmask.core.records import Needs, Views
from unmask.methods import METHODS
from unmask.methods.dmpo import DMPO

MASKS = torch.tensor([[True, False, False], [False, True, True]])
"""A pair of complementary masks."""


def test_the_defaults_are_the_published_settings():
    published = {"num_samples": 2, "alpha": 0.04, "least_time": 0.1, "centring": 1.0}
    assert METHODS["dmpo"]().model_dump() == {"type": "dmpo"} | published
    assert DMPO().needs() == Needs(reference="logprob")
    assert DMPO().behaviour_levels(SamplerConfig()) == ("off",)
    assert not DMPO.separable
    assert not DMPO.by_completion


def test_a_pair_masks_each_position_once_and_a_view_is_a_mean_over_its_tokens(toy):
    rollout = with_given(many(toy(num_tokens=2, length=5, num_steps=5), 2000), 0, [3])
    views = DMPO(num_samples=3).plan(rollout, torch.Generator().manual_seed(0))
    pair = views.row * 3 + views.slot // 2
    covered = torch.zeros(6000, 5).index_add(0, pair, views.target.float())
    assert not covered[:3, 3].any()
    assert torch.equal(covered[3:], torch.ones(5997, 5))
    torch.testing.assert_close(views.weight, 1 / (6 * views.target.sum(-1)))
    # A position is masked by the first set with probability E[t] = (0.1 + 1) / 2.
    first = (views.target & (views.slot % 2 == 0).unsqueeze(-1))[views.row > 0].sum()
    assert binomtest(int(first), 5997 * 5, 0.55).pvalue > 1e-3
    assert binomtest(int(first), 5997 * 5, 0.5).pvalue < 1e-6, "the comparison can fail"


def test_rewards_are_divided_by_the_temperature(toy):
    rollout = many(toy(), 6)
    by_hand = (rollout.reward.view(3, 2) - rollout.reward.view(3, 2).mean(-1, keepdim=True)).flatten() / 0.5
    torch.testing.assert_close(DMPO(alpha=0.5).advantage(rollout), by_hand)


# Expectation


def fixed_views(rollout):
    num_rows = len(rollout.reward)
    hidden, row = MASKS.repeat(num_rows, 1), torch.arange(num_rows).repeat_interleave(2)
    return Views(row, hidden, hidden, (1 / 2 / hidden.sum(-1)).double(), torch.arange(2).repeat(num_rows))


def mean_scores(small, paths):
    """Return the mean of log p over the masked tokens, averaged over the pair of masks, with graph."""
    return sum((token_logprobs(small, paths, mask) * mask).sum(-1) / mask.sum() for mask in MASKS) / 2


def by_hand(small, old, reference, paths, method, *, ignore_ratio=False):
    """Compute ∇ E[Σ_i W_i score_i] over pairs of completions of the old policy."""
    probability, reward = old.probability(paths).detach(), small.reward(paths)
    log_ratio = 3 * (mean_scores(reference, paths) - mean_scores(old, paths)).detach() * (not ignore_ratio)
    score, total = mean_scores(small, paths), 0.0
    for i, j in itertools.product(range(len(paths)), repeat=2):
        pair, tilt = [i, j], reward[[i, j]] / method.alpha
        weight = (log_ratio[pair] + tilt).softmax(0) - method.centring * (log_ratio[pair] - tilt).softmax(0)
        total = total + probability[i] * probability[j] * (weight * score[pair]).sum()
    return small.gradient(total)


def estimate(small, old, reference, paths, method):
    rollout, weight = old.groups(paths, 2)
    views = fixed_views(rollout)
    loss = loss_of(small, method, rollout, views, old=old, reference=reference).loss.view(-1, 4).sum(-1)
    return -small.gradient((weight * loss).sum()) / 2


@pytest.mark.parametrize("centring", [1.0, 0.0])
def test_at_the_reference_it_weighs_the_cross_entropy_by_the_rewards(toy, centring):
    small = toy(num_tokens=2, order="left_to_right")
    paths, method = small.paths(), DMPO(alpha=0.5, centring=centring)
    found = estimate(small, small, small, paths, method)
    torch.testing.assert_close(found, by_hand(small, small, small, paths, method), **EXACT)
    gradient = small.grad_j()
    aligned = gradient * (found * gradient).sum() / gradient.square().sum()
    assert distance(found, aligned) > 0.1, "it is not the policy gradient"


def test_away_from_the_reference_the_weights_are_those_of_the_tilted_reference(toy, table_denoiser):
    small = toy(num_tokens=2, order="left_to_right")
    paths, method = small.paths(), DMPO(alpha=0.5)
    old, reference = another(small, table_denoiser), another(small, table_denoiser, seed=9)
    found = estimate(small, old, reference, paths, method)
    torch.testing.assert_close(found, by_hand(small, old, reference, paths, method), **EXACT)
    ignorant = by_hand(small, old, reference, paths, method, ignore_ratio=True)
    assert distance(found, ignorant) > 0.05, "the log-ratio counts"


def test_over_a_large_group_the_cross_entropy_is_that_of_the_target_distribution(toy, table_denoiser):
    # One position: the masks hide nothing else, so the scores are exact log-probabilities. As many
    # completions of each token as the old policy draws on average stand for an infinite group.
    small = toy(num_tokens=3, length=1, num_steps=1)
    old = another(small, table_denoiser)
    method = DMPO(alpha=0.5, centring=0.0)
    chance = old.probability(old.paths()).detach()
    count = (chance * 3000).round().long()
    rows = torch.repeat_interleave(torch.arange(3), count)
    rollout, _ = old.groups(old.paths(), 1)
    many_of_each = type(rollout)(rollout.trajectory.rows(rows), len(rows), rollout.reward[rows])
    zero = torch.arange(len(rows))
    hidden = torch.ones(len(rows), 1, dtype=torch.bool)
    views = Views(zero, hidden, hidden, torch.full((len(rows),), 0.5, dtype=torch.float64), zero * 0)
    output = loss_of(small, method, many_of_each, views, old=old, reference=small)
    found = -small.gradient(output.loss.sum()) / len(rows)
    # A single view of weight 1/2 halves the log-ratio, as it halves the score.
    share = count.double() / count.sum()
    tilted = share * ((small.probability(small.paths()).detach() / chance).log() / 2).exp()
    target = tilted * (small.reward(small.paths()) / 0.5).exp()
    expected = small.gradient((target / target.sum() * small.probability(small.paths()).log()).sum()) / 2
    torch.testing.assert_close(found, expected, **EXACT)
    assert 0 < output.metrics["dmpo/effective_share"].item() < 1


def test_equal_rewards_have_no_gradient_whatever_the_log_ratios(toy, table_denoiser):
    small = toy(num_tokens=2, order="left_to_right")
    old: Toy = another(small, table_denoiser)
    rollout, weight = old.groups(small.paths(), 2)
    flat = type(rollout)(rollout.trajectory, 2, torch.ones_like(rollout.reward))
    loss = loss_of(small, DMPO(), flat, fixed_views(flat), old=old, reference=small).loss
    assert small.gradient(loss.sum()).abs().max() < 1e-12
    assert loss_of(small, DMPO(), rollout, fixed_views(rollout), old=old, reference=small).loss.abs().max() > 0.1

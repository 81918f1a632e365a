"""Tests of VRPO: pairs, masks, the gradient at the reference, the bias of a noisy margin, and
shared noise; and of dTRPO, the same on steps of the path."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from tests.helpers.any_order import EXACT, all_masks, all_views, another, elbos, loss_of, many
from tests.helpers.messages import raises
from tests.helpers.toy import distance
from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError
from unmask.core.records import Needs, Rollout, Views
from unmask.methods import METHODS
from unmask.methods.views import step_views
from unmask.methods.vrpo import DTRPO, VRPO
from unmask.sampling import LogprobSettings, view_logprobs


def plain(count, n):
    """Return the weight of a set in the expectation over one draw: 1/n for its count, uniform in
    its size; n/l."""
    return 1 / n / math.comb(n, count) * n / count


def test_the_defaults_are_the_published_settings():
    assert METHODS["vrpo"]().model_dump() == {"type": "vrpo", "num_samples": 8, "beta": 0.2}
    assert VRPO().needs() == Needs(reference="logprob")
    assert VRPO.fresh_views
    assert not VRPO.separable


def test_a_margin_without_a_scale_and_a_group_of_one_are_refused():
    with pytest.raises(ValidationError, match="beta"):
        VRPO(beta=0.0)
    with raises(ConfigError, "num_generations = 1"):
        VRPO().check(SamplerConfig(), 1)


# Pairs


def test_the_best_completion_of_a_group_is_paired_with_the_worst(toy):
    rollout = many(toy(), 12, group_size=4)
    reward = torch.tensor([0.1, 0.9, 0.0, 0.3] + [0.5] * 4 + [0.0, 0.0, 1.0, 1.0])
    rollout = replace(rollout, reward=reward)
    # In a tie the first one counts; a group of equal rewards has no pair.
    assert VRPO().advantage(rollout).tolist() == [0, 1, -1, 0] + [0] * 4 + [-1, 0, 1, 0]
    views = VRPO(num_samples=5).plan(rollout, torch.Generator().manual_seed(0))
    assert torch.bincount(views.row, minlength=12).tolist() == [0, 5, 5, 0] + [0] * 4 + [5, 0, 5, 0]


def test_without_pairs_there_are_no_views(toy):
    rollout = replace(many(toy(), 4), reward=torch.ones(4))
    assert len(VRPO().plan(rollout, torch.Generator())) == 0


def test_each_count_gets_one_set_and_counts_are_spread_evenly(toy):
    rollout = replace(many(toy(), 2), reward=torch.tensor([0.0, 1.0]))
    views = VRPO(num_samples=6).plan(rollout, torch.Generator().manual_seed(0))
    count = views.hidden.sum(-1)
    assert all(torch.bincount(count[views.row == b]).tolist() == [0, 2, 2, 2] for b in (0, 1))
    torch.testing.assert_close(views.weight, 3 / count / 6)
    assert torch.equal(views.hidden, views.target)


# Expectation


@pytest.mark.parametrize("group_size", [2, 3])
def test_at_the_reference_its_gradient_is_half_beta_times_that_of_the_difference_of_elbos(toy, group_size):
    small = toy(num_tokens=2, length=2, num_steps=2, order="left_to_right")
    paths = small.paths()
    rollout, weight = small.groups(paths, group_size)
    method = VRPO(beta=0.3)
    views = all_views(rollout, plain)
    views = views.take(method.advantage(rollout)[views.row] != 0)
    loss = loss_of(small, method, rollout, views).loss
    has_pair = (views.row // group_size).unique()
    assert 0 < len(has_pair) < len(weight)
    estimate = -small.gradient((weight[has_pair] * loss).sum()) / group_size

    reward, probability, values = small.reward(paths), small.probability(paths).detach(), elbos(small, paths)
    total = torch.zeros((), dtype=torch.float64)
    for group in itertools.product(range(len(paths)), repeat=group_size):
        best, worst = max(group, key=lambda i: reward[i]), min(group, key=lambda i: reward[i])
        total = total + probability[list(group)].prod() * (values[best] - values[worst])
    stated = 0.15 * small.gradient(total)
    assert stated.norm() > 1e-3
    torch.testing.assert_close(estimate, stated, **EXACT)
    # It is neither the policy gradient nor a multiple of it.
    gradient = small.grad_j()
    aligned = gradient * (estimate * gradient).sum() / gradient.square().sum()
    assert distance(estimate, aligned) > 0.1


def test_elsewhere_its_loss_is_above_that_of_the_exact_elbos_by_a_known_amount(toy, table_denoiser):
    small = toy(num_tokens=2, length=2, num_steps=2)
    reference = another(small, table_denoiser)
    pair = [small.paths()[0], small.paths()[-1]]
    rollout = Rollout(small.trajectory(pair), 2, torch.tensor([1.0, 0.0], dtype=torch.float64))
    method, masks = VRPO(beta=0.5, num_samples=1), all_masks(2)
    chance = [0.25, 0.25, 0.5]

    def difference(path, mask):
        """Compute (L/l) Σ of log-ratios at the masked positions, from the tables."""
        hidden = mask.nonzero().flatten().tolist()
        state = small.index([small.V if i in hidden else token for i, token in enumerate(path.tokens)])
        new, ref = (
            t.logprobs(t.temperature)[state, hidden, [path.tokens[i] for i in hidden]] for t in (small, reference)
        )
        return 2 / len(hidden) * (new - ref.detach()).sum()

    found, by_hand = torch.zeros((2,), dtype=torch.float64)
    for best, worst in itertools.product(range(3), repeat=2):
        hidden = masks[[best, worst]]
        rows = torch.arange(2)
        views = Views(rows, hidden, hidden, 2 / hidden.sum(-1).double(), rows * 0)
        p = chance[best] * chance[worst]
        found = found + p * loss_of(small, method, rollout, views, reference=reference).loss.sum() / 2
        margin = 0.5 * (difference(pair[0], masks[best]) - difference(pair[1], masks[worst]))
        by_hand = by_hand + p * (1 + (-margin).exp()).log()
    torch.testing.assert_close(found, by_hand, **EXACT)
    torch.testing.assert_close(small.gradient(found), small.gradient(by_hand), **EXACT)
    gain = elbos(small, pair) - elbos(reference, pair).detach()
    exact = (1 + (-0.5 * (gain[0] - gain[1])).exp()).log()
    assert found > exact + 1e-3, "by Jensen: the loss is convex in the margin"


def test_with_shared_masks_the_margin_at_the_reference_is_zero_without_noise(toy):
    small = toy(num_tokens=2, length=4, num_steps=2)
    rollout = replace(many(small, 8, group_size=4), reward=torch.arange(8.0))
    method = VRPO(num_samples=1)
    views = method.plan(rollout, torch.Generator().manual_seed(0))
    output = loss_of(small, method, rollout, views)
    assert output.metrics["dpo/margin"].tolist() == [0.0, 0.0]
    assert output.loss.tolist() == pytest.approx([4 * math.log(2)] * 2)

    # Negative control: the reference has other masks.
    scoring, path = LogprobSettings.of(rollout.trajectory, "sampling"), rollout.trajectory
    others = method.plan(rollout, torch.Generator().manual_seed(1))
    elbo = [
        views.weight * view_logprobs(small.denoiser, path, views, scoring).logprob.detach().sum(-1)
        for views in (views, others)
    ]
    assert (elbo[0] - elbo[1]).abs().max() > 1


def test_the_accuracy_counts_pairs_whose_better_completion_gained_more(toy, table_denoiser):
    small = toy(num_tokens=2, length=4, num_steps=2)
    reference = another(small, table_denoiser)
    rollout = replace(many(small, 40, group_size=4), reward=torch.arange(40.0))
    views = VRPO().plan(rollout, torch.Generator().manual_seed(0))
    metrics = loss_of(small, VRPO(), rollout, views, reference=reference).metrics
    turned = loss_of(small, VRPO(), replace(rollout, reward=-rollout.reward), views, reference=reference).metrics
    assert metrics["dpo/accuracy"].shape == (10,)
    assert 0 < metrics["dpo/accuracy"].sum() < 10
    assert (metrics["dpo/accuracy"] + turned["dpo/accuracy"]).tolist() == [1.0] * 10
    assert not any(values.requires_grad for values in metrics.values())


# dTRPO


def path_logprobs(small, paths):
    """Return the log-probability of the tokens of each path, with graph."""
    return small.gather(small.logprobs(small.temperature), [path.draws for path in paths])


def pairs(small, paths, beta):
    """Compute (β/2) ∇ E[log π(best) - log π(worst)] over groups of two."""
    reward, probability, values = small.reward(paths), small.probability(paths).detach(), path_logprobs(small, paths)
    total = torch.zeros((), dtype=torch.float64)
    for i, j in itertools.product(range(len(paths)), repeat=2):
        best, worst = (i, j) if reward[i] > reward[j] else (j, i)
        total = total + probability[i] * probability[j] * (values[best] - values[worst])
    return beta / 2 * small.gradient(total)


def test_dtrpo_has_the_published_settings():
    assert METHODS["dtrpo"]().model_dump() == {"type": "dtrpo", "num_samples": 1, "beta": 0.2}
    assert DTRPO.on_path
    assert not VRPO.on_path


def test_one_step_of_each_block_of_a_paired_completion_is_a_view(toy):
    small = toy(num_tokens=2, length=4, num_steps=4, order="left_to_right")
    rollout = many(small, 80, group_size=4)
    path = replace(rollout.trajectory, sampler=replace_block(rollout.trajectory.sampler, 2))
    rollout = replace(rollout, trajectory=path)
    method = DTRPO()
    views = method.plan(rollout, torch.Generator().manual_seed(0))
    is_paired = method.advantage(rollout) != 0
    assert torch.equal(torch.bincount(views.row, minlength=80), 2 * is_paired)
    assert torch.equal(views.weight, torch.full_like(views.weight, 2.0))
    step = path.shown_step(views)
    assert torch.equal(step // 2, views.slot)
    assert step.unique().tolist() == [0, 1, 2, 3]


def replace_block(sampler, block_length):
    return sampler.model_copy(update={"block_length": block_length})


@pytest.mark.parametrize("order", ["left_to_right", "random"])
def test_at_the_reference_dtrpo_has_the_gradient_of_the_paths(toy, order):
    small = toy(num_tokens=2, order=order)
    paths = small.paths()
    rollout, weight = small.groups(paths, 2)
    method = DTRPO(beta=0.3, num_samples=3)
    views = method.plan(rollout, torch.Generator().manual_seed(0))
    assert torch.equal(views.weight, torch.ones_like(views.weight))
    has_pair = (views.row // 2).unique()

    def gradient(views):
        return -small.gradient((weight[has_pair] * loss_of(small, method, rollout, views).loss).sum()) / 2

    stated = pairs(small, paths, 0.3)
    torch.testing.assert_close(gradient(views), stated, **EXACT)
    # One drawn step of the block stands for three: the mean over the draws is the same.
    is_paired = (method.advantage(rollout) != 0).unsqueeze(-1)
    alone = [
        gradient(step_views(rollout.trajectory, torch.where(is_paired, k, -1), torch.full(is_paired.shape, 3.0)))
        for k in range(3)
    ]
    torch.testing.assert_close(sum(alone) / 3, stated, **EXACT)
    assert distance(alone[0], stated) > 0.3, "a single draw is noisy"


def test_elsewhere_the_loss_of_one_step_is_above_that_of_the_whole_path(toy, table_denoiser):
    small = toy(num_tokens=2, length=2, num_steps=2, order="left_to_right")
    reference = another(small, table_denoiser)
    pair = [small.paths()[0], small.paths()[-1]]
    rollout = Rollout(small.trajectory(pair), 2, torch.tensor([1.0, 0.0], dtype=torch.float64))
    method = DTRPO(beta=0.5)
    gain = torch.stack(
        [path_logprobs(small, [replace(path, draws=path.draws[k : k + 1]) for path in pair]) for k in range(2)]
    ) - torch.stack(
        [path_logprobs(reference, [replace(path, draws=path.draws[k : k + 1]) for path in pair]) for k in range(2)]
    )
    found, by_hand = 0.0, 0.0
    for k, j in itertools.product(range(2), repeat=2):
        views = step_views(rollout.trajectory, torch.tensor([[k], [j]]), torch.full((2, 1), 2.0))
        found = found + loss_of(small, method, rollout, views, reference=reference).loss.sum() / 2 / 4
        by_hand = by_hand + (1 + (-0.5 * 2 * (gain[k, 0] - gain[j, 1])).exp()).log() / 4
    torch.testing.assert_close(found, by_hand, **EXACT)
    exact = (1 + (-0.5 * (gain.sum(0)[0] - gain.sum(0)[1])).exp()).log()
    assert found > exact + 1e-3, "by Jensen: the loss is convex in the margin"

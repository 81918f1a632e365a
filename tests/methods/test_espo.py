"""Tests of ESPO: its ELBO estimate, its surrogate gradient, and the expectation of its KL."""

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
from unmask.core.records import Needs, Rollout, Views
from unmask.methods import METHODS
from unmask.methods.espo import ESPO


def coupled_probability(count, num_positions):
    """Return the weight of a set in the expectation of a coupled pair: as a set or as a complement,
    half of (n+1)/l each."""
    drawn = 1 / (num_positions + 1) / math.comb(num_positions, count)
    return (drawn + drawn) * 0.5 * (num_positions + 1) / count


def hand_inputs(new, old, advantage, reference=None):
    """Return the inputs of two completions of three tokens: one view each that hides all tokens,
    with weight 2."""
    new = torch.tensor(new, dtype=torch.float64, requires_grad=True)
    return make_inputs(new, old=old, advantage=advantage, reference=reference, weight=2.0)


# Options


def test_the_defaults_are_the_published_settings():
    published = {"num_samples": 2, "baseline": "leave_one_out", "epsilon": 0.2, "epsilon_high": 0.2, "beta": 0.01}
    assert METHODS["espo"]().model_dump() == {"type": "espo"} | published | REGION
    assert ESPO().needs() == Needs(reference="logprob")
    assert ESPO(beta=0.0).needs() == Needs()
    assert ESPO.fresh_views
    assert not ESPO.separable


# Plan


@pytest.mark.parametrize("num_samples", [1, 2, 5])
def test_a_pair_masks_each_position_once_and_its_weights_are_those_of_its_counts(toy, num_samples):
    rollout = many(toy(num_tokens=2, length=4, num_steps=2), 6)
    views = ESPO(num_samples=num_samples).plan(rollout, torch.Generator().manual_seed(0))
    assert torch.equal(views.hidden, views.target)
    pair = views.row * num_samples + views.slot // 2
    times_masked = torch.zeros(6 * num_samples, 4, dtype=torch.long).index_add(0, pair, views.hidden.long())
    assert (times_masked == 1).all()
    count = views.hidden.sum(-1)
    assert count.min() >= 1, "an empty set is no view"
    torch.testing.assert_close(views.weight, 5 / count / (2 * num_samples))


def test_counts_are_spread_evenly_over_the_draws_and_the_completions(toy):
    rollout = many(toy(num_tokens=2, length=4, num_steps=2), 10)
    for seed in range(5):
        views = ESPO(num_samples=2).plan(rollout, torch.Generator().manual_seed(seed))
        first = views.slot % 2 == 0
        count = torch.zeros(10, 2, dtype=torch.long)
        count[views.row[first], views.slot[first] // 2] = views.hidden[first].sum(-1)
        assert torch.bincount(count.flatten(), minlength=5).tolist() == [4] * 5


def test_the_plan_draws_each_set_with_its_enumerated_frequency(toy):
    small = toy()
    rollout = many(small, 8000)
    views = ESPO(num_samples=1).plan(rollout, torch.Generator().manual_seed(0))
    place = 2 ** torch.arange(3).flip(0)
    seen = torch.bincount((views.hidden * place).sum(-1), minlength=8)[1:]
    expected = torch.tensor([2 / 4 / math.comb(3, int(mask.sum())) for mask in all_masks(3)]) * 8000
    assert chisquare(seen, expected, sum_check=False).pvalue > 1e-3
    uniform_sets = torch.full((7,), 8000 * 2 / 8)
    assert chisquare(seen, uniform_sets, sum_check=False).pvalue < 1e-12


def test_tokens_present_from_the_start_are_never_masked_and_do_not_count(toy):
    rollout = with_given(many(toy(num_tokens=2, length=4, num_steps=2), 2), 0, [1, 2])
    views = ESPO(num_samples=8).plan(rollout, torch.Generator().manual_seed(0))
    mine = views.row == 0
    assert not views.hidden[mine][:, 1:3].any()
    torch.testing.assert_close(views.weight[mine], 3 / views.hidden[mine].sum(-1) / 16)


# Expectation


@pytest.mark.parametrize(
    "options",
    [
        {"order": "left_to_right"},
        {"num_tokens": 2, "length": 2, "num_steps": 2},
        {"eos": True, "order": "left_to_right"},
    ],
    ids=str,
)
@pytest.mark.parametrize(("baseline", "share"), [("leave_one_out", 1.0), ("group_mean", 0.5)])
@pytest.mark.slow
def test_its_gradient_is_that_of_the_elbo_weighted_by_advantage_and_divided_by_the_length(
    toy, options, baseline, share
):
    small = toy(**options)
    paths = small.paths()
    rollout, weight = small.groups(paths, 2)
    views = all_views(rollout, coupled_probability)
    estimate = expected_gradient(small, ESPO(beta=0.0, baseline=baseline), rollout, weight, views=views)
    stated = weighted_elbo_gradient(small, paths, against_the_mean(small, paths)) / small.L
    assert stated.norm() > 1e-3
    torch.testing.assert_close(estimate, share * stated, **EXACT)


def test_the_weight_of_an_uncoupled_draw_gives_a_coupled_one_another_gradient(toy):
    small = toy(order="left_to_right")
    rollout, weight = small.groups(small.paths(), 2)

    def plain_weight(count, num_positions):
        return coupled_probability(count, num_positions) * count / (num_positions + 1) * num_positions / (count + 1)

    wrong = expected_gradient(small, ESPO(beta=0.0), rollout, weight, views=all_views(rollout, plain_weight))
    stated = weighted_elbo_gradient(small, small.paths(), against_the_mean(small, small.paths())) / small.L
    assert distance(wrong, stated) > 0.1


@pytest.mark.parametrize("order", ["random", "left_to_right"])
def test_that_gradient_is_not_the_policy_gradient(toy, order):
    small = toy(order=order)
    paths = small.paths()
    followed = weighted_elbo_gradient(small, paths, against_the_mean(small, paths))
    gradient = small.grad_j()
    # It is not at any scale, and the ELBO is below the log-probability of the completion.
    aligned = gradient * (followed * gradient).sum() / gradient.square().sum()
    assert distance(followed, aligned) > 0.1
    probability: dict[tuple, float] = {}
    for path, p in zip(paths, small.probability(paths).tolist(), strict=True):
        probability[path.tokens] = probability.get(path.tokens, 0.0) + p
    if order == "random":
        log_p = torch.tensor([probability[path.tokens] for path in paths], dtype=torch.float64).log()
        assert (elbos(small, paths) < log_p).all()


@pytest.mark.parametrize("pairs", [1, 2])
def test_the_kl_term_is_that_of_the_elbos_plus_the_variance_of_their_estimate(toy, table_denoiser, pairs):
    # E[(d + e)² / 2] = d² / 2 + Var(e) / 2, for a noisy difference d + e: the noise of the masks is
    # penalised too.
    small = toy(num_tokens=2, length=2, num_steps=2)
    reference = another(small, table_denoiser)
    path = small.paths()[3]
    rollout = Rollout(small.trajectory([path] * 2), 2, torch.zeros(2, dtype=torch.float64))
    masks = [torch.tensor(m) for m in ([0, 0], [0, 1], [1, 0], [1, 1])]
    chance = [1 / 3, 1 / 6, 1 / 6, 1 / 3]

    def estimate(draws):
        """Return the views of one completion whose pairs have these first sets, with the plan's
        weights."""
        hidden = torch.stack([half for mask in draws for half in (mask, 1 - mask)]).bool()
        hidden = hidden[hidden.any(-1)]
        zero = torch.zeros(len(hidden), dtype=torch.long)
        return Views(zero, hidden, hidden, (3 / hidden.sum(-1) / (2 * pairs)).double(), zero)

    method = ESPO(beta=1.0)
    expected = torch.zeros((), dtype=torch.float64)
    for index in torch.cartesian_prod(*[torch.arange(4)] * pairs).view(-1, pairs).tolist():
        p = math.prod(chance[i] for i in index)
        expected = (
            expected
            + p * loss_of(small, method, rollout, estimate([masks[i] for i in index]), reference=reference).loss[0]
        )

    # By hand: f(S) = Σ_{i ∈ S} log p_i(S), d(S) = f_new - f_ref, and a pair's difference is 3/2
    # (d(S)/|S| + d(S')/|S'|).
    def difference(mask):
        total = torch.zeros((), dtype=torch.float64)
        for half in (mask, 1 - mask):
            state = small.index([small.V if half[i] else path.tokens[i] for i in range(2)])
            for i in half.nonzero().flatten().tolist():
                new, ref = (t.logprobs(t.temperature)[state, i, path.tokens[i]] for t in (small, reference))
                total = total + 1.5 * (new - ref.detach()) / half.sum()
        return total

    d = torch.stack([difference(mask) for mask in masks])
    p = torch.tensor(chance, dtype=torch.float64)
    mean, variance = (p * d).sum(), (p * d.square()).sum() - (p * d).sum().square()
    torch.testing.assert_close(mean, (elbos(small, [path]) - elbos(reference, [path]).detach())[0], **EXACT)
    assert variance > 0.01
    stated = (mean.square() + variance / pairs) / 2 / small.L
    torch.testing.assert_close(expected, stated, **EXACT)
    torch.testing.assert_close(small.gradient(expected), small.gradient(stated), **EXACT)


# Loss


def test_the_ratio_is_of_elbos_per_position_and_clipped_on_the_harmful_side():
    # Weight 2 and a change of 0.1 for each of three tokens: exp(2 * 0.3 / 3) = exp(0.2), past 1.2.
    given = hand_inputs([[0.1] * 3] * 2, [[0.0] * 3] * 2, [1.0, -1.0])
    output = ESPO(beta=0.0).loss(given)
    assert output.loss.tolist() == pytest.approx([-1.2, math.exp(0.2)])
    assert output.metrics["clip_ratio/high_mean"].tolist() == [1.0, 0.0]
    assert output.metrics["policy/elbo"].tolist() == pytest.approx([0.2, 0.2])
    output.loss.sum().backward()
    assert (given.new.grad != 0).any(-1).tolist() == [False, True]


def test_at_the_old_policy_even_a_clip_of_zero_lets_the_gradient_pass():
    given = hand_inputs([[-1.0] * 3] * 2, [[-1.0] * 3] * 2, [1.0, -1.0])
    ESPO(beta=0.0, epsilon=0.0, epsilon_high=0.0).loss(given).loss.sum().backward()
    torch.testing.assert_close(given.new.grad, torch.tensor([[-2 / 3] * 3, [2 / 3] * 3], dtype=torch.float64))


def test_the_kl_is_k2_of_the_elbos_divided_by_the_length_once():
    given = hand_inputs([[-1.0] * 3] * 2, [[-1.0] * 3] * 2, [0.0, 0.0], reference=[[-1.5] * 3, [-1.0] * 3])
    output = ESPO(beta=0.5).loss(given)
    # ELBOs of -6 and -9: 3² / 2 / 3.
    assert output.metrics["kl"].tolist() == pytest.approx([1.5, 0.0])
    assert output.loss.tolist() == pytest.approx([0.75, 0.0])
    assert not any(values.requires_grad for values in output.metrics.values())

"""Tests of SPG: its block-wise views, its two bounds, and its expectation over all draws of the plan;
and of StableDRL, its importance weights."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import binomtest, chisquare

from tests.helpers.any_order import another, loss_of
from tests.helpers.mean_field import EXACT, OneUpdate, all_masks, surrogate_gradient, token_logprobs
from tests.helpers.messages import raises
from tests.helpers.records import make_inputs
from tests.helpers.toy import distance, expected_gradient
from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError
from unmask.core.records import GIVEN, Needs, Rollout, Views
from unmask.functional.masking import block_masks, evidence_upper_bound
from unmask.methods import METHODS
from unmask.methods.spg import SPG, StableDRL


def test_the_defaults_are_the_published_settings():
    assert METHODS["spg"]().model_dump() == {
        "type": "spg",
        "num_views": 2,
        "mixture": 0.5,
        "eubo_power": 1.5,
        "noise_ratio": 0.15,
        "baseline": "group_mean",
    }
    assert SPG().needs() == Needs(), "no reference and no old policy"
    with raises(ConfigError, "num_generations = 1"):
        SPG().check(SamplerConfig(), 1)


# Blocks


def test_the_chosen_block_is_masked_in_part_later_ones_fully_and_earlier_ones_not_at_all():
    is_maskable = torch.arange(8) < torch.tensor([[8], [5], [1], [0]]).repeat(50, 1)
    masks, before = block_masks(is_maskable, 2, 7, torch.Generator().manual_seed(0))
    assert masks.shape == before.shape == (200, 7, 8)
    block = torch.arange(8) // 2
    for row, mask, clean in zip(
        is_maskable.repeat_interleave(7, 0), masks.flatten(0, 1), before.flatten(0, 1), strict=True
    ):
        assert not (mask & ~row).any()
        assert not (clean & ~row).any()
        if row.any():
            picked = block[mask].min()
            assert torch.equal(clean, row & (block < picked))
            assert torch.equal(mask & (block > picked), row & (block > picked))
            assert (mask & (block == picked)).any()
        else:
            assert not mask.any()


def test_blocks_are_chosen_by_a_permutation_modulo_the_nonempty_ones():
    # Four blocks, of which three are not empty: 0 and 3 both give block 0.
    is_maskable = (torch.arange(8) < 5).expand(6000, 8)
    masks, _ = block_masks(is_maskable, 2, 2, torch.Generator().manual_seed(1))
    picked = (torch.arange(8) // 2).expand(masks.shape).masked_fill(~masks, 9).amin(-1)
    pairs = torch.bincount(picked[:, 0] * 3 + picked[:, 1], minlength=9)
    expected = torch.zeros(9, dtype=torch.float64)
    for first, second in itertools.permutations(range(4), 2):
        expected[(first % 3) * 3 + second % 3] += 6000 / 12
    assert pairs[expected == 0].sum() == 0
    assert chisquare(pairs[expected > 0], expected[expected > 0], sum_check=False).pvalue > 1e-3
    assert chisquare(pairs, torch.full((9,), 6000 / 9).double(), sum_check=False).pvalue < 1e-6, (
        "the comparison can fail"
    )
    # Within a block: one or two positions of a full block with probability one half each, one of a
    # block with one.
    first = masks[picked == 0]
    assert binomtest(int((first[:, :2].sum(-1) == 1).sum()), len(first), 0.5).pvalue > 1e-3
    alone = first[first[:, :2].sum(-1) == 1]
    assert binomtest(int(alone[:, 0].sum()), len(alone), 0.5).pvalue > 1e-3
    assert masks[picked == 2][:, 4].all()


def test_block_masks_refuses_invalid_arguments():
    with pytest.raises(ValueError, match="block_length >= 1 and num_draws >= 1; got 0 and 1"):
        block_masks(torch.ones(1, 2, dtype=torch.bool), 0, 1, torch.Generator())


# Plan


def synthetic(toy, num_rows=1500):
    """Return rows of six positions in blocks of two, with padded prompts; every other row ends
    after four positions."""
    small = toy()
    path = small.trajectory([small.paths()[0]] * num_rows)
    tokens = torch.zeros(num_rows, 6, dtype=torch.long)
    tokens[::2, 3:] = path.eos_id
    prompt = torch.ones(num_rows, 5, dtype=torch.bool)
    prompt[:, :2] = False
    path = replace(
        path,
        tokens=tokens,
        unmask_step=torch.zeros(num_rows, 6, dtype=torch.int32),
        logprob=torch.zeros(num_rows, 6),
        entropy=torch.zeros(num_rows, 6),
        sampler=SamplerConfig(max_completion_length=6, block_length=2),
        prompt_ids=prompt.long(),
        prompt_mask=prompt,
    )
    return Rollout(path, 2, torch.rand(num_rows, generator=torch.Generator().manual_seed(0)))


def test_the_plan_masks_some_of_the_prompt_and_clean_blocks_and_all_after_the_end(toy):
    rollout = synthetic(toy)
    plain = SPG(noise_ratio=0.0).plan(rollout, torch.Generator().manual_seed(0))
    assert not plain.prompt_hidden.any()
    views = SPG().plan(rollout, torch.Generator().manual_seed(0))
    assert views.row.tolist() == [b for b in range(1500) for _ in range(2)]
    short = views.row % 2 == 0
    assert torch.equal(views.weight, torch.where(short, 4.0, 6.0))
    assert views.hidden[short, 4:].all()
    assert not views.target[short, 4:].any()
    assert torch.equal(views.hidden[:, :4], views.target[:, :4])
    # The blocks are drawn first, so positions masked beyond the plain plan are the noise.
    noise = views.target & ~plain.target
    assert torch.equal(noise | plain.target, views.target)
    block = torch.arange(6) // 2
    picked = block.expand(plain.target.shape).masked_fill(~plain.target, 9).amin(-1, keepdim=True)
    clean = block < picked
    assert not noise[~clean].any()
    assert binomtest(int(noise.sum()), int(clean.sum()), 0.15).pvalue > 1e-3
    assert not views.prompt_hidden[:, :2].any()
    assert binomtest(int(views.prompt_hidden[:, 2:].sum()), 9000, 0.15).pvalue > 1e-3
    assert binomtest(int(views.prompt_hidden[:, 2:].sum()), 9000, 0.17).pvalue < 1e-3, "the comparison can fail"


def test_tokens_present_from_the_start_stay_visible_and_are_not_targets(toy):
    rollout = synthetic(toy, 60)
    when = rollout.trajectory.unmask_step.clone()
    when[:, 1] = GIVEN
    views = SPG().plan(replace(rollout, trajectory=replace(rollout.trajectory, unmask_step=when)), torch.Generator())
    assert not (views.hidden | views.target)[:, 1].any()
    assert sorted(set(views.weight.tolist())) == [3.0, 5.0]


# The bounds


def every_view(small, paths):
    """Return [paths, 9, 3] log-probabilities and masks. For L = 3, nine equally likely views are
    uniform counts and sets."""
    masks = [mask for mask in all_masks(3)[1:] for _ in range(3 if mask.all() else 1)]
    logprob = torch.stack([token_logprobs(small, paths, mask) for mask in masks], dim=1)
    return logprob, torch.stack(masks).expand(logprob.shape)


def completions(toy, **options):
    """Return one path for each completion, the exact log-probability of the completion, and its
    ELBO."""
    small = toy(num_tokens=2, **options)
    paths = small.paths()
    mass: dict[tuple[int, ...], float] = {}
    for path, probability in zip(paths, small.probability(paths).tolist(), strict=True):
        mass[path.tokens] = mass.get(path.tokens, 0.0) + probability
    firsts = list({path.tokens: path for path in paths}.values())
    exact = torch.tensor([mass[path.tokens] for path in firsts], dtype=torch.float64).log()
    logprob, masks = every_view(small, firsts)
    elbo = 3 * ((logprob * masks).sum(-1) / masks.sum(-1)).mean(-1)
    return small, firsts, exact, elbo.detach(), logprob.detach(), masks


def upper(logprob, masks, power):
    return 3 * evidence_upper_bound(logprob, masks, torch.full((len(logprob),), 3), power)


@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_over_all_views_the_likelihood_is_between_the_bounds(toy, temperature):
    _, _, exact, elbo, logprob, masks = completions(toy, temperature=temperature)
    assert len(exact) == 8
    assert float(exact.exp().sum()) == pytest.approx(1, abs=1e-12)
    assert (elbo < exact).all()
    # Hölder: for β of at least the number of tokens.
    for power in (3.0, 6.0):
        assert (upper(logprob, masks, power) > exact).all()
    powers = [upper(logprob, masks, power) for power in (1e-6, 0.5, 1.0, 1.5, 3.0, 6.0)]
    torch.testing.assert_close(powers[0], elbo, rtol=0, atol=1e-4)
    for low, high in itertools.pairwise(powers):
        assert (high > low).all()


def test_at_the_released_power_it_bounds_the_elbo_but_not_always_the_likelihood(table_denoiser, toy):
    _, _, exact, elbo, logprob, masks = completions(toy)
    assert (upper(logprob, masks, 1.5) > elbo).all()
    below = upper(logprob, masks, 1.0) < exact
    assert below.any(), "β = 1 is no bound of the likelihood on this model"
    assert not below.all()


def test_the_bound_equals_the_formula_and_excludes_tokens_that_no_view_masks():
    generator = torch.Generator().manual_seed(0)
    logprob = -2 * torch.rand(5, 3, 6, generator=generator, dtype=torch.float64)
    masks = torch.rand(5, 3, 6, generator=generator) < 0.4
    masks[0] = False
    masks[1, 2] = False
    masks[:, :, 5] = False
    num_tokens = torch.tensor([5, 5, 4, 6, 6])
    logprob.requires_grad_()
    found = evidence_upper_bound(logprob, masks, num_tokens, 1.5)
    expected = []
    for b in range(5):
        terms = []
        for k in range(6):
            read = [
                math.exp(1.5 * logprob[b, m, k].item()) * int(num_tokens[b]) / int(masks[b, m].sum())
                for m in range(3)
                if masks[b, m, k]
            ]
            if read:
                terms.append(math.log(sum(read) / 3) / 1.5)
        expected.append(sum(terms) / len(terms) if terms else 0.0)
    assert found.tolist() == pytest.approx(expected, abs=1e-12)
    (gradient,) = torch.autograd.grad(found.sum(), logprob)
    assert torch.isfinite(gradient).all()
    assert not gradient[~masks].any()
    with pytest.raises(ValueError, match="power > 0"):
        evidence_upper_bound(logprob, masks, num_tokens, 0.0)


# Expectation


def picks(length, block_length):
    """Return [(probability, mask)] of one draw of each block: uniform counts and sets, with later
    blocks masked."""
    blocks = []
    for start in range(0, length, block_length):
        draws = []
        for inside in all_masks(block_length)[1:]:
            mask = torch.arange(length) >= start
            mask[start : start + block_length] = inside
            draws.append((1 / block_length / math.comb(block_length, int(inside.sum())), mask))
        blocks.append(draws)
    return blocks


def pairs_of_views(length, block_length):
    """Return [(probability, (first, second))] of a completion's two views: a permutation of the
    blocks, modulo all of them."""
    blocks = picks(length, block_length)
    orders = list(itertools.permutations(range(len(blocks)), 2)) or [(0, 0)]
    return [
        (p * q / len(orders), (first, second)) for i, j in orders for p, first in blocks[i] for q, second in blocks[j]
    ]


def with_views(rollout, masks):
    num, sets = len(rollout.reward), torch.stack(masks)
    length = sets.shape[1]
    hidden = sets.repeat(num, 1)
    return Views(
        row=torch.arange(num).repeat_interleave(len(masks)),
        hidden=hidden,
        target=hidden,
        weight=torch.full((num * len(masks),), float(length), dtype=torch.float64),
        slot=torch.arange(len(masks)).repeat(num),
    )


def by_sign(small, paths, length, block_length, mixture, power):
    """Return the expected ELBO and the expected mixture per token by their formulas, [paths] each,
    with graph."""
    lower, mixed = 0.0, 0.0
    for chance, masks in pairs_of_views(length, block_length):
        each = [token_logprobs(small, paths, mask) for mask in masks]
        elbo = sum((logp * mask).sum(-1) / mask.sum() for logp, mask in zip(each, masks, strict=True)) / 2
        pooled = (
            sum(logp.exp() ** power * mask / (mask.sum() / length) for logp, mask in zip(each, masks, strict=True)) / 2
        )
        read = masks[0] | masks[1]
        eubo = pooled[:, read].log().mean(-1) / power
        lower = lower + chance * elbo
        mixed = mixed + chance * (mixture * eubo + (1 - mixture) * elbo)
    return lower, mixed


def signed_gradient(small, paths, positive, negative):
    """Compute ∇ E[A+ · positive + A- · negative] over pairs of paths, with the group-mean advantage
    A = (r - r')/2."""
    probability, reward = small.probability(paths).detach(), small.reward(paths)
    advantage = (reward.unsqueeze(1) - reward) / 2
    pair = probability.unsqueeze(1) * probability
    total = ((pair * advantage.clamp(min=0)).sum(1) * positive).sum()
    total = total + ((pair * advantage.clamp(max=0)).sum(1) * negative).sum()
    return torch.autograd.grad(total, small.denoiser.table, retain_graph=True)[0]


@pytest.mark.parametrize(("length", "block_length"), [(3, 3), (4, 2)], ids=["one block", "two blocks"])
@pytest.mark.parametrize("options", [{}, {"mixture": 1.0, "eubo_power": 1.0}, {"mixture": 0.0}], ids=str)
@pytest.mark.slow
def test_it_estimates_the_elbo_for_positive_and_the_mixture_for_negative_advantages(toy, length, block_length, options):
    small = toy(num_tokens=2, length=length, num_steps=length, order="left_to_right")
    paths = small.paths()
    rollout, weight = small.groups(paths, 2)
    method = SPG(**options)
    total = 0.0
    for chance, masks in pairs_of_views(length, block_length):
        total = total + chance * expected_gradient(small, method, rollout, weight, views=with_views(rollout, masks))
    lower, mixed = by_sign(small, paths, length, block_length, method.mixture, method.eubo_power)
    expected = signed_gradient(small, paths, lower, mixed)
    assert expected.norm() > 0.003
    torch.testing.assert_close(total, expected, **EXACT)
    if method.mixture:
        assert distance(signed_gradient(small, paths, lower, lower), expected) > 0.01, "the mixture is not the ELBO"
        assert distance(signed_gradient(small, paths, mixed, mixed), expected) > 0.01, "nor is it for both signs"


def test_in_one_block_without_mixture_it_is_the_elbos_gradient_per_token(toy):
    small = toy(num_tokens=2)
    paths = small.paths()
    rollout, weight = small.groups(paths, 2)
    method = SPG(num_views=1, mixture=0.0, baseline="leave_one_out")
    total = 0.0
    for chance, mask in picks(3, 3)[0]:
        total = total + chance * expected_gradient(small, method, rollout, weight, views=with_views(rollout, [mask]))
    logprob, masks = every_view(small, paths)
    elbo = ((logprob * masks).sum(-1) / masks.sum(-1)).mean(-1)
    torch.testing.assert_close(total, surrogate_gradient(small, paths, elbo), **EXACT)
    assert distance(3 * total, small.grad_j()) == pytest.approx(1.760958, rel=1e-5)


def test_with_one_view_the_upper_bound_has_the_gradient_of_the_lower_one(toy):
    # The logarithm cancels the power, and 1/t becomes a constant, so the sandwich needs a second
    # view.
    small = toy(num_tokens=2, order="left_to_right")
    rollout, weight = small.groups(small.paths(), 2)
    for mask in all_masks(3)[1:]:
        views = with_views(rollout, [mask])
        gradients = [
            expected_gradient(small, SPG(num_views=1, mixture=mixture), rollout, weight, views=views)
            for mixture in (0.0, 1.0)
        ]
        torch.testing.assert_close(*gradients, **EXACT)
    views = with_views(rollout, [torch.tensor([True, True, False]), torch.tensor([True, False, False])])
    gradients = [expected_gradient(small, SPG(mixture=mixture), rollout, weight, views=views) for mixture in (0.0, 1.0)]
    assert distance(*gradients) > 0.05


# Loss


def test_a_completion_counts_in_proportion_to_its_tokens_and_not_at_all_with_zero_advantage():
    new = torch.tensor(
        [[-1.0, 0.0, 0.0], [-1.0, -2.0, 0.0], [0.0, -3.0, -1.0], [-1.0, 0.0, 0.0], [0.0] * 3, [-1.0, 0.0, 0.0]]
    )
    target = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 0, 0]], dtype=torch.bool)
    new.requires_grad_()
    given = make_inputs(
        new,
        row=[0, 0, 1, 1, 2, 2],
        target=target,
        weight=[2.0, 2.0, 3.0, 3.0, 1.0, 1.0],
        advantage=[2.0, 2.0, -1.0, -1.0, 0.0, 0.0],
    )
    output = SPG(mixture=1.0, eubo_power=1.0).loss(given)
    # 6 tokens in 3 completions: 2, 3 and 1 over a mean of 2. ELBOs -1.25, -1.5; pooled in the
    # second, token by token: 1/2 of p over the share of masked tokens, which is 2/3 for its first
    # view and 1/3 for the second.
    first = 2.0 * 1.25 * 2 / 2
    pooled = [math.log(math.exp(-1.0) * 3 / 2), math.log(math.exp(-3.0) * 3 / 4), math.log(math.exp(-1.0) * 3 / 4)]
    second = sum(pooled) / 3 * 3 / 2
    assert output.loss.tolist() == pytest.approx([first, second, 0.0])
    output.loss.sum().backward()
    assert torch.isfinite(new.grad).all()
    assert not new.grad[4:].any()
    assert output.metrics["policy/elbo"].tolist() == pytest.approx([-1.25, -1.5, -0.5])
    assert not any(values.requires_grad for values in output.metrics.values())


# In the trainer


def test_two_passes_give_the_gradient_of_one_graph_with_the_memory_of_one_chunk(lively, tmp_path):
    update, method = OneUpdate(lively, tmp_path), SPG(num_views=4)
    rollout = update.rollout(update.recipe(method))
    whole = update.one_graph(method, rollout)
    assert whole.norm() > 1e-4
    for size in (256, 5, 1):
        metrics, gradient = update(method, f"views_per_forward={size}", "num_iterations=1", rollout=rollout)
        assert distance(gradient, whole) < 1e-6
        assert max(update.events[::2]) <= size
        assert update.events[1::2] == ["backward"] * (len(update.events) // 2), "no graph outlives its chunk"
        assert sum(update.events[::2]) == 48
        assert metrics["policy/elbo"] < 0
    other = update.one_graph(SPG(num_views=4, mixture=0.0), rollout)
    assert distance(other, whole) > 0.01, "the mixture is felt"


# StableDRL

PAIR_OF_MASKS = [torch.tensor([True, True, False]), torch.tensor([False, True, False])]


def bounds_by_hand(small, paths, method):
    """Return the lower bound and the mixture of the bounds per token for the pair of masks, with graph."""
    each = [token_logprobs(small, paths, mask) for mask in PAIR_OF_MASKS]
    lower = sum((logp * mask).sum(-1) / mask.sum() for logp, mask in zip(each, PAIR_OF_MASKS, strict=True)) / 2
    power = method.eubo_power
    pooled = (
        sum(logp.exp() ** power * mask * 3 / mask.sum() for logp, mask in zip(each, PAIR_OF_MASKS, strict=True)) / 2
    )
    upper = pooled[:, :2].log().mean(-1) / power
    return lower, method.mixture * upper + (1 - method.mixture) * lower


def weighted_gradient(small, old, paths, method, weights_of):
    """Compute ∇ E[Σ_i w_i A_i bound_i] over pairs of completions of the old policy, where the weights
    of a pair are a function of its log-ratios."""
    probability, reward = old.probability(paths).detach(), small.reward(paths)
    lower, mixed = bounds_by_hand(small, paths, method)
    log_ratio = lower.detach() - bounds_by_hand(old, paths, method)[0].detach()
    total = 0.0
    for i, j in itertools.product(range(len(paths)), repeat=2):
        weight = weights_of(log_ratio[[i, j]])
        for w, own, other in ((weight[0], i, j), (weight[1], j, i)):
            advantage = (reward[own] - reward[other]) / 2
            bound = lower[own] if advantage > 0 else mixed[own]
            total = total + probability[i] * probability[j] * w * advantage * bound
    return small.gradient(total)


def stable_gradient(small, old, paths, method):
    """Return the same from the method's own loss."""
    rollout, weight = old.groups(paths, 2)
    loss = loss_of(small, method, rollout, with_views(rollout, PAIR_OF_MASKS), old=old).loss.view(-1, 2)
    return -small.gradient((weight * loss.sum(-1)).sum()) / 2


def test_stable_drl_has_the_published_settings_and_needs_whole_groups():
    assert METHODS["stable_drl"]().model_dump() == SPG().model_dump() | {"type": "stable_drl", "max_weight": 5.0}
    assert not StableDRL.by_completion
    assert StableDRL().has_gradient(torch.zeros(2)).all()


@pytest.mark.parametrize("most", [1.01, 5.0, 1e9])
def test_away_from_the_old_policy_the_clipped_weights_of_a_group_sum_to_one(toy, table_denoiser, most):
    small = toy(num_tokens=2, order="left_to_right")
    old, paths = another(small, table_denoiser), small.paths()
    method = StableDRL(max_weight=most)
    found = stable_gradient(small, old, paths, method)
    expected = weighted_gradient(small, old, paths, method, lambda x: x.clamp(max=math.log(most)).softmax(0))
    torch.testing.assert_close(found, expected, **EXACT)
    plain = weighted_gradient(small, old, paths, method, lambda x: x.exp() / 2)
    assert distance(found, plain) > 0.05, "dividing by the sum is a bias"


def test_at_the_old_policy_it_is_spg_whatever_the_bound_of_the_weights(toy):
    small = toy(num_tokens=2, order="left_to_right")
    paths = small.paths()
    rollout, weight = small.groups(paths, 2)
    views = with_views(rollout, PAIR_OF_MASKS)
    spg = expected_gradient(small, SPG(), rollout, weight, views=views)
    for most in (1.01, 5.0):
        stable = expected_gradient(small, StableDRL(max_weight=most), rollout, weight, views=views)
        torch.testing.assert_close(stable, spg, **EXACT)


def test_the_weights_are_clipped_whatever_the_sign_of_the_advantage():
    # One view of one token: the bounds are the log-probability itself. Ratios 20, 1, 20, 1.
    log_20 = math.log(20)
    new = torch.tensor([[0.0], [-1.0], [0.0], [-1.0]], dtype=torch.float64, requires_grad=True)
    old = [[-log_20], [-1.0], [-log_20], [-1.0]]
    given = make_inputs(new, old=old, advantage=[1.0, -1.0, -1.0, 1.0], group_size=2)
    output = StableDRL(num_views=1, max_weight=4.0).loss(given)
    output.loss.sum().backward()
    share = 2 * torch.tensor([4 / 5, 1 / 5, 4 / 5, 1 / 5], dtype=torch.float64)
    torch.testing.assert_close(new.grad[:, 0], -share * torch.tensor([1.0, -1.0, -1.0, 1.0]), rtol=0, atol=1e-12)
    assert output.metrics["clip_ratio/region_mean"].tolist() == [1.0, 0.0, 1.0, 0.0]
    assert output.metrics["policy/ratio_max"].tolist() == pytest.approx([20.0, 1.0, 20.0, 1.0])

"""Tests of diffu-GRPO: its views, its expectation under every mask of the prompt, and its biases."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.stats import binomtest, chisquare

from tests.helpers.mean_field import EXACT, OneUpdate, PromptToy, scored, surrogate_gradient, token_logprobs
from tests.helpers.messages import raises
from tests.helpers.records import make_inputs
from tests.helpers.regions import REGION
from tests.helpers.toy import distance, expected_gradient
from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError
from unmask.core.records import GIVEN, Needs, Rollout, Views
from unmask.functional.masking import strata
from unmask.methods import METHODS
from unmask.methods.diffu_grpo import DiffuGRPO

PAD, EOS = 0, 2


def method(**options):
    return DiffuGRPO(**({"beta": 0.0, "baseline": "leave_one_out", "prompt_mask_ratio": 0.0} | options))


def test_the_defaults_are_the_published_settings():
    assert METHODS["diffu_grpo"]().model_dump() == {
        "type": "diffu_grpo",
        "prompt_mask_ratio": 0.15,
        "num_strata": 1,
        "baseline": "group_mean",
        "epsilon": 0.5,
        "epsilon_high": 0.5,
        "beta": 0.04,
        **REGION,
    }
    assert DiffuGRPO().needs() == Needs(reference="logprob")
    assert DiffuGRPO(beta=0.0).needs() == Needs()
    with raises(ConfigError, "num_generations = 1"):
        DiffuGRPO().check(SamplerConfig(), 1)


# Plan


def long_prompts(toy, num_rows=2000):
    """Return rows with two tokens of padding and six of prompt, and completions of the toy model
    with EOS."""
    small = toy(eos=True)
    paths = small.paths()
    path = small.trajectory([paths[b % len(paths)] for b in range(num_rows)])
    mask = torch.ones(num_rows, 8, dtype=torch.bool)
    mask[:, :2] = False
    path = replace(path, prompt_ids=mask.long(), prompt_mask=mask)
    return small, Rollout(path, 2, torch.rand(num_rows, generator=torch.Generator().manual_seed(0)))


def test_a_view_masks_the_whole_completion_with_targets_up_to_the_first_eos(toy):
    small, rollout = long_prompts(toy, 162)
    views = method().plan(rollout, torch.Generator())
    assert views.hidden.all()
    assert views.row.tolist() == list(range(162))
    is_eos = rollout.trajectory.tokens == small.denoiser.eos_id
    for target, eos in zip(views.target.tolist(), is_eos.tolist(), strict=True):
        end = eos.index(True) if any(eos) else 2
        assert target == [i <= end for i in range(3)]
    assert views.weight.tolist() == pytest.approx([162 / int(views.target.sum())] * 162)
    assert views.prompt_hidden is None


def test_tokens_present_from_the_start_stay_visible_and_are_not_targets(toy):
    _, rollout = long_prompts(toy, 4)
    when = rollout.trajectory.unmask_step.clone()
    when[:, 0] = GIVEN
    given = replace(rollout, trajectory=replace(rollout.trajectory, unmask_step=when))
    views = method().plan(given, torch.Generator())
    assert not views.hidden[:, 0].any()
    assert not views.target[:, 0].any()
    assert views.hidden[:, 1:].all()


def test_each_prompt_token_is_masked_with_probability_0_15_and_padding_never(toy):
    _, rollout = long_prompts(toy)
    hidden = DiffuGRPO().plan(rollout, torch.Generator().manual_seed(5)).prompt_hidden
    assert not hidden[:, :2].any()
    for column in range(2, 8):
        assert binomtest(int(hidden[:, column].sum()), 2000, 0.15).pvalue > 1e-3
    # They are independent: pairs of neighbours have the product of the probabilities.
    assert binomtest(int((hidden[:, 2] & hidden[:, 3]).sum()), 2000, 0.0225).pvalue > 1e-3
    assert binomtest(int(hidden[:, 2].sum()), 2000, 0.2).pvalue < 1e-3, "the comparison can fail"


def test_equal_generators_give_equal_plans(toy):
    _, rollout = long_prompts(toy, 50)
    plans = [DiffuGRPO().plan(rollout, torch.Generator().manual_seed(seed)).prompt_hidden for seed in (1, 1, 2)]
    assert torch.equal(plans[0], plans[1])
    assert not torch.equal(plans[0], plans[2])


# Expectation


@pytest.mark.parametrize("options", [{}, {"order": "low_confidence", "num_steps": 2}, {"temperature": 1.3}], ids=str)
@pytest.mark.parametrize(("baseline", "share"), [("leave_one_out", 1.0), ("group_mean", 0.5)])
def test_it_estimates_the_gradient_of_the_mean_field_likelihood_per_token(toy, options, baseline, share):
    small = toy(num_tokens=2, **options)
    paths = small.paths()
    estimate = expected_gradient(small, method(baseline=baseline), *small.groups(paths, 2))
    likelihood = token_logprobs(small, paths, [True] * 3).sum(-1)
    # 1/3 is the float32 weight 3 / (3 · 3) of the plan.
    expected = share * surrogate_gradient(small, paths, likelihood) * float(torch.tensor(1 / 3))
    assert expected.norm() > 0.01
    torch.testing.assert_close(estimate, expected, **EXACT)


def test_the_distance_from_the_policy_gradient_is_known(toy):
    small = toy()
    estimate = expected_gradient(small, method(), *small.groups(small.paths(), 2)) * small.L
    gradient = small.grad_j()
    assert distance(estimate, gradient) == pytest.approx(2.414361, rel=1e-6)
    # Only the fully masked state gets a gradient, so no scale brings it near.
    aligned = gradient * (estimate * gradient).sum() / gradient.square().sum()
    assert distance(aligned, gradient) > 0.1
    assert distance(estimate, aligned) > 0.5
    in_one_step = toy(num_steps=1)
    estimate = expected_gradient(in_one_step, method(), *in_one_step.groups(in_one_step.paths(), 2)) * 3
    assert distance(estimate, in_one_step.grad_j()) < 1e-7, "where all tokens come in one step, it is"


def test_the_expectation_is_over_every_mask_of_the_prompt(table_denoiser):
    small = PromptToy(table_denoiser(2, 3, 99, seed=0), num_steps=3)
    paths = small.paths()
    rollout, weight = small.groups(paths, 2)
    plain = method().plan(rollout, torch.Generator())
    ratio, total, expected = 0.15, 0.0, 0.0
    tokens = torch.tensor([path.tokens for path in paths])
    for pattern in range(4):
        hidden = torch.tensor([bool(pattern & 1), bool(pattern & 2)])
        probability = float((ratio * hidden + (1 - ratio) * ~hidden).prod())
        views = replace(plain, prompt_hidden=hidden.expand(len(plain), 2))
        total = total + probability * expected_gradient(small, method(), rollout, weight, views=views)
        empty = small.denoiser.table[small.index([2, 2, 2])] * small.denoiser.factor[pattern]
        each = (empty[:, :2] / small.temperature).log_softmax(-1)
        likelihood = each.expand(len(paths), 3, 2).gather(-1, tokens.unsqueeze(-1)).sum((1, 2))
        expected = expected + probability * surrogate_gradient(small, paths, likelihood)
    torch.testing.assert_close(total, expected * float(torch.tensor(1 / 3)), **EXACT)
    without = expected_gradient(small, method(), rollout, weight, views=plain)
    assert distance(without, total) > 0.05, "the masks matter"


def test_dividing_by_the_batchs_number_of_tokens_is_a_known_bias(toy):
    small = toy(num_tokens=2, eos=True)
    paths = small.paths()
    rollout, weight = small.groups(paths, 2)
    length = scored(small, paths).sum(-1)
    pairs = torch.cartesian_prod(torch.arange(len(paths)), torch.arange(len(paths)))
    # One group is one batch here, so the published normalisation divides 2 completions by their
    # tokens.
    per_group = 2 / length[pairs].sum(-1).double()
    views = method().plan(rollout, torch.Generator())
    views = replace(views, weight=per_group.repeat_interleave(2))
    estimate = expected_gradient(small, method(), rollout, weight, views=views)
    likelihood = (token_logprobs(small, paths, [True] * 3) * scored(small, paths)).sum(-1)
    probability, reward = small.probability(paths).detach(), small.reward(paths)
    first, second = pairs.unbind(-1)
    advantage = (reward[first] - reward[second]) * probability[first] * probability[second]
    total = (advantage * likelihood[first] * per_group).sum()
    (expected,) = torch.autograd.grad(total, small.denoiser.table, retain_graph=True)
    torch.testing.assert_close(estimate, expected, **EXACT)
    assert length.unique().tolist() == [1, 2, 3]
    constant = surrogate_gradient(small, paths, likelihood)
    aligned = constant * (estimate * constant).sum() / constant.square().sum()
    assert distance(estimate, aligned) > 0.01
    for group in range(0, len(weight), 97):
        one = method().plan(rollout.groups(slice(group, group + 1)), torch.Generator())
        assert one.weight.tolist() == pytest.approx([float(per_group[group])] * 2)


# Loss


def inputs(new, old, advantage, target, reference=None):
    return make_inputs(new, old=old, reference=reference, target=target, weight=0.25, advantage=advantage)


def test_each_token_has_its_own_ratio_and_clip():
    generator = torch.Generator().manual_seed(0)
    new, old, reference = (-3 * torch.rand(4, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    advantage = torch.tensor([1.0, -1.0, 0.5, -2.0], dtype=torch.float64)
    target = torch.rand(4, 5, generator=generator) < 0.7
    new.requires_grad_()
    output = DiffuGRPO(beta=0.1).loss(inputs(new, old, advantage, target, reference))
    ratio = (new - old).exp()
    gain = torch.minimum(ratio * advantage.view(4, 1), ratio.clamp(0.5, 1.5) * advantage.view(4, 1))
    k3 = (reference - new).exp() - (reference - new) - 1
    by_hand = 0.25 * ((0.1 * k3 - gain) * target).sum(-1)
    torch.testing.assert_close(output.loss, by_hand)
    expected = torch.autograd.grad(by_hand.sum(), new, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(output.loss.sum(), new)[0], expected)
    is_cut = (gain != ratio * advantage.view(4, 1)) & target
    assert 0 < is_cut.sum() < target.sum()
    assert output.metrics["clip_ratio/region_mean"].sum() == is_cut.sum()
    assert output.metrics["kl"].numel() == target.sum()
    assert not any(values.requires_grad for values in output.metrics.values())


def test_without_prompt_masks_it_equals_step_merge_with_one_segment(toy):
    # StepMerge with one segment conditions every token on the state before step 0, takes token
    # ratios and divides by L.
    small = toy()
    paths = small.paths()
    rollout, _ = small.groups(paths[::7], 2)
    rows = rollout.trajectory
    views = method().plan(rollout, torch.Generator())
    assert torch.equal(views.hidden, rows.unmask_step >= 0)
    assert torch.equal(views.target, (rows.unmask_step >= 0) & (rows.unmask_step < small.num_steps))
    new = token_logprobs(small, [path for pair in pairs_of(paths[::7]) for path in pair], [True] * 3)
    old = (new + 0.7 * torch.randn(new.shape, generator=torch.Generator().manual_seed(1)).double()).detach()
    advantage = method(baseline="group_mean").advantage(rollout)
    given = replace(inputs(new, old, advantage, views.target), weight=views.weight.double())
    (found,) = torch.autograd.grad(method().loss(given).loss.mean(), small.denoiser.table, retain_graph=True)
    ratio, a = (new - old).exp(), advantage.unsqueeze(-1)
    merged = -torch.minimum(ratio * a, ratio.clamp(0.5, 1.5) * a).sum(-1) / small.L
    expected = small.gradient(merged.mean())
    assert expected.norm() > 1e-3
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)


def pairs_of(paths):
    return [(a, b) for a in paths for b in paths]


# In the trainer


def test_the_ratio_is_one_at_the_first_update_and_each_pass_masks_the_prompt_again(lively, tmp_path, monkeypatch):
    plans = []
    plan = DiffuGRPO.plan

    def recorded(self, rollout, generator):
        plans.append(plan(self, rollout, generator))
        return plans[-1]

    monkeypatch.setattr(DiffuGRPO, "plan", recorded)
    update = OneUpdate(lively, tmp_path)
    metrics, gradient = update(DiffuGRPO(beta=0.0), "num_iterations=3", "optim.learning_rate=1.0e-12")
    assert metrics["policy/ratio_max"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["clip_ratio/region_mean"] == 0.0
    assert gradient.norm() > 1e-4
    assert len(plans) == 3
    assert len({tuple(views.prompt_hidden.flatten().tolist()) for views in plans}) == 3


def test_chunks_of_views_give_the_whole_gradient(lively, tmp_path):
    update = OneUpdate(lively, tmp_path)
    rollout = update.rollout(update.recipe(DiffuGRPO(beta=0.0)))
    runs = [update(DiffuGRPO(beta=0.0), f"views_per_forward={n}", rollout=rollout) for n in (256, 5, 1)]
    for _, gradient in runs[1:]:
        assert distance(gradient, runs[0][1]) < 1e-5


# Strata


def test_strata_cover_each_position_once_and_differ_in_size_by_at_most_one():
    is_maskable = torch.arange(7) < torch.tensor([7, 5, 2, 0]).repeat(50).unsqueeze(-1)
    masks = strata(is_maskable, 3, torch.Generator().manual_seed(0))
    assert torch.equal(masks.sum(1), is_maskable.long())
    assert (masks.sum(-1).amax(-1) - masks.sum(-1).amin(-1) <= 1).all()
    with pytest.raises(ValueError, match="num_strata must be at least 1; got 0"):
        strata(is_maskable, 0, torch.Generator())


def test_all_divisions_into_strata_are_equally_likely():
    masks = strata(torch.ones(6000, 3, dtype=torch.bool), 2, torch.Generator().manual_seed(0))
    alone = (masks[:, 1] * torch.arange(3)).sum(-1)
    assert torch.equal(masks.sum(-1), torch.tensor([[2, 1]]).expand(6000, -1))
    assert chisquare(torch.bincount(alone, minlength=3)).pvalue > 1e-3
    assert chisquare(torch.bincount(alone, minlength=3), [1800, 1800, 2400]).pvalue < 1e-6, "the comparison can fail"


def test_each_stratum_is_a_view_with_the_others_visible_and_the_same_prompt(toy):
    _, rollout = long_prompts(toy)
    views = DiffuGRPO(num_strata=2).plan(rollout, torch.Generator().manual_seed(0))
    whole = DiffuGRPO().plan(rollout, torch.Generator().manual_seed(0))
    covered = torch.zeros(whole.target.shape, dtype=torch.long).index_add(0, views.row, views.target.long())
    assert torch.equal(covered, whole.target.long())
    beyond = whole.hidden & ~whole.target
    assert torch.equal(views.hidden, views.target | beyond[views.row]), "what follows the end is masked too"
    assert torch.equal(views.prompt_hidden, whole.prompt_hidden[views.row])
    assert torch.equal(views.weight, whole.weight[views.row])
    assert views.target.any(-1).all()


@pytest.mark.parametrize(("num_strata", "sets"), [(2, [[0, 1], [0, 2], [1, 2], [0], [1], [2]]), (3, [[0], [1], [2]])])
def test_its_gradient_is_that_of_each_token_given_the_other_strata(toy, num_strata, sets):
    small = toy(order="left_to_right")
    paths = small.paths()
    rollout, weight = small.groups(paths, 2)
    masks = torch.stack([torch.zeros(3, dtype=torch.bool).index_fill(0, torch.tensor(s), True) for s in sets])
    # Two strata of three positions: each of three divisions is equally likely.
    chance = 1 / 3 if num_strata == 2 else 1.0
    num_rows = len(rollout.reward)
    hidden, row = masks.repeat(num_rows, 1), torch.arange(num_rows).repeat_interleave(len(sets))
    of_each = torch.full((len(row),), chance / 3, dtype=torch.float64)
    estimate = expected_gradient(
        small, method(num_strata=num_strata), rollout, weight, views=Views(row, hidden, hidden, of_each, row * 0)
    )
    value = sum(chance * (token_logprobs(small, paths, mask) * mask).sum(-1) for mask in masks) / 3
    torch.testing.assert_close(estimate, surrogate_gradient(small, paths, value), **EXACT)
    mean_field = surrogate_gradient(small, paths, token_logprobs(small, paths, torch.ones(3).bool()).sum(-1) / 3)
    assert distance(estimate, mean_field) > 0.1, "it is not the mean field"
    seen = {tuple(mask) for mask in method(num_strata=num_strata).plan(rollout, torch.Generator()).hidden.tolist()}
    assert seen == {tuple(mask) for mask in masks.tolist()}

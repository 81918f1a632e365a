"""Tests of mask-aware policy gradients: tokens and positions as actions, over all segments and over
some."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from tests.helpers.mean_field import Watched
from tests.helpers.messages import raises
from tests.helpers.records import make_inputs
from tests.helpers.regions import REGION
from tests.helpers.toy import distance, expected_gradient
from unmask.core.config import OptimConfig, SamplerConfig
from unmask.core.errors import ConfigError
from unmask.core.records import Needs, Rollout
from unmask.methods import METHODS
from unmask.methods.mask_aware import MaskAware
from unmask.recipes.schema import TrainRecipe
from unmask.sampling import LogprobSettings, view_logprobs
from unmask.tasks.sudoku import Sudoku
from unmask.trainer.learn import Learner
from unmask.trainer.metrics import Tally

EXACT = {"rtol": 0.0, "atol": 1e-10}
ORDER = {"order": "plackett_luce"}


def method(num_segments=0, num_sampled=9, **options):
    return MaskAware(
        **({"num_segments": num_segments, "num_sampled": num_sampled, "baseline": "leave_one_out"} | options)
    )


def estimate(small, method, views=None, rollout=None, weight=None):
    """Return the expected gradient with weights in float64, over all segments if no views are
    given."""
    if rollout is None:
        rollout, weight = small.groups(small.paths(), 2)
    if views is None:
        views = method.plan(rollout, torch.Generator())
        torch.testing.assert_close(views.weight, torch.full_like(views.weight, 1 / small.L))
        views = replace(views, weight=torch.full(views.weight.shape, 1 / small.L, dtype=torch.float64))
    return expected_gradient(small, method, rollout, weight, views=views)


def merged_gradient(small, num_segments):
    """Return two gradients, of tokens and positions of segments in the state before them, computed
    action by action."""
    paths = small.paths()
    table = small.logprobs(small.temperature)
    probability, reward = small.probability(paths).detach(), small.reward(paths)
    edges = [s * small.num_steps / num_segments for s in range(num_segments)]
    tokens, positions = [], []
    for path in paths:
        token = position = torch.zeros((), dtype=torch.float64)
        for (step, _, i, drawn), (_, same, rivals) in zip(path.draws, path.picks, strict=True):
            assert i == same
            start = max(edge for edge in edges if edge <= step)
            before = [small.V if when >= start else t for t, when in zip(path.tokens, path.when, strict=True)]
            token = token + table[small.index(before), i, drawn]
            position = position + small.pick_logprob((small.index(before), i, rivals))
        tokens.append(token)
        positions.append(position)
    credit = probability * (reward - (probability * reward).sum())
    return [small.gradient((credit * torch.stack(terms)).sum()) / small.L for terms in (tokens, positions)]


# Options


def test_the_defaults_are_the_published_settings():
    assert METHODS["mask_aware"]().model_dump() == {
        "type": "mask_aware",
        "num_segments": 32,
        "num_sampled": 12,
        "baseline": "group_mean",
        "epsilon": 0.2,
        "epsilon_high": 0.2,
        "position_epsilon": 0.2,
        "position_epsilon_high": 0.2,
        **REGION,
    }
    assert MaskAware().needs() == Needs(choice=True)
    assert not MaskAware.separable


def test_settings_that_do_not_fit_together_are_refused():
    sampler = SamplerConfig(max_completion_length=8, num_steps=4, order="plackett_luce")
    small = {"num_segments": 3, "num_sampled": 2}
    MaskAware(**small).check(sampler, 2)
    MaskAware(num_segments=0, num_sampled=4, trust_region="none").check(sampler, 2)
    with raises(ConfigError, "order random has no probability", "Set sampler.order = plackett_luce"):
        MaskAware(**small).check(sampler.model_copy(update={"order": "random"}), 2)
    with raises(ConfigError, "num_sampled = 2 of method.num_segments = 5 segments of 4 steps"):
        MaskAware(**small | {"num_segments": 5}).check(sampler, 2)
    with raises(ConfigError, "num_sampled = 5 of method.num_segments = 4 segments of 4 steps"):
        MaskAware(num_segments=0, num_sampled=5).check(sampler, 2)
    with raises(ConfigError, "Set method.trust_region to clip or none"):
        MaskAware(**small, trust_region="divergence").check(sampler, 2)
    with raises(ConfigError, "Set num_generations to 2 or more"):
        MaskAware(**small).check(sampler, 1)


# Plan


@pytest.mark.slow
def test_each_completion_uses_m_of_its_nonempty_segments_each_equally_likely(toy):
    small = toy(num_tokens=2, length=4, num_steps=4, **ORDER)
    path = small.trajectory([small.paths()[0]] * 3)
    # Four segments, three segments, and one token that was not present from the start.
    when = torch.tensor([[0, 1, 2, 3], [2, 0, 4, 1], [-1, 4, 4, 0]], dtype=torch.int32)
    rollout = Rollout(replace(path, unmask_step=when), 3, torch.zeros(3))
    seen: dict[int, dict[tuple, int]] = {0: {}, 1: {}, 2: {}}
    for seed in range(1200):
        views = method(num_sampled=2).plan(rollout, torch.Generator().manual_seed(seed))
        first = when[views.row].masked_fill(~views.target, 9).amin(-1, keepdim=True)
        assert torch.equal(views.hidden, when[views.row] >= first)
        assert torch.equal(views.target, when[views.row] == first)
        assert views.row.tolist() == [0, 0, 1, 1, 2]
        assert views.weight.tolist() == pytest.approx([2 / 4, 2 / 4, 1.5 / 4, 1.5 / 4, 1 / 4])
        for row in range(3):
            chosen = tuple(sorted(first[views.row == row].flatten().tolist()))
            seen[row][chosen] = seen[row].get(chosen, 0) + 1
    assert seen[2] == {(0,): 1200}
    for row, steps in ((0, range(4)), (1, range(3))):
        subsets = list(itertools.combinations(steps, 2))
        assert sorted(seen[row]) == subsets
        expected = 1200 / len(subsets)
        assert all(abs(count - expected) < 5 * expected**0.5 for count in seen[row].values())


# Expectation


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"num_steps": 2}, {"eos": True}, {"num_tokens": 2, "order_temperature": 2.0}, {"order": "learned"}],
    ids=str,
)
def test_with_every_step_a_segment_it_is_the_policy_gradient_of_tokens_and_positions_over_the_length(toy, options):
    small = toy(**ORDER | options)
    found = estimate(small, method())
    token, position = merged_gradient(small, small.num_steps)
    torch.testing.assert_close(found, token + position, **EXACT)
    torch.testing.assert_close(found, small.grad_j() / small.L, **EXACT)


def test_the_group_mean_shrinks_it(toy):
    small = toy(**ORDER)
    torch.testing.assert_close(estimate(small, MaskAware(num_segments=0)), 0.5 * small.grad_j() / small.L, **EXACT)


def test_without_either_ratio_it_is_not_the_gradient(toy):
    small = toy(**ORDER)
    gradient = small.grad_j() / small.L
    for part, away in zip(merged_gradient(small, small.num_steps), (0.507, 0.694), strict=True):
        assert distance(part, gradient) == pytest.approx(away, abs=0.001)
        aligned = gradient * (part * gradient).sum() / gradient.square().sum()
        assert distance(part, aligned) > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("num_sampled", [1, 2])
def test_over_the_draws_of_segments_it_equals_all_segments(toy, num_sampled):
    small = toy(**ORDER)
    rollout, weight = small.groups(small.paths(), 2)
    whole = method().plan(rollout, torch.Generator())
    step = rollout.trajectory.unmask_step[whole.row].masked_fill(~whole.target, 9).amin(-1)
    estimates = []
    # At ratio one the gradient is a sum over views, so all completions may use the same steps.
    for chosen in itertools.combinations(range(3), num_sampled):
        part = whole.take(torch.isin(step, torch.tensor(chosen)))
        part = replace(part, weight=torch.full(part.weight.shape, 3 / num_sampled / small.L, dtype=torch.float64))
        estimates.append(estimate(small, method(num_sampled=num_sampled), part, rollout, weight))
    gradient = small.grad_j() / small.L
    torch.testing.assert_close(torch.stack(estimates).mean(0), gradient, **EXACT)
    assert distance(estimates[0], gradient) > 0.3, "one choice alone is no estimate"


@pytest.mark.parametrize(("num_segments", "away"), [(1, 1.544), (2, 0.983)])
@pytest.mark.slow
def test_with_fewer_segments_the_bias_is_that_of_evaluating_later_actions_in_an_earlier_state(toy, num_segments, away):
    small = toy(**ORDER)
    found = estimate(small, method(num_segments=num_segments))
    torch.testing.assert_close(found, sum(merged_gradient(small, num_segments)), **EXACT)
    assert distance(found, small.grad_j() / small.L) == pytest.approx(away, abs=0.001)


# Loss


def test_tokens_and_positions_have_separate_ratios_and_clips_over_the_whole_completion():
    new = torch.tensor([[0.1, 0.2], [0.4, 0.0], [-0.3, 0.0]], requires_grad=True)
    choice = torch.tensor([[0.5, 0.0], [0.1, 0.0], [0.2, 0.0]], requires_grad=True)
    given = make_inputs(
        new,
        old=torch.zeros(3, 2),
        row=[4, 4, 7],
        target=[[True, True], [True, False], [True, False]],
        weight=[0.5, 0.25, 2.0],
        advantage=[2.0, 2.0, -1.0],
        new_choice=choice,
        old_choice=torch.zeros(3, 2),
    )
    bounds = {"epsilon": 0.3, "epsilon_high": 0.3, "position_epsilon": 0.1, "position_epsilon_high": 0.5}
    output = MaskAware(**bounds).loss(given)
    # Log-ratios of tokens 0.25 and -0.6, of positions 0.275 and 0.4; exp(0.275) = 1.317, exp(-0.6)
    # = 0.549.
    up, down, first, second = torch.tensor([0.25, -0.6, 0.275, 0.4]).exp()
    torch.testing.assert_close(output.loss, torch.stack([-2 * (up + first), torch.tensor(0.7) + second]))
    assert output.metrics["clip_ratio/region_mean"].tolist() == [0.0, 1.0]
    assert output.metrics["clip_ratio/position_mean"].tolist() == [0.0, 0.0]
    torch.testing.assert_close(output.metrics["policy/position_ratio_max"], torch.stack([first, second]))
    output.loss.sum().backward()
    assert (new.grad != 0).tolist() == [[True, True], [True, True], [False, False]]
    tight = MaskAware(**bounds | {"position_epsilon_high": 0.1}).loss(given)
    torch.testing.assert_close(tight.loss[0], -2 * (up + 1.1))
    assert not any(values.requires_grad for values in tight.metrics.values())


# The trainer's own update


def update(small, method, rollout, views_per_forward, learning_rate):
    """Run three updates by the trainer, and return the observed denoiser and the metrics."""
    recipe = TrainRecipe(
        task=Sudoku(),
        model="none",
        method=method,
        sampler=SamplerConfig(
            max_completion_length=small.L, num_steps=small.num_steps, temperature=small.temperature, **ORDER
        ),
        optim=OptimConfig(max_grad_norm=1e9, learning_rate=learning_rate, warmup_steps=0, lr_schedule="constant"),
        num_generations=rollout.group_size,
        num_iterations=3,
        views_per_forward=views_per_forward,
    )
    accelerator, tally, model = Accelerator(), Tally(), Watched(small.denoiser)
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    Learner(accelerator, model, optimizer, None, recipe).update(rollout, 0, torch.Generator().manual_seed(3), tally)
    return model, tally.reduce(accelerator)


def drawn(small):
    paths = small.paths()
    rows = torch.randint(len(paths), (8,), generator=torch.Generator().manual_seed(1))
    return Rollout(small.trajectory(paths).rows(rows), 4, small.reward(paths)[rows])


@pytest.mark.parametrize("views_per_forward", [1, 5, 1000])
def test_two_passes_give_the_update_of_one_graph_with_the_memory_of_one_chunk(toy, views_per_forward):
    small = toy(**ORDER)
    start, by_hand, chosen = copy.deepcopy(small), copy.deepcopy(small), method(num_sampled=2)
    rollout = drawn(small)
    model, _ = update(small, chosen, rollout, views_per_forward, 1.0)
    rows = [event for event in model.events if event != "backward"]
    assert max(rows) <= views_per_forward
    assert sum(rows) == 3 * 16

    views = chosen.plan(rollout, torch.Generator().manual_seed(3))
    old = view_logprobs(
        start.denoiser, rollout.trajectory, views, LogprobSettings.of(rollout.trajectory, "sampling"), choice=True
    )
    for _ in range(3):
        new = view_logprobs(
            by_hand.denoiser, rollout.trajectory, views, LogprobSettings.of(rollout.trajectory, "sampling"), choice=True
        )
        given = make_inputs(
            new.logprob,
            old=old.logprob.detach(),
            row=views.row,
            target=views.target,
            weight=views.weight,
            advantage=chosen.advantage(rollout)[views.row],
            new_choice=new.choice,
            old_choice=old.choice.detach(),
        )
        gradient = by_hand.gradient(chosen.loss(given).loss.sum() / 8)
        with torch.no_grad():
            by_hand.denoiser.table -= gradient
    assert (small.denoiser.table - start.denoiser.table).norm() > 1e-2
    torch.testing.assert_close(small.denoiser.table, by_hand.denoiser.table, rtol=0, atol=1e-12)


def test_both_ratios_are_one_until_the_policy_moves(toy):
    small = toy(**ORDER)
    rollout = drawn(small)
    _, metrics = update(small, method(num_sampled=2), rollout, 5, 1e-13)
    assert metrics["policy/ratio_max"] == pytest.approx(1.0, abs=1e-6)
    assert metrics["policy/position_ratio_max"] == pytest.approx(1.0, abs=1e-6)
    _, metrics = update(small, method(num_sampled=2), rollout, 5, 5.0)
    assert min(metrics["policy/ratio_max"], metrics["policy/position_ratio_max"]) > 1.01

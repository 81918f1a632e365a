"""Tests of StepMerge, TraceRL and CJ-GRPO: the segments, and the bias of evaluating a segment in
one state."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.helpers.messages import raises
from tests.helpers.records import make_inputs
from tests.helpers.regions import REGION
from tests.helpers.toy import distance, expected_gradient, pinned
from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError
from unmask.core.records import Needs, Rollout
from unmask.methods import METHODS
from unmask.methods.step_merge import CJGRPO, StepMerge, TraceRL

EXACT = {"rtol": 0.0, "atol": 1e-10}


def method(num_segments, **options):
    return StepMerge(**({"num_segments": num_segments, "beta": 0.0, "baseline": "leave_one_out"} | options))


def estimate(small, method):
    """Return the expected gradient with weights 1 / L in float64; in the plan's float32, 1/3 is off
    by 1e-8."""
    rollout, weight = small.groups(small.paths(), 2)
    views = method.plan(rollout, torch.Generator())
    torch.testing.assert_close(views.weight, torch.full_like(views.weight, 1 / small.L))
    exact = torch.full(views.weight.shape, 1 / small.L, dtype=torch.float64)
    return expected_gradient(small, method, rollout, weight, views=replace(views, weight=exact))


def merged_gradient(small, num_segments):
    """Compute Σ_τ p(τ) (r - E r) Σ_i ∇ log p(x_i | state before i's segment) / L, token by token."""
    paths = small.paths()
    table = small.logprobs(small.temperature)
    probability, reward = small.probability(paths).detach(), small.reward(paths)
    edges = [(s * small.num_steps) / num_segments for s in range(num_segments + 1)]
    terms = []
    for path in paths:
        total = torch.zeros((), dtype=torch.float64)
        for step, _, i, token in path.draws:
            start = max(edge for edge in edges if edge <= step)
            before = [small.V if when >= start else t for t, when in zip(path.tokens, path.when, strict=True)]
            total = total + table[small.index(before), i, token]
        terms.append(total)
    mean = (probability * reward).sum()
    return small.gradient((probability * (reward - mean) * torch.stack(terms)).sum()) / small.L


# Options


def test_the_defaults_are_the_published_settings():
    common = {
        **REGION,
    }
    d2 = {
        "num_segments": 16,
        "baseline": "group_mean",
        "epsilon": 0.5,
        "epsilon_high": 0.5,
        "beta": 0.04,
        "kl_to": "reference",
    }
    trace = {
        "num_segments": 64,
        "baseline": "z_score",
        "epsilon": 0.2,
        "epsilon_high": 0.2,
        "beta": 0.01,
        "kl_to": "old",
    }
    assert METHODS["step_merge"]().model_dump() == {"type": "step_merge"} | common | d2
    assert METHODS["trace_rl"]().model_dump() == {"type": "trace_rl"} | common | trace
    assert METHODS["cj_grpo"]().model_dump() == {"type": "cj_grpo"} | common | d2 | {"num_segments": 0}


def test_only_a_kl_to_the_reference_needs_the_reference():
    assert StepMerge().needs() == CJGRPO().needs() == Needs(reference="logprob", choice=True)
    assert StepMerge(beta=0.0).needs() == TraceRL().needs() == Needs(choice=True)


def test_more_segments_than_steps_are_refused():
    sampler = SamplerConfig(max_completion_length=8, num_steps=4)
    StepMerge(num_segments=4).check(sampler, 2)
    CJGRPO().check(sampler, 2)
    with raises(ConfigError, "num_segments = 5 is more than the 4 denoising steps", "0 makes every step"):
        StepMerge(num_segments=5).check(sampler, 2)
    with raises(ConfigError, "Set num_generations to 2 or more"):
        StepMerge(num_segments=4).check(sampler, 1)


# Plan


def test_the_tokens_of_a_segment_are_evaluated_in_the_state_before_its_first_step(toy):
    small = toy(length=6, num_tokens=2, num_steps=5)
    path = small.trajectory([small.paths()[0]] * 2)
    # Steps 0, 1, 2 and 3, 4; the second row began with two tokens and ended after its second step.
    when = torch.tensor([[0, 1, 2, 3, 4, 0], [-1, 0, 1, 5, 5, -1]], dtype=torch.int32)
    views = method(2).plan(Rollout(replace(path, unmask_step=when), 2, torch.zeros(2)), torch.Generator())
    assert views.row.tolist() == [0, 0, 1]
    assert views.hidden.int().tolist() == [[1] * 6, [0, 0, 0, 1, 1, 0], [0, 1, 1, 1, 1, 0]]
    assert views.target.int().tolist() == [[1, 1, 1, 0, 0, 1], [0, 0, 0, 1, 1, 0], [0, 1, 1, 0, 0, 0]]
    assert views.weight.tolist() == pytest.approx([1 / 6] * 3)


@pytest.mark.parametrize("num_segments", [0, 1, 2, 3, 4])
def test_every_sampled_token_is_a_target_once(toy, num_segments):
    small = toy(length=4, num_tokens=2, num_steps=4, eos=True)
    rollout = Rollout(small.trajectory(small.paths()), 2, torch.zeros(len(small.paths())))
    views = method(num_segments).plan(rollout, torch.Generator())
    times = torch.zeros_like(rollout.trajectory.tokens).index_add(0, views.row, views.target.long())
    assert torch.equal(times, (rollout.trajectory.unmask_step < 4).long())
    assert (views.hidden | ~views.target).all()


# Expectation


@pytest.mark.parametrize("num_segments", [0, 3])
@pytest.mark.parametrize("options", [{}, {"order": "left_to_right"}, {"order": "entropy"}, {"eos": True}], ids=str)
def test_with_every_step_a_segment_it_is_the_policy_gradient_over_the_length(toy, num_segments, options):
    small = toy(**options)
    paths = small.paths()
    reward = small.reward(paths)
    mean = float((small.probability(paths).detach() * reward).sum())
    all_steps = pinned(small, paths, lambda b, k: float(reward[b]) - mean)
    found = estimate(small, method(num_segments))
    torch.testing.assert_close(found, all_steps / small.L, **EXACT)
    torch.testing.assert_close(found, small.grad_j() / small.L, **EXACT)


@pytest.mark.slow
@pytest.mark.parametrize(("order", "num_steps"), [("plackett_luce", 3), ("plackett_luce", 2), ("learned", 2)])
def test_if_positions_are_drawn_it_includes_their_choice(toy, order, num_steps):
    small = toy(order=order, num_steps=num_steps)
    found = estimate(small, method(0))
    torch.testing.assert_close(found, small.grad_j() / small.L, **EXACT)
    paths = small.paths()
    reward = small.reward(paths)
    mean = float((small.probability(paths).detach() * reward).sum())
    tokens_alone = pinned(small, paths, lambda b, k: float(reward[b]) - mean) / small.L
    assert distance(tokens_alone, found) > 0.05


def test_the_whole_replay_is_a_method_of_the_table(toy):
    small = toy()
    torch.testing.assert_close(estimate(small, CJGRPO(beta=0.0)), 0.5 * small.grad_j() / small.L, **EXACT)


@pytest.mark.parametrize("options", [{}, {"order": "left_to_right"}], ids=str)
def test_with_one_segment_it_is_the_mean_field_gradient_of_diffu_grpo_without_prompt_noise(toy, options):
    small = toy(**options)
    paths = small.paths()
    first = small.logprobs(small.temperature)[small.index([small.V] * small.L)]
    likelihood = torch.stack([first[torch.arange(small.L), torch.tensor(path.tokens)].mean() for path in paths])
    probability, reward = small.probability(paths).detach(), small.reward(paths)
    expected = small.gradient((probability * (reward - (probability * reward).sum()) * likelihood).sum())
    found = estimate(small, method(1))
    torch.testing.assert_close(found, expected, **EXACT)
    assert distance(found, small.grad_j() / small.L) > 0.5


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, (2.414, 1.759, 0)), ({"eos": True}, (2.304, 1.880, 0)), ({"order": "left_to_right"}, (0.603, 0.126, 0))],
    ids=str,
)
def test_the_bias_of_evaluating_later_tokens_in_an_earlier_state_shrinks_with_the_segments(toy, options, expected):
    small = toy(**options)
    gradient = small.grad_j() / small.L
    away = []
    for num_segments in (1, 2, 3):
        found = estimate(small, method(num_segments))
        torch.testing.assert_close(found, merged_gradient(small, num_segments), **EXACT)
        away.append(distance(found, gradient))
    assert away == pytest.approx(expected, abs=0.001)


def test_dividing_by_the_deviation_gives_the_gradient_of_beating_another_completion(toy):
    # In a group of two, (r - mean) / s is the sign of the difference, up to the floor of 1e-4.
    small = toy()
    paths = small.paths()
    reward, probability = small.reward(paths), small.probability(paths).detach()
    half = (reward.unsqueeze(1) - reward.unsqueeze(0)) / 2
    wins = (probability * half / (half.abs() + 1e-4)).sum(-1)
    found = estimate(small, TraceRL(num_segments=0))
    torch.testing.assert_close(found, pinned(small, paths, lambda b, k: wins[b]) / small.L, **EXACT)
    gradient = small.grad_j()
    aligned = gradient * (found * gradient).sum() / gradient.square().sum()
    assert distance(found, aligned) == pytest.approx(0.375, abs=0.001)


# Loss


def inputs(new, old, reference):
    target = [[True, True, False]]
    return make_inputs(new, old=old, reference=reference, target=target, weight=0.5, advantage=2.0)


@pytest.mark.parametrize(("kl_to", "gap"), [("reference", (0.7, -0.3)), ("old", (-0.1, -0.2))])
def test_the_kl_is_to_the_reference_or_to_the_old_policy_token_by_token(kl_to, gap):
    given = inputs([[-1.0, -0.4, 5.0]], [[-1.1, -0.6, 5.0]], [[-0.3, -0.7, 5.0]])
    output = StepMerge(beta=0.3, kl_to=kl_to).loss(given)
    ratio, d = torch.tensor([0.1, 0.2]).exp(), torch.tensor(gap)
    expected = 0.5 * (-2 * ratio + 0.3 * (d.exp() - d - 1)).sum()
    torch.testing.assert_close(output.loss, expected.view(1))
    torch.testing.assert_close(output.metrics["kl"], d.exp() - d - 1)


def test_a_kl_to_the_old_policy_has_no_effect_at_the_first_update():
    given = inputs([[-1.0, -0.4, 0.0]], [[-1.0, -0.4, 0.0]], [[-0.3, -0.7, 0.0]])
    TraceRL(beta=5.0).loss(given).loss.sum().backward()
    assert given.new.grad.tolist() == [[-1.0, -1.0, 0.0]]

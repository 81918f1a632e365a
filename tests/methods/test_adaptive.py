"""The gradient that the trainer follows under adaptive schedules, against a denoiser small enough to
enumerate: exact where the schedule looks at the state alone, and biased by exactly the term of the
choice where it looks at the drawn tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy.stats import chisquare

from tests.helpers.position_choice import dropped_gradient
from tests.helpers.toy import Toy, distance, expected_gradient, merged
from tests.helpers.toy_samples import sampled_counts, seeds_by_ranking
from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError
from unmask.functional.selection import selection_noise
from unmask.methods import METHODS
from unmask.methods.egspo import EGSPO

EXACT = {"rtol": 0.0, "atol": 1e-10}
SCHEDULES = ["threshold=0.6", "factor=1.1", "entropy_bound=0.6"]
STATE_ORDERS = ["max_probability", "entropy", "margin", "left_to_right", "random"]


def method(**options: Any) -> EGSPO:
    return EGSPO(**({"step_choice": "all", "beta": 0.0, "baseline": "leave_one_out"} | options))


def scaled(small: Toy, *arguments: Any, **options: Any) -> torch.Tensor:
    """Return the expectation of an estimator in the scale of ∇J: without its factor 1 / L, which is
    float32."""
    return expected_gradient(small, *arguments, **options) / torch.tensor(1 / small.L).double()


def gradient_of(small: Toy, chosen: EGSPO, **options: Any) -> torch.Tensor:
    """Return the expectation of the estimator over all groups of two, in the scale of ∇J."""
    rollout, weight = small.groups(small.paths(), 2, stepwise=chosen.stepwise_weight > 0)
    return scaled(small, chosen, rollout, weight, **options)


# The enumeration


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("order", [*STATE_ORDERS, "low_confidence"])
def test_the_probabilities_of_all_paths_sum_to_one_and_some_are_short(toy, schedule, order):
    small = toy(schedule=schedule, order=order)
    paths = small.paths()
    assert float(small.probability(paths).detach().sum()) == pytest.approx(1, abs=1e-12)
    assert min(max(path.when) for path in paths) < small.num_steps - 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"schedule": "threshold=0.6", "order": "low_confidence"},
        {"schedule": "factor=1.1", "order": "max_probability"},
        {"schedule": "entropy_bound=0.6", "order": "random"},
        {"schedule": "entropy_bound=0.6", "order": "low_confidence", "num_steps": 2},
        {"schedule": "threshold=0.6", "order": "max_probability", "eos": True},
    ],
    ids=str,
)
def test_the_sampler_takes_each_path_with_its_enumerated_probability(toy, options):
    small = toy(**options)
    paths, probability = merged(small)
    counts, path, index = sampled_counts(small, 10_000, paths)
    rare = probability * 10_000 < 5
    observed = torch.cat([counts[~rare], counts[rare].sum().view(1)])
    expected = torch.cat([probability[~rare], probability[rare].sum().view(1)]) * 10_000
    is_possible = expected > 0
    assert chisquare(observed[is_possible], expected[is_possible], sum_check=False).pvalue > 1e-3
    torch.testing.assert_close(path.logprob, small.trajectory(paths).logprob[index])
    # The fixed schedule takes other paths.
    others = {p.seen for p in toy(**options | {"schedule": "fixed"}).paths()}
    assert any(tuple(row) not in others for row in torch.cat([path.tokens, path.unmask_step], dim=1).tolist())


# Exact under a criterion of the state


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("order", STATE_ORDERS)
@pytest.mark.parametrize("stepwise_weight", [0.0, 0.5])
def test_all_steps_with_leave_one_out_estimate_the_gradient_of_the_expected_reward(
    toy, schedule, order, stepwise_weight
):
    small = toy(schedule=schedule, order=order)
    gradient = small.grad_j()
    torch.testing.assert_close(gradient_of(small, method(stepwise_weight=stepwise_weight)), gradient, **EXACT)
    wrong = gradient_of(small, method(stepwise_weight=stepwise_weight), logprob_temperature=1.0)
    assert distance(wrong, gradient) > 0.1, "the check can fail"


def test_rows_that_end_early_and_a_limit_below_one_position_a_step_change_nothing(toy):
    for options in ({"eos": True}, {"num_steps": 2}):
        small = toy(schedule="threshold=0.6", order="max_probability", **options)
        torch.testing.assert_close(gradient_of(small, method()), small.grad_j(), **EXACT)


@pytest.mark.parametrize("name", ["cj_grpo", "step_merge"])
def test_replay_of_every_step_estimates_the_gradient(toy, name):
    small = toy(schedule="entropy_bound=0.6", order="entropy")
    chosen = METHODS[name](num_segments=0, baseline="leave_one_out", beta=0.0)
    rollout, weight = small.groups(small.paths(), 2)
    exact = scaled(small, chosen, rollout, weight)
    torch.testing.assert_close(exact, small.grad_j(), **EXACT)
    merged_steps = METHODS["step_merge"](num_segments=1, baseline="leave_one_out", beta=0.0)
    assert distance(scaled(small, merged_steps, rollout, weight), small.grad_j()) > 0.1


def test_segments_divide_the_steps_that_a_completion_took(toy):
    small = toy(schedule="threshold=0.6", order="max_probability")
    rollout, _ = small.groups(small.paths(), 1)
    views = METHODS["step_merge"](num_segments=2).plan(rollout, torch.Generator())
    counts = torch.bincount(views.row, minlength=len(rollout.reward))
    assert torch.equal(counts, rollout.trajectory.steps_taken.clamp(max=2))


@pytest.mark.slow
@pytest.mark.parametrize("num_selected", [1, 2])
def test_a_uniform_choice_of_steps_is_unbiased_because_each_row_has_its_own_weight(toy, num_selected):
    small = toy(schedule="threshold=0.6", order="max_probability")
    chosen = method(step_choice="uniform", num_selected=num_selected)
    paths = small.paths()
    estimates, constant = [], []
    for seed in seeds_by_ranking(3):
        rollout, weight = small.groups(paths, 2, seed=seed)
        estimates.append(scaled(small, chosen, rollout, weight))
        views = chosen.plan(rollout, torch.Generator())
        same = replace(views, weight=torch.full_like(views.weight, small.num_steps / (num_selected * small.L)))
        constant.append(scaled(small, chosen, rollout, weight, views=same))
    # Rankings of the noise are equally likely, and so are those of the steps that a row has.
    assert len(selection_noise(torch.tensor([0]), 3)[0]) == 3
    # The weights are float32.
    torch.testing.assert_close(torch.stack(estimates).mean(0), small.grad_j(), rtol=0, atol=1e-7)
    assert distance(torch.stack(constant).mean(0), small.grad_j()) > 0.1, "the constant of the fixed schedule is biased"


def test_sampled_steps_have_the_weight_of_one_step_on_average(toy):
    small = toy(schedule="entropy_bound=0.6", order="entropy")
    chosen = method(step_choice="entropy_sampled", num_selected=1)
    paths, grid = small.paths(), 100
    noise = selection_noise(torch.arange(20_000), 3)[:, 0]
    # One seed in each of many equal parts of the single draw u that systematic sampling uses.
    seeds = [int(((noise * grid).floor() == part).nonzero()[0]) for part in range(grid)]
    total = torch.zeros(len(paths), small.num_steps)
    for seed in seeds:
        path = small.groups(paths, 1, seed=seed)[0]
        views = chosen.plan(path, torch.Generator())
        total.index_put_((views.row, path.trajectory.shown_step(views)), views.weight / grid, accumulate=True)
    is_taken = torch.arange(small.num_steps) < path.trajectory.steps_taken.unsqueeze(-1)
    assert (total[is_taken] * small.L - 1).abs().max() < 0.15
    assert (total[~is_taken] == 0).all()


# Biased under a criterion of the drawn token


@pytest.mark.parametrize("bound", [0.6, 0.8])
def test_under_low_confidence_the_estimate_lacks_exactly_the_gradient_of_the_choice(toy, bound):
    small = toy(schedule=f"threshold={bound}", order="low_confidence")
    paths, probability = merged(small)
    rollout, _ = small.groups([replace(path, proposals=()) for path in paths], 2)
    members = torch.cartesian_prod(torch.arange(len(paths)), torch.arange(len(paths)))
    estimate = scaled(small, method(), rollout, probability[members].prod(-1))

    dropped = dropped_gradient(small, paths, probability, bound)
    gradient = small.grad_j()
    torch.testing.assert_close(estimate + dropped, gradient, **EXACT)
    assert dropped.norm() > 0.1 * gradient.norm(), "the term is not negligible"


# Settings


def test_just_grpo_refuses_a_schedule_that_commits_several_tokens_a_step():
    sampler = SamplerConfig(max_completion_length=4, num_steps=4, order="left_to_right", schedule="threshold=0.9")
    with pytest.raises(ConfigError, match=r"Set sampler\.schedule = fixed\."):
        METHODS["just_grpo"]().check(sampler, 2)

"""Trajectory balance on the enumerable toy: on its own samples it follows the KL-regularised reward, and its minimum is
the tilted reference whoever sampled the paths."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.any_order import another
from tests.helpers.mean_field import OneUpdate
from tests.helpers.messages import raises
from tests.helpers.records import make_inputs
from tests.helpers.toy import distance
from tests.helpers.values import arbitrary, tilted, true_values, with_values
from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError
from unmask.core.records import LossInputs, Needs
from unmask.methods import METHODS
from unmask.methods.trajectory_balance import TrajectoryBalance
from unmask.sampling import LogprobSettings, view_logprobs
from unmask.trainer.reference import FrozenCopy

EXACT = {"rtol": 0.0, "atol": 1e-10}
ALPHA = 0.3


def test_the_defaults():
    expected = {"type": "trajectory_balance", "alpha": 0.04, "num_segments": 0, "subpath_steps": 0}
    assert METHODS["trajectory_balance"]().model_dump() == expected
    assert TrajectoryBalance().needs() == Needs(reference="logprob")
    assert not TrajectoryBalance.separable
    assert not TrajectoryBalance().by_completion
    assert TrajectoryBalance(subpath_steps=1).needs() == Needs(reference="logprob", group=False, critic=True)
    sampler = SamplerConfig(max_completion_length=8, num_steps=4)
    TrajectoryBalance(subpath_steps=4).check(sampler, 1)
    with raises(ConfigError, "num_segments = 5 is more than the 4 denoising steps"):
        TrajectoryBalance(num_segments=5).check(sampler, 2)
    with raises(ConfigError, "subpath_steps = 5 is more than the 4 denoising steps"):
        TrajectoryBalance(subpath_steps=5).check(sampler, 2)
    with raises(ConfigError, "num_segments = 2 merges steps"):
        TrajectoryBalance(num_segments=2, subpath_steps=2).check(sampler, 2)


def scored(small, reference, method, sampler=None, table=None):
    """Return the output of the loss for the groups of the toy `sampler`, by default `small` itself, with its rollout, its
    views and the probabilities of the groups. The values of a critic are those of the `table` of states."""
    sampler = sampler or small
    rollout, probability = sampler.groups(sampler.paths(), 1 if table is not None else 2, dtype=torch.float64)
    if table is not None:
        rollout = with_values(sampler, method, rollout, table)
    path, views, settings = rollout.trajectory, method.plan(rollout, torch.Generator()), LogprobSettings(0.7, 0, 1.0)
    new = view_logprobs(small.denoiser, path, views, settings).logprob
    with torch.no_grad():
        other = view_logprobs(reference.denoiser, path, views, settings).logprob
    advantage = method.advantage(rollout)
    advantage = advantage[views.row] if table is None else advantage[views.row, views.slot]
    given = LossInputs(
        new,
        new.detach(),
        other,
        None,
        views.row,
        views.target,
        views.weight,
        advantage,
        views.slot,
        group_size=rollout.group_size,
    )
    return method.loss(given), rollout, views, probability


def estimate(small, reference, method, sampler=None, table=None):
    """Return L times the expected gradient; see `scored`."""
    output, rollout, views, probability = scored(small, reference, method, sampler, table)
    by_completion = output.loss.view(len(rollout.reward), -1).sum(1)
    total = (probability.repeat_interleave(rollout.group_size) * by_completion).sum() / rollout.group_size
    return -small.gradient(total) / views.weight[0].double()


def regularised_gradient(small, reference, alpha):
    """Return ∇ (E[r] - α KL(π || reference)) of whole paths."""
    paths = small.paths()
    p, q = small.probability(paths), reference.probability(paths).detach()
    return small.gradient((p * small.reward(paths)).sum() - alpha * (p * (p / q).log()).sum())


@pytest.mark.parametrize(
    "options",
    [{"num_steps": 3}, {"num_steps": 2}, {"order": "left_to_right"}, {"eos": True, "order": "left_to_right"}],
    ids=str,
)
def test_on_its_own_samples_it_follows_the_reward_less_the_kl_of_whole_paths(toy, table_denoiser, options):
    small = toy(num_tokens=2, **options)
    reference = another(small, table_denoiser)
    reference.eos = small.eos
    expected = regularised_gradient(small, reference, ALPHA)
    torch.testing.assert_close(estimate(small, reference, TrajectoryBalance(alpha=ALPHA)), expected, **EXACT)
    assert distance(expected, small.grad_j()) > 0.1, "the KL matters"


def test_merged_segments_are_another_objective(toy, table_denoiser):
    small = toy(num_tokens=2, num_steps=3)
    reference = another(small, table_denoiser)
    merged = estimate(small, reference, TrajectoryBalance(alpha=ALPHA, num_segments=1))
    assert distance(merged, regularised_gradient(small, reference, ALPHA)) > 0.05


def test_the_tilted_reference_is_its_minimum_whoever_sampled_the_paths(toy, table_denoiser):
    # One step and one position: a table can hold the tilted distribution itself.
    small = toy(num_tokens=3, length=1, num_steps=1)
    reference, stranger = another(small, table_denoiser), another(small, table_denoiser, seed=9)
    tilted = reference.logprobs(0.7).detach()[small.V, 0] + small.reward_table / ALPHA
    with torch.no_grad():
        small.denoiser.table[small.V, 0, :3] = 0.7 * (tilted + 5.0)
    for sampler in (small, stranger, reference):
        gradient = estimate(small, reference, TrajectoryBalance(alpha=ALPHA), sampler)
        assert gradient.norm() < 1e-12
    # At another temperature of the target it is not the minimum.
    assert estimate(small, reference, TrajectoryBalance(alpha=2 * ALPHA), stranger).norm() > 1e-3


# Sub-paths


@pytest.mark.parametrize("order", ["random", "left_to_right"])
@pytest.mark.parametrize("subpath_steps", [1, 2, 3])
def test_with_its_soft_values_every_sub_path_follows_the_reward_less_the_kl(toy, table_denoiser, order, subpath_steps):
    small = toy(num_tokens=2, order=order)
    reference, method = another(small, table_denoiser), TrajectoryBalance(alpha=ALPHA, subpath_steps=subpath_steps)
    expected = regularised_gradient(small, reference, ALPHA)
    soft = true_values(small, reference, ALPHA)
    torch.testing.assert_close(estimate(small, reference, method, table=soft), expected, **EXACT)
    # With other values it does so only if the sub-path is the whole path: its start is no action.
    wrong = estimate(small, reference, method, table=arbitrary(small))
    if subpath_steps == small.num_steps:
        torch.testing.assert_close(wrong, expected, **EXACT)
    else:
        assert distance(wrong, expected) > 0.1


@pytest.mark.parametrize("order", ["random", "left_to_right"])
@pytest.mark.parametrize("subpath_steps", [1, 2, 3])
def test_at_the_tilted_policy_and_its_soft_values_every_sub_path_is_consistent(
    toy, table_denoiser, order, subpath_steps
):
    small = toy(num_tokens=2, order=order)
    reference, stranger = another(small, table_denoiser), another(small, table_denoiser, seed=9)
    soft, method = tilted(small, reference, ALPHA), TrajectoryBalance(alpha=ALPHA, subpath_steps=subpath_steps)
    for sampler in (small, stranger):
        output, *_ = scored(small, reference, method, sampler, soft)
        assert output.metrics["balance/gap"].max() < 1e-10
        assert output.value_error.abs().max() < 1e-10
        assert estimate(small, reference, method, sampler, soft).norm() < 1e-10
    # Neither another policy with these values nor this policy with others is consistent.
    for policy, table, sampler in ((stranger, soft, small), (small, soft + 0.5 * arbitrary(small), stranger)):
        output, *_ = scored(policy, reference, method, sampler, table)
        assert output.metrics["balance/gap"].max() > 0.05
        assert estimate(policy, reference, method, sampler, table).norm() > 1e-3


def test_the_values_of_a_random_order_need_a_reference_of_one_joint_distribution(toy, table_denoiser):
    # The negative control of `tilted`: its conditionals may not depend on the order.
    small = toy(num_tokens=2)
    reference = another(small, table_denoiser)
    soft = tilted(small, reference, ALPHA)
    other = another(small, table_denoiser, seed=4)
    output, *_ = scored(small, other, TrajectoryBalance(alpha=ALPHA, subpath_steps=1), small, soft)
    assert output.metrics["balance/gap"].max() > 0.05


@pytest.mark.parametrize("subpath_steps", [1, 2, 3])
def test_the_error_of_a_value_is_the_soft_return_less_the_value(toy, table_denoiser, subpath_steps):
    small = toy(num_tokens=2, eos=True, order="left_to_right")
    reference, method = another(small, table_denoiser), TrajectoryBalance(alpha=ALPHA, subpath_steps=subpath_steps)
    output, rollout, views, _ = scored(small, reference, method, table=arbitrary(small))
    path, paths = rollout.trajectory, small.paths()
    assert (method.critic_steps(rollout) < 0).any() == (subpath_steps < 3), "some paths end early"
    log_ratio = (small.logprobs(0.7) - reference.logprobs(0.7)).detach()
    for view, error in enumerate(output.value_error.tolist()):
        row, slot = int(views.row[view]), int(views.slot[view])
        first = slot * subpath_steps
        to_come = sum(float(log_ratio[draw[1:]]) for draw in paths[row].draws if draw[0] >= first)
        expected = float(rollout.reward[row]) - ALPHA * to_come - float(rollout.value[row, slot])
        assert error == pytest.approx(expected, abs=1e-10)
    assert len(output.loss) == int((method.critic_steps(rollout) >= 0).sum())
    assert torch.equal(views.slot, path.shown_step(views) // subpath_steps)


def test_the_loss_of_sub_paths_is_a_sum_over_completions_and_its_returns_are_those_of_the_old_policy():
    generator, method = torch.Generator().manual_seed(0), TrajectoryBalance(alpha=ALPHA, subpath_steps=1)
    new, old, reference = torch.randn(3, 4, 5, generator=generator).unbind()
    parts = {"row": [0, 0, 1, 1], "slot": torch.tensor([0, 1, 0, 1]), "advantage": [0.1, 0.2, -0.3, 0.5]}

    def outcome(first, last):
        given = {name: value[first:last] for name, value in parts.items()}
        tables = {"old": old[first:last], "reference": reference[first:last]}
        return method.loss(make_inputs(new[first:last], **given, **tables))

    whole, one, other = outcome(0, 4), outcome(0, 2), outcome(2, 4)
    assert method.by_completion
    torch.testing.assert_close(one.loss.sum() + other.loss.sum(), whole.loss.sum())
    torch.testing.assert_close(torch.cat([one.value_error, other.value_error]), whole.value_error)
    gained = torch.tensor(parts["advantage"]) - ALPHA * (old - reference).sum(-1)
    expected = torch.stack([gained[0] + gained[1], gained[1], gained[2] + gained[3], gained[3]])
    torch.testing.assert_close(whole.value_error, expected)


def test_the_others_of_the_group_stand_for_the_normaliser():
    new, reference = [[-1.0], [-2.0], [-4.0], [-1.0]], [[-2.0], [-2.0], [-2.0], [-1.0]]
    given = make_inputs(new, reference=reference, advantage=[0.3, 0.0, 0.3, 0.0], group_size=2)
    output = TrajectoryBalance(alpha=0.5).loss(given)
    # Log-ratios 1, 0 and -2, 0; minus those of the other, minus 0.6 or 0.
    gap = torch.tensor([0.4, -1.0, -2.6, 2.0])
    torch.testing.assert_close(output.loss, 0.25 * (gap.square() - torch.tensor([0.6, 0.0, 0.6, 0.0]).square()))
    torch.testing.assert_close(output.metrics["balance/gap"], 0.5 * gap.abs())
    output.loss.sum().backward()
    torch.testing.assert_close(given.new.grad.squeeze(-1), 0.5 * gap)


def test_two_passes_give_the_gradient_of_one(lively, tmp_path, monkeypatch):
    update = OneUpdate(lively, tmp_path)
    method = TrajectoryBalance(alpha=0.5)
    monkeypatch.setattr(
        "tests.helpers.mean_field.Learner",
        lambda accelerator, model, optimizer, _, recipe: _learner(accelerator, model, optimizer, recipe, lively),
    )
    metrics, whole = update(method, "num_iterations=1")
    _, chunks = update(method, "num_iterations=1", "views_per_forward=5")
    assert whole.norm() > 1e-5
    assert distance(chunks, whole) < 1e-5
    # The reference is the policy itself, so the log-ratio is 0 and the gap the advantage over alpha.
    assert metrics["balance/log_ratio"] == pytest.approx(0.0, abs=1e-5)
    assert metrics["balance/gap"] > 0


def _learner(accelerator, model, optimizer, recipe, denoiser):
    from unmask.trainer.learn import Learner

    return Learner(accelerator, model, optimizer, FrozenCopy.of(denoiser, "cpu"), recipe)

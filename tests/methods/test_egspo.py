"""Tests of EGSPO by hand: needs, views, advantages and loss. Its expectation is in test_exactness."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from tests.helpers.messages import raises
from tests.helpers.records import make_inputs, make_trajectory
from tests.helpers.regions import REGION
from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError
from unmask.core.records import Needs, Rollout
from unmask.methods import METHODS
from unmask.methods.egspo import EGSPO, EGSPOSA
from unmask.recipes.load import load_recipe

MASK, EOS = 1, 2
T = 4


@pytest.fixture
def rollout():
    """Return two completions of six positions: the first commits [2, 2, 1, 1] in four steps, the
    second ends after two."""
    trajectory = make_trajectory(
        [[3, 4, 5, 6, 7, 8], [3, 4, EOS, EOS, EOS, EOS]],
        prompt_ids=torch.tensor([[0, 5], [5, 6]]),
        prompt_mask=torch.tensor([[False, True], [True, True]]),
        unmask_step=[[1, 0, 0, 2, 1, 3], [0, 1, 1, 0, T, T]],
        entropy=torch.tensor([[0.5, 0.1, 0.2, 0.9, 0.5, 0.7], [0.1, 0.3, 0.4, 0.1, 0.0, 0.0]]),
        seed=torch.tensor([11, 12]),
        sampler=SamplerConfig(max_completion_length=6, num_steps=T, order="random"),
        mask_id=MASK,
        eos_id=EOS,
    )
    return Rollout(trajectory, 2, torch.tensor([1.0, 0.25]))


def inputs(new, old, advantage, **changes):
    """Return the inputs of a loss with weight 1/2."""
    return make_inputs(new, old=old, advantage=advantage, **{"weight": 0.5} | changes)


# Options


def test_the_defaults_are_the_published_settings():
    published = {
        "num_selected": 8,
        "step_choice": "entropy_topk",
        "epsilon": 0.2,
        "epsilon_high": 0.5,
        "beta": 0.04,
        "baseline": "group_mean",
        "kl": "k3",
        # Options beyond the paper are off.
        "choice_temperature": 1.0,
        "gain": "fixed",
        "credit": "return",
        "value_steps": 0,
        "choice_term": True,
        **REGION,
    }
    assert METHODS["egspo"]().model_dump() == published | {"type": "egspo", "stepwise_weight": 0.0}
    assert METHODS["egspo_sa"]().model_dump() == published | {"type": "egspo_sa", "stepwise_weight": 0.5}


def test_an_unknown_option_is_refused():
    with pytest.raises(ValidationError, match="num_steps"):
        EGSPO(num_steps=3)


@pytest.mark.parametrize(
    ("options", "greedy", "reference"),
    [
        ({}, False, "logprob"),
        ({"beta": 0.0}, False, "none"),
        ({"beta": 0.0, "kl": "exact"}, False, "none"),
        ({"kl": "exact"}, False, "distribution"),
        ({"stepwise_weight": 0.1}, True, "logprob"),
        ({"gain": "fitted", "beta": 0.0}, True, "none"),
        ({"baseline": "leave_one_out"}, False, "logprob"),
    ],
)
def test_its_needs_follow_from_the_options(options, greedy, reference):
    needs = EGSPO(num_selected=3, **options).needs()
    wanted = Needs(greedy=greedy, selection=("entropy_topk", 3), reference=reference, group=True, choice=True)
    assert needs == wanted


def test_more_selected_steps_than_steps_and_groups_of_one_are_refused():
    sampler = SamplerConfig(max_completion_length=8, num_steps=4)
    EGSPO(num_selected=4).check(sampler, 2)
    EGSPO(num_selected=5, step_choice="all").check(sampler, 2)
    with raises(ConfigError, "num_selected = 5 is more than the 4 denoising steps"):
        EGSPO(num_selected=5).check(sampler, 2)
    with raises(ConfigError, "num_generations = 1", "Set num_generations to 2 or more"):
        EGSPO(num_selected=4).check(sampler, 1)


# Plan


def test_a_view_shows_the_state_before_its_step_with_the_committed_tokens_as_targets(rollout):
    views = EGSPO(num_selected=2).plan(rollout, torch.Generator())
    # Joint entropies: [.3, 1.0, .9, .7]; the second row commits text at step 1 last, and only steps
    # 0 and 1 count.
    assert views.row.tolist() == [0, 0, 1, 1]
    assert views.slot.tolist() == [0, 1, 0, 1]
    assert views.hidden.int().tolist() == [
        [1, 0, 0, 1, 1, 1],
        [0, 0, 0, 1, 0, 1],
        [0, 1, 1, 0, 1, 1],
        [1, 1, 1, 1, 1, 1],
    ]
    assert views.target.int().tolist() == [
        [1, 0, 0, 0, 1, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [1, 0, 0, 1, 0, 0],
    ]
    assert views.prompt_hidden is None
    # T / (K L): independent of the number of tokens of the view and of the number of filled slots.
    assert views.weight.tolist() == pytest.approx([4 / 6 / 2] * 4)


def test_fewer_candidates_than_k_give_fewer_views_without_repetition(rollout):
    views = EGSPO(num_selected=4).plan(rollout, torch.Generator())
    assert views.row.tolist() == [0, 0, 0, 0, 1, 1]
    assert views.slot.tolist() == [0, 1, 2, 3, 0, 1]


@pytest.mark.parametrize(("rule", "first"), [("entropy_topk", 1), ("lowest_entropy", 0), ("last_k", 3), ("all", 0)])
def test_the_rule_selects_the_steps(rollout, rule, first):
    views = EGSPO(num_selected=1, step_choice=rule).plan(rollout, torch.Generator())
    committed_at = rollout.trajectory.unmask_step[0][views.target[0]]
    assert committed_at.unique().tolist() == [first]
    assert len(views) == (6 if rule == "all" else 2)


def test_the_random_rules_follow_the_rows_seeds(rollout):
    method = EGSPO(num_selected=1, step_choice="uniform")
    many = replace(rollout.trajectory.rows(torch.zeros(400, dtype=torch.long)), seed=torch.arange(400))
    big = Rollout(many, 2, torch.zeros(400))
    views = method.plan(big, torch.Generator().manual_seed(1))
    again = method.plan(big, torch.Generator().manual_seed(2))
    assert torch.equal(views.target, again.target)
    step = torch.where(views.target, many.unmask_step, 0).amax(-1)
    assert torch.bincount(step, minlength=4).tolist() == pytest.approx([100] * 4, abs=35)


# Advantage


def test_without_stepwise_weight_a_completion_has_one_advantage(rollout):
    assert EGSPO().advantage(rollout).tolist() == [0.375, -0.375]
    assert EGSPO(baseline="leave_one_out").advantage(rollout).tolist() == [0.75, -0.75]


def test_with_stepwise_weight_each_filled_slot_has_its_own_advantage(rollout):
    path = replace(rollout.trajectory, selected_step=torch.tensor([[1, 2, 3], [1, 0, -1]], dtype=torch.int32))
    scored = replace(rollout, trajectory=path, one_step_reward=torch.tensor([[0.0, 1.0, 0.5], [0.25, 0.0, 9.0]]))
    # R = r - V / 3: [1, 2/3, -] and [1/6, 1/4, -]. In the last slot one member has a value and
    # nothing to compare it with.
    expected = [[5 / 12, 5 / 24, 0.375], [-5 / 12, -5 / 24, 0.0]]
    torch.testing.assert_close(EGSPOSA().advantage(scored), torch.tensor(expected))


def test_the_value_as_baseline_is_the_reward_less_the_value_of_the_state(rollout):
    path = replace(rollout.trajectory, selected_step=torch.tensor([[1, 2, 3], [1, 0, -1]], dtype=torch.int32))
    value = torch.tensor([[0.0, 1.0, 0.5], [0.25, 0.0, 9.0]])
    scored = replace(rollout, trajectory=path, one_step_reward=value, group_size=1)
    # Rewards 1 and 0.25; the last slot of the second completion is empty.
    assert EGSPOSA(baseline="value").advantage(scored).tolist() == [[1.0, 0.0, 0.5], [0.0, 0.25, 0.0]]


@pytest.mark.parametrize("stepwise_weight", [0.0, 0.5])
def test_the_baseline_of_the_batch_compares_a_completion_with_all_others(rollout, stepwise_weight):
    path = replace(rollout.trajectory, selected_step=torch.tensor([[1, 2], [1, 0]], dtype=torch.int32))
    value = torch.tensor([[0.0, 1.0], [0.25, 0.5]])
    one_group = replace(rollout, trajectory=path, one_step_reward=value)
    two_prompts = replace(one_group, group_size=1)
    batch = EGSPO(baseline="batch_leave_one_out", stepwise_weight=stepwise_weight)
    group = EGSPO(baseline="leave_one_out", stepwise_weight=stepwise_weight)
    assert torch.equal(batch.advantage(two_prompts), group.advantage(one_group))
    assert not torch.equal(batch.advantage(two_prompts), EGSPO(stepwise_weight=stepwise_weight).advantage(one_group))


def test_the_baseline_of_the_batch_needs_a_second_completion(rollout):
    alone = Rollout(rollout.trajectory.rows(slice(1)), 1, rollout.reward[:1])
    with raises(ConfigError, "there is only one", "Set num_prompts or num_generations to 2 or more"):
        EGSPO(baseline="batch_leave_one_out").advantage(alone)
    # A recipe is refused before anything is sampled; two completions are enough, of one prompt or of two.
    method = {"method": {"type": "egspo", "baseline": "batch_leave_one_out"}}
    for prompts, generations in ((1, 2), (2, 1)):
        load_recipe("sudoku-tiny", method | {"num_prompts": prompts, "num_generations": generations})
    with raises(ConfigError, "there is only one", "Set num_prompts or num_generations to 2 or more"):
        load_recipe("sudoku-tiny", method | {"num_prompts": 1, "num_generations": 1})


def test_baselines_without_a_group_take_one_completion_of_a_prompt_but_no_fitted_gain():
    sampler = SamplerConfig(max_completion_length=8, num_steps=4)
    for baseline in ("value", "batch_leave_one_out"):
        EGSPO(num_selected=1, baseline=baseline).check(sampler, 1)
        with raises(ConfigError, "method.gain = fitted", "Set method.gain to fixed"):
            EGSPO(num_selected=1, baseline=baseline, gain="fitted").check(sampler, 4)


def test_the_values_of_all_states_are_kept_and_those_of_the_drawn_steps_are_used(toy):
    small = toy()
    rollout, _ = small.groups(small.paths()[:20], 2, stepwise=True, seed=3)
    method = EGSPO(step_choice="surprisal", num_selected=2, stepwise_weight=0.5)
    assert method.needs().selection == ("all", 2)
    found = method.advantage(rollout)
    path = rollout.trajectory
    views = method.plan(rollout, torch.Generator())
    steps = torch.zeros(len(path), 2, dtype=torch.long)
    steps[views.row, views.slot] = path.shown_step(views)
    value = rollout.one_step_reward.gather(1, steps).view(-1, 2, 2)
    reward = rollout.reward.view(-1, 2, 1)
    by_hand = (reward - reward.mean(1, keepdim=True)) - (value - value.mean(1, keepdim=True)) / 3
    torch.testing.assert_close(found, by_hand.view(-1, 2), rtol=0, atol=1e-12)


# Loss


def test_at_equal_policies_the_gradient_is_the_plain_policy_gradient():
    given = inputs([[-1.0, -2.0], [-0.5, -0.1]], [[-1.0, -2.0], [-0.5, -0.1]], [2.0, -4.0])
    output = EGSPO(beta=0.0).loss(given)
    assert output.loss.tolist() == [-1.0, 2.0]
    output.loss.sum().backward()
    assert given.new.grad.tolist() == [[-1.0, -1.0], [2.0, 2.0]]
    assert "kl" not in output.metrics


def test_the_ratio_of_the_steps_joint_probability_is_clipped_on_the_harmful_side():
    # Each token's ratio is 1.25, the step's 1.5625, past 1 + 0.5; token by token nothing would be
    # clipped.
    up = torch.tensor(1.25).log().item()
    given = inputs([[up, up]] * 2 + [[-up, -up]] * 2, [[0.0, 0.0]] * 4, [1.0, -1.0, 1.0, -1.0])
    output = EGSPO(beta=0.0).loss(given)
    torch.testing.assert_close(output.loss, 0.5 * torch.tensor([-1.5, 1.5625, -0.64, 0.8]))
    assert output.metrics["clip_ratio/region_mean"].tolist() == [1.0, 0.0, 0.0, 1.0]
    assert output.metrics["clip_ratio/high_mean"].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert output.metrics["clip_ratio/low_mean"].tolist() == [0.0, 0.0, 0.0, 1.0]
    assert output.metrics["policy/ratio_max"].tolist() == pytest.approx([1.5625, 1.5625, 0.64, 0.64])
    output.loss.sum().backward()
    assert (given.new.grad != 0).any(-1).tolist() == [False, True, True, False]


def test_the_k3_term_uses_the_steps_log_ratio_to_the_reference():
    # d = log reference - log new = -0.3 + 0.1 over the step, so k3 = exp(-0.2) + 0.2 - 1; per token
    # it would be a sum of two.
    given = inputs([[-1.0, -2.0]], [[-1.0, -2.0]], [0.0], reference=[[-1.3, -1.9]])
    output = EGSPO(beta=0.4).loss(given)
    k3 = torch.tensor(-0.2).exp() + 0.2 - 1
    torch.testing.assert_close(output.metrics["kl"], k3.view(1))
    torch.testing.assert_close(output.loss, 0.5 * 0.4 * k3.view(1))


def test_the_exact_kl_is_summed_over_the_steps_tokens():
    given = inputs([[-1.0, -2.0]], [[-1.0, -2.0]], [3.0], exact_kl=[[0.25, 0.5]], weight=2.0)
    output = EGSPO(beta=0.4, kl="exact").loss(given)
    assert output.loss.tolist() == pytest.approx([2.0 * (-3.0 + 0.4 * 0.75)])
    assert output.metrics["kl"].tolist() == [0.75]


def test_metrics_carry_no_graph():
    given = inputs([[-1.0]], [[-1.5]], [1.0], reference=[[-1.2]])
    assert not any(values.requires_grad for values in EGSPO().loss(given).metrics.values())


def test_steps_of_a_value_without_a_value_are_refused():
    sampler = SamplerConfig(max_completion_length=8, num_steps=4)
    with raises(ConfigError, "method.value_steps = 2", "method.baseline to value"):
        EGSPO(num_selected=1, value_steps=2).check(sampler, 4)
    for settings in ({"stepwise_weight": 0.5}, {"baseline": "value"}):
        method = EGSPO(num_selected=1, value_steps=2, **settings)
        method.check(sampler, 4)
        assert method.needs().value_steps == 2

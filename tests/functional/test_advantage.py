"""Tests of group baselines: values by hand, invariances, exact bias, and the stepwise identity."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers.shapes import unchecked
from unmask.functional.advantage import (
    constant_group_share,
    controlled_advantage,
    counterfactual_advantage,
    fitted_gain,
    group_advantage,
    stepwise_advantage,
    z_score,
)

BASELINES = ("group_mean", "leave_one_out")


@st.composite
def slots(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    """Draw rewards [B, K], validity [B, K] and a group size."""
    groups, size, width = draw(st.integers(1, 3)), draw(st.integers(2, 5)), draw(st.integers(1, 3))
    count = groups * size * width
    reward = draw(st.lists(st.floats(-5, 5), min_size=count, max_size=count))
    is_valid = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    shape = (groups * size, width)
    return torch.tensor(reward, dtype=torch.float64).view(shape), torch.tensor(is_valid).view(shape), size


def test_both_baselines_by_hand():
    reward = torch.tensor([1.0, 0.0, 0.0, 3.0, 5.0, 7.0])
    mean = group_advantage(reward, 3, "group_mean")
    torch.testing.assert_close(mean, torch.tensor([2 / 3, -1 / 3, -1 / 3, -2.0, 0.0, 2.0]))
    # 1 - 0, 0 - 1/2, 0 - 1/2; 3 - 6, 5 - 5, 7 - 4
    left_out = group_advantage(reward, 3, "leave_one_out")
    torch.testing.assert_close(left_out, torch.tensor([1.0, -0.5, -0.5, -3.0, 0.0, 3.0]))


def test_empty_slots_have_no_advantage_and_do_not_enter_the_baseline():
    reward = torch.tensor([[1.0, 4.0], [float("nan"), 2.0], [3.0, 100.0]])
    is_valid = torch.tensor([[True, True], [False, True], [True, False]])
    expected = torch.tensor([[-1.0, 1.0], [0.0, -1.0], [1.0, 0.0]])
    torch.testing.assert_close(group_advantage(reward, 3, "group_mean", is_valid), expected)
    torch.testing.assert_close(group_advantage(reward, 3, "leave_one_out", is_valid), 2 * expected)


@pytest.mark.parametrize("baseline", BASELINES)
def test_a_slot_with_one_valid_member_or_none_gets_zero(baseline):
    reward = torch.tensor([[1.0, 5.0, 2.0], [3.0, 7.0, 4.0]])
    is_valid = torch.tensor([[True, False, True], [False, False, True]])
    advantage = group_advantage(reward, 2, baseline, is_valid)
    assert advantage[:, :2].tolist() == [[0, 0], [0, 0]]
    assert advantage[0, 2] == -advantage[1, 2] < 0


@settings(max_examples=50, deadline=None)
@given(case=slots(), baseline=st.sampled_from(BASELINES))
def test_advantages_of_each_group_and_slot_sum_to_zero(case, baseline):
    reward, is_valid, size = case
    advantage = group_advantage(reward, size, baseline, is_valid)
    sums = advantage.view(-1, size, reward.shape[1]).sum(1)
    torch.testing.assert_close(sums, torch.zeros_like(sums), rtol=0, atol=1e-12)
    assert (advantage[~is_valid] == 0).all()


@settings(max_examples=50, deadline=None)
@given(case=slots(), baseline=st.sampled_from(BASELINES), constant=st.floats(-5, 5))
def test_advantages_ignore_an_added_constant(case, baseline, constant):
    reward, is_valid, size = case
    advantage = group_advantage(reward, size, baseline, is_valid)
    moved = group_advantage(reward + constant, size, baseline, is_valid)
    torch.testing.assert_close(moved, advantage, rtol=0, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(case=slots(), baseline=st.sampled_from(BASELINES), data=st.data())
def test_advantages_follow_a_permutation_within_the_group(case, baseline, data):
    reward, is_valid, size = case
    order = torch.tensor(data.draw(st.permutations(range(size))))
    rows = (torch.arange(0, len(reward), size).unsqueeze(-1) + order).flatten()
    advantage = group_advantage(reward, size, baseline, is_valid)
    permuted = group_advantage(reward[rows], size, baseline, is_valid[rows])
    torch.testing.assert_close(permuted, advantage[rows], rtol=0, atol=1e-12)


def test_leave_one_out_is_the_group_mean_times_n_over_n_minus_one():
    reward = torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, left_out = (group_advantage(reward, 4, baseline) for baseline in BASELINES)
    torch.testing.assert_close(left_out, mean * 4 / 3, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("size", [3, 5, 6, 7])
@pytest.mark.parametrize("baseline", BASELINES)
def test_a_constant_group_gets_exactly_zero(size, baseline):
    reward = torch.full((size,), 0.1)
    assert (group_advantage(reward, size, baseline) == 0).all()


def test_float32_arithmetic_would_leave_noise_in_a_constant_group():
    assert any((torch.full((size,), 0.1) - torch.full((size,), 0.1).sum() / size).any() for size in (3, 5, 6, 7))


def expected_gradient(advantage_of, group_size: int) -> tuple[Tensor, Tensor]:
    """Return the exact E[(1/G) Σ_i A_i ∇ log p(a_i)] over all groups of a three-armed bandit, and ∇
    J."""
    logits = torch.tensor([0.3, -0.5, 0.9], dtype=torch.float64, requires_grad=True)
    reward_of = torch.tensor([1.0, 0.2, -0.7], dtype=torch.float64)
    logprobs = logits.log_softmax(-1)
    (true,) = torch.autograd.grad((logprobs.exp() * reward_of).sum(), logits, retain_graph=True)
    surrogate = torch.zeros((), dtype=torch.float64)
    for actions in product(range(3), repeat=group_size):
        chosen = logprobs[list(actions)]
        advantage = advantage_of(reward_of[list(actions)])
        surrogate = surrogate + chosen.sum().exp().detach() * (advantage * chosen).mean()
    (estimate,) = torch.autograd.grad(surrogate, logits)
    return estimate, true


@pytest.mark.parametrize("size", [2, 3, 4])
def test_leave_one_out_gives_the_whole_gradient_and_the_group_mean_a_share_of_g_minus_one_over_g(size):
    estimate, true = expected_gradient(lambda reward: group_advantage(reward, size, "leave_one_out"), size)
    torch.testing.assert_close(estimate, true, rtol=0, atol=1e-14)
    estimate, true = expected_gradient(lambda reward: group_advantage(reward, size, "group_mean"), size)
    torch.testing.assert_close(estimate, true * (size - 1) / size, rtol=0, atol=1e-14)


def test_division_by_the_standard_deviation_would_turn_the_gradient():
    def divided(reward: Tensor) -> Tensor:
        return group_advantage(reward, 3, "group_mean") / (reward.std() + 1e-4)

    estimate, true = expected_gradient(divided, 3)
    assert torch.cosine_similarity(estimate, true, dim=0) < 0.999


def everywhere(value: Tensor) -> Tensor:
    return torch.ones_like(value, dtype=torch.bool)


def test_the_stepwise_advantage_is_the_group_advantage_of_the_stepwise_return():
    reward, value = torch.tensor([1.0, 0.0]), torch.tensor([[0.0, 1.0, 0.4], [0.5, 0.5, 0.5]])
    # R = (r + 0.5 (r - V)) / 1.5: [1, 2/3, 13/15] and -1/6 throughout.
    returns = torch.tensor([[1.0, 2 / 3, 13 / 15], [-1 / 6, -1 / 6, -1 / 6]])
    advantage = stepwise_advantage(reward, value, everywhere(value), 2, 0.5, "leave_one_out")
    torch.testing.assert_close(advantage, group_advantage(returns, 2, "leave_one_out"))


def test_an_empty_slot_gets_zero_but_its_reward_enters_the_baseline():
    reward, value = torch.tensor([1.0, 0.0, 0.5]), torch.tensor([[0.5], [0.25], [9.0]])
    is_valid = torch.tensor([[True], [True], [False]])
    advantage = stepwise_advantage(reward, value, is_valid, 3, 0.5, "group_mean")
    # r - 1/2, less a third of V - 3/8.
    torch.testing.assert_close(advantage, torch.tensor([[0.5 - 0.125 / 3], [-0.5 + 0.125 / 3], [0.0]]))


@settings(max_examples=50, deadline=None)
@given(weight=st.floats(0, 10), seed=st.integers(0, 1000))
def test_the_stepwise_advantage_is_a_centred_state_value_baseline(weight, seed):
    generator = torch.Generator().manual_seed(seed)
    reward = torch.rand(6, generator=generator, dtype=torch.float64)
    value = torch.rand(6, 4, generator=generator, dtype=torch.float64)

    def centred(x: Tensor) -> Tensor:
        grouped = x.view(2, 3, -1)
        return (grouped - grouped.mean(1, keepdim=True)).view(6, -1)

    advantage = stepwise_advantage(reward, value, everywhere(value), 3, weight, "group_mean")
    expected = centred(reward) - weight / (1 + weight) * centred(value)
    torch.testing.assert_close(advantage, expected, rtol=0, atol=1e-14)
    # The control: the gain is not λ itself.
    if weight > 0.1:
        assert not torch.allclose(advantage, centred(reward) - weight * centred(value), atol=1e-6)


@pytest.mark.parametrize(
    ("given_dtype", "dtype"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_results_are_float32_or_float64(given_dtype, dtype):
    reward = torch.tensor([1.0, 0.0], dtype=given_dtype)
    assert group_advantage(reward, 2, "group_mean").dtype == dtype
    value = reward.unsqueeze(-1)
    stepwise = stepwise_advantage(reward, value, everywhere(value), 2, 0.5, "group_mean")
    assert stepwise.dtype == dtype
    torch.testing.assert_close(stepwise[:, 0].double().tolist(), [1 / 3, -1 / 3], rtol=1e-6, atol=0)


def test_the_share_of_constant_groups_is_counted_by_group():
    assert constant_group_share(torch.tensor([1.0, 1.0, 1.0, 0.0, 0.5, 0.5]), 2).item() == pytest.approx(2 / 3)
    assert constant_group_share(torch.tensor([1.0, 1.0, 1.0, 0.0, 0.5, 0.5]), 3).item() == 0.5
    assert constant_group_share(torch.zeros(4), 2).item() == 1
    assert constant_group_share(torch.arange(4), 2).item() == 0


def test_groups_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="a group of 1 has no baseline"):
        group_advantage(torch.zeros(4), 1, "group_mean")
    with pytest.raises(ValueError, match="group_size = 3 does not divide the 4 rows"):
        group_advantage(torch.zeros(4), 3, "group_mean")
    with pytest.raises(ValueError, match="group_size = 0 does not divide"):
        group_advantage(torch.zeros(4), 0, "group_mean")
    with pytest.raises(ValueError, match='unknown baseline "mean"'):
        unchecked(group_advantage)(torch.zeros(4), 2, "mean")
    with pytest.raises(ValueError, match=r"\(4,\), \(4, 2\)"):
        unchecked(group_advantage)(torch.zeros(4, 2), 2, "group_mean", torch.ones(4, dtype=torch.bool))
    with pytest.raises(ValueError, match="group_size = 3 does not divide"):
        constant_group_share(torch.zeros(4), 3)
    value = torch.zeros(2, 1)
    with pytest.raises(ValueError, match="got -0.5"):
        stepwise_advantage(torch.zeros(2), value, everywhere(value), 2, -0.5, "group_mean")
    with pytest.raises(ValueError, match=r"\(4,\), \(2, 1\)"):
        unchecked(controlled_advantage)(torch.zeros(4), value, everywhere(value), 2, 0.5, "group_mean")


@pytest.mark.parametrize("correction", [0, 1])
def test_the_z_score_is_the_advantage_over_the_groups_deviation(correction):
    reward = torch.tensor([1.0, 0.0, 0.0, 3.0, 5.0, 10.0], dtype=torch.float64)
    grouped = reward.view(2, 3)
    deviation = grouped.std(-1, correction=correction, keepdim=True)
    expected = (grouped - grouped.mean(-1, keepdim=True)) / (deviation + 0.5)
    torch.testing.assert_close(z_score(reward, 3, correction, floor=0.5), expected.flatten())


def test_the_z_score_of_a_constant_group_is_zero_and_of_a_nearly_constant_one_small():
    assert z_score(torch.full((3,), 0.1), 3, correction=1).tolist() == [0.0, 0.0, 0.0]
    nearly = z_score(torch.tensor([0.1, 0.1, 0.1 + 1e-6]), 3, correction=1)
    assert 0 < float(nearly.abs().max()) < 0.02


# Control variates and counterfactuals


def random_case(seed=0, groups=4, size=3, slots=2):
    generator = torch.Generator().manual_seed(seed)
    reward = torch.rand(groups * size, generator=generator, dtype=torch.float64)
    value = 0.5 * reward.unsqueeze(-1) + torch.rand(groups * size, slots, generator=generator, dtype=torch.float64)
    return reward, value, torch.ones(groups * size, slots, dtype=torch.bool)


def test_a_fitted_gain_is_the_regression_of_reward_on_value_over_the_other_groups():
    reward, value, is_valid = random_case()
    gain = fitted_gain(reward, value, is_valid, 3)
    for group in range(4):
        others = [g for g in range(4) if g != group]
        r = torch.cat([reward[3 * g : 3 * g + 3] - reward[3 * g : 3 * g + 3].mean() for g in others])
        v = torch.cat([value[3 * g : 3 * g + 3] - value[3 * g : 3 * g + 3].mean(0) for g in others])
        expected = (r.unsqueeze(-1) * v).sum() / v.square().sum()
        torch.testing.assert_close(gain[3 * group : 3 * group + 3], expected.expand(3))


def test_the_gain_of_a_group_does_not_depend_on_the_group():
    reward, value, is_valid = random_case()
    changed = reward.clone()
    changed[:3] = torch.tensor([9.0, -4.0, 2.0])
    before, after = fitted_gain(reward, value, is_valid, 3), fitted_gain(changed, value, is_valid, 3)
    torch.testing.assert_close(before[:3], after[:3], rtol=1e-12, atol=0)
    assert (before[3:] - after[3:]).abs().min() > 0.01


def test_a_fitted_gain_lowers_the_variance_and_is_zero_without_other_groups():
    reward, value, is_valid = random_case(groups=40)
    gain = fitted_gain(reward, value, is_valid, 3)
    plain = controlled_advantage(reward, value, is_valid, 3, 0.0, "leave_one_out")
    fitted = controlled_advantage(reward, value, is_valid, 3, gain, "leave_one_out")
    assert fitted.var() < 0.95 * plain.var()
    assert (fitted_gain(*(t[:3] for t in (reward, value, is_valid)), 3) == 0).all()
    assert (fitted_gain(reward, torch.ones_like(value), is_valid, 3) == 0).all()


@pytest.mark.parametrize("baseline", ["group_mean", "leave_one_out"])
def test_pooled_means_are_over_all_valid_slots(baseline):
    reward, value, is_valid = random_case(groups=2)
    is_valid[1, 1] = is_valid[4, 0] = False
    found = controlled_advantage(reward, value, is_valid, 3, 1.0, baseline, pool_slots=True)
    for row in range(6):
        group = [i for i in range(6) if i // 3 == row // 3 and (baseline == "group_mean" or i != row)]
        mean_r = reward[group].mean()
        mean_v = torch.stack([value[i, k] for i in group for k in range(2) if is_valid[i, k]]).mean()
        for slot in range(2):
            expected = reward[row] - mean_r - (value[row, slot] - mean_v) if is_valid[row, slot] else 0.0
            assert float(found[row, slot]) == pytest.approx(float(expected), abs=1e-12)


def test_counterfactual_advantages_by_hand_and_exactly_zero_for_equal_values():
    value = torch.tensor([[1.0, 0.0, 0.5], [0.1, 0.1, 0.1]])
    advantage = counterfactual_advantage(value)
    torch.testing.assert_close(advantage[0], torch.tensor([0.25, -0.25, 0.0]))
    assert (advantage[1] == 0).all()
    with pytest.raises(ValueError, match="2 actions or more"):
        counterfactual_advantage(value[:, :1])


def test_counterfactual_advantages_estimate_the_gradient_of_the_expected_value():
    # All nine pairs of two actions from p over three are enumerated: Σ_m A_m ∇ log p(a_m) has the
    # mean ∇ Σ_a p_a Q_a.
    logits = torch.tensor([0.2, -0.5, 0.9], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([1.0, 0.3, -0.7], dtype=torch.float64)
    logp = logits.log_softmax(0)
    total = torch.zeros((), dtype=torch.float64)
    for one, other in product(range(3), repeat=2):
        advantage = counterfactual_advantage(q[[one, other]])
        weight = (logp[one] + logp[other]).exp().detach()
        total = total + weight * (advantage[0] * logp[one] + advantage[1] * logp[other])
    (estimate,) = torch.autograd.grad(total, logits, retain_graph=True)
    (expected,) = torch.autograd.grad((logp.exp() * q).sum(), logits)
    torch.testing.assert_close(estimate, expected, rtol=0, atol=1e-12)

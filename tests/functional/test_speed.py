"""A reward for speed beside that of the task: what each normalisation keeps and what it does not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.shapes import unchecked
from unmask.functional.speed import lacks_contrast, right_likelihood_loss, tokens_per_forward, with_speed

REWARD = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
SPEED = torch.tensor([2.0, 4.0, 2.0, 4.0], dtype=torch.float64)


def test_tokens_per_forward_counts_text_and_steps():
    assert tokens_per_forward(torch.tensor([8, 3, 0]), torch.tensor([4, 2, 0])).tolist() == [2.0, 1.5, 0.0]


@settings(max_examples=30, deadline=None)
@given(unit=st.floats(0.1, 100), offset=st.floats(-5, 5), weight=st.floats(0.1, 2))
def test_standardised_rewards_do_not_depend_on_the_unit_of_either(unit, offset, weight):
    plain = with_speed(REWARD, SPEED, 4, weight, "z_score")
    for reward, speed in ((unit * REWARD + offset, SPEED), (REWARD, unit * SPEED + 1)):
        torch.testing.assert_close(with_speed(reward, speed, 4, weight, "z_score"), plain, rtol=0.01, atol=0.01)
    assert plain.sum() == pytest.approx(0, abs=1e-9)


def test_without_normalisation_the_reward_of_the_wider_spread_decides():
    # Completion 1 is wrong and fast, completion 0 right and slow.
    def right_wins(scale, speed):
        total = with_speed(REWARD, speed, 4, 0.5, scale)
        return bool(total[0] > total[1])

    assert right_wins("none", SPEED / 10)
    assert not right_wins("none", SPEED * 10)
    for scale in ("z_score", "minmax"):
        assert right_wins(scale, SPEED / 10)
        assert right_wins(scale, SPEED * 10)


def test_minmax_is_the_place_between_the_slowest_and_the_fastest_of_each_group():
    speed = torch.tensor([1.0, 3.0, 5.0, 5.0], dtype=torch.float64)
    assert with_speed(REWARD, speed, 2, 1.0, "minmax").tolist() == [1.0, 1.0, 0.5, 1.5]
    assert with_speed(REWARD, speed, 4, 1.0, "minmax").tolist() == [1.0, 0.5, 1.0, 2.0]


def test_groups_of_equal_reward_still_learn_to_be_fast():
    total = with_speed(torch.ones(4), SPEED.float(), 4, 0.5, "z_score")
    assert total[0] == total[2] < total[1] == total[3]
    assert with_speed(torch.ones(4), torch.ones(4), 4, 0.5, "z_score").tolist() == [0.0] * 4


def test_an_unknown_scale_is_refused():
    with pytest.raises(ValueError, match='unknown scale "rank"'):
        unchecked(with_speed)(REWARD, SPEED, 4, 0.5, "rank")


def test_groups_of_one_speed_and_groups_without_a_right_completion_lack_contrast():
    speed = torch.tensor([2.0, 2.005, 1.0, 3.0, 1.0, 3.0])
    is_right = torch.tensor([True, True, False, False, False, True])
    assert lacks_contrast(speed, is_right, 2, 0.01, needs_right=False).tolist() == [True, False, False]
    assert lacks_contrast(speed, is_right, 2, 0.001, needs_right=True).tolist() == [False, True, False]
    assert not lacks_contrast(torch.ones(6), is_right, 2, 0.0, needs_right=False).any()


def test_the_likelihood_of_right_completions_is_a_mean_over_them():
    generator = torch.Generator().manual_seed(0)
    logprob = -torch.rand(5, 3, generator=generator, dtype=torch.float64).requires_grad_()
    weight, row = torch.rand(5, generator=generator, dtype=torch.float64), torch.tensor([0, 1, 1, 3, 2])
    is_right = torch.tensor([False, True, False, True])
    loss = right_likelihood_loss(logprob, weight, row, is_right)
    expected = sum(-weight[v] * logprob[v].sum() for v in (1, 2, 3)) / 2
    torch.testing.assert_close(loss.sum() / 4, expected, rtol=0, atol=1e-12)
    assert (loss[[0, 4]] == 0).all()
    assert (right_likelihood_loss(logprob, weight, row, torch.zeros(4, dtype=torch.bool)) == 0).all()

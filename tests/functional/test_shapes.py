"""The test run checks annotated shapes and dtypes of functions, records and plans."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import Tensor

from tests.helpers.records import make_trajectory
from unmask.core.records import LossInputs, Rollout, ViewLogprobs, Views
from unmask.functional.advantage import stepwise_advantage
from unmask.functional.elbo import elbo
from unmask.functional.selection import step_sum
from unmask.methods.views import masked_views


def test_a_dimension_that_differs_between_arguments_is_noticed():
    with pytest.raises(TypeCheckError, match="one_step_reward"):
        stepwise_advantage(torch.zeros(4), torch.zeros(3, 2), torch.ones(3, 2, dtype=torch.bool), 2, 0.5, "group_mean")


def test_a_dtype_that_differs_is_noticed():
    with pytest.raises(TypeCheckError, match="is_masked"):
        elbo(torch.zeros(2, 4), torch.ones(2, 4), torch.ones(2))


def test_a_dimension_given_by_an_argument_is_checked():
    assert step_sum(torch.zeros(2, 4), torch.zeros(2, 4, dtype=torch.int32), num_steps=3).shape == (2, 3)


def test_a_result_of_another_shape_is_noticed():
    from beartype import beartype

    def sums(values):
        return values.sum(0)

    sums.__annotations__ = {"values": Float[Tensor, "B L"], "return": Float[Tensor, "B"]}
    checked = jaxtyped(sums, typechecker=beartype)
    assert checked(torch.zeros(2, 2)).shape == (2,)
    with pytest.raises(TypeCheckError, match="return"):
        checked(torch.zeros(2, 3))


def trajectory(**changes):
    """Return two completions of five tokens."""
    return make_trajectory(torch.ones(2, 5, dtype=torch.long), **changes)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("logprob", torch.zeros(2, 4)),
        ("unmask_step", torch.zeros(2, 5)),
        ("seed", torch.zeros(3, dtype=torch.long)),
        ("selected_step", torch.zeros(2, 1, dtype=torch.long)),
        ("one_step_tokens", torch.zeros(2, 5, dtype=torch.int32)),
    ],
)
def test_a_trajectory_with_a_wrong_shape_or_dtype_is_noticed(name, value):
    assert len(trajectory()) == 2
    with pytest.raises(TypeCheckError, match=name):
        trajectory(**{name: value})


def test_a_rollout_with_rewards_of_another_shape_is_noticed():
    with pytest.raises(TypeCheckError, match="one_step_reward"):
        Rollout(trajectory(), 2, torch.zeros(2), one_step_reward=torch.zeros(3, 1))


def test_views_and_log_probabilities_of_different_lengths_are_noticed():
    which, masks = torch.zeros(2, dtype=torch.long), torch.ones(2, 5, dtype=torch.bool)
    assert len(Views(which, masks, masks, torch.ones(2), which)) == 2
    with pytest.raises(TypeCheckError, match="weight"):
        Views(which, masks, masks, torch.ones(3), which)
    with pytest.raises(TypeCheckError, match="choice"):
        ViewLogprobs(torch.zeros(2, 3, 5), choice=torch.zeros(2, 4))


def test_loss_inputs_with_different_numbers_of_sequences_are_noticed():
    which, target = torch.zeros(2, dtype=torch.long), torch.ones(2, 5, dtype=torch.bool)
    new, weight = torch.zeros(2, 3, 5), torch.ones(2)
    assert LossInputs(new, new, None, None, which, target, weight, torch.zeros(2, 3)).group_size == 1
    for advantage in (torch.zeros(2, 4), torch.zeros(3)):
        with pytest.raises(TypeCheckError, match="advantage"):
            LossInputs(new, new, None, None, which, target, weight, advantage)


def test_a_plan_with_weights_of_a_wrong_shape_is_noticed():
    with pytest.raises(TypeCheckError, match="weight"):
        masked_views(torch.ones(2, 3, 5, dtype=torch.bool), torch.ones(2))

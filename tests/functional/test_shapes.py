"""The test run checks the annotated shapes of the mathematics, and notices a shape, a dtype or a result that is wrong."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import Tensor

from unmask.functional.advantage import stepwise_advantage
from unmask.functional.elbo import elbo
from unmask.functional.selection import step_sum


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

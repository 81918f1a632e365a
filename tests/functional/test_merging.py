"""Tests of low-rank updates that are added to weights and rounded."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from unmask.functional.merging import merged_weight, rounded_at_random


def normal(*shape: int, seed: int, std: float = 1.0) -> Tensor:
    return std * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_sum_is_that_of_float64_up_to_one_rounding() -> None:
    weight, a, b = normal(20, 30, seed=0), normal(4, 30, seed=1), normal(20, 4, seed=2)
    exact = weight.double() + 0.25 * (b.double() @ a.double())
    torch.testing.assert_close(merged_weight(weight, a, b, 0.25).double(), exact, rtol=1e-6, atol=1e-6)
    # The draws concern bfloat16 only.
    drawn = merged_weight(weight, a, b, 0.25, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, merged_weight(weight, a, b, 0.25))


def kept(merged: Tensor, weight: Tensor, update: Tensor) -> float:
    """Return the share of an update that merged weights contain: its projection on itself."""
    return float(((merged.float() - weight.float()) * update).sum() / update.square().sum())


def test_random_rounding_keeps_a_small_update_that_rounding_to_nearest_drops() -> None:
    weight = normal(500, 400, seed=0, std=0.02).bfloat16()
    a, b = normal(4, 400, seed=1), normal(500, 4, seed=2)
    scale = 1e-6 / float((b @ a).std())
    update = scale * (b @ a)
    merged = merged_weight(weight, a, b, scale, torch.Generator().manual_seed(0))
    assert merged.dtype == torch.bfloat16
    # The share has a standard deviation of 0.015 over draws at these sizes.
    assert kept(merged, weight, update) == pytest.approx(1.0, abs=0.06)
    assert kept(merged_weight(weight, a, b, scale), weight, update) < 0.1


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("share", [0.0, 0.25, 0.9])
def test_random_rounding_goes_to_a_neighbour_with_the_probability_that_makes_it_unbiased(
    sign: float, share: float
) -> None:
    low, gap = 3.0, 2**-6
    values = torch.full((40_000,), sign * (low + share * gap))
    rounded = rounded_at_random(values, torch.Generator().manual_seed(0)).float()
    assert {float(value) for value in rounded.unique()} <= {sign * low, sign * (low + gap)}
    # The standard deviation of the mean is at most gap / 400.
    assert float(rounded.double().mean()) == pytest.approx(float(values[0]), abs=gap / 80)
    if share == 0.0:
        assert torch.equal(rounded, values)


def test_values_in_another_precision_are_refused() -> None:
    with pytest.raises(ValueError, match="must be float32"):
        rounded_at_random(torch.zeros(3, dtype=torch.float64), torch.Generator())

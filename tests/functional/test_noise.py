"""Tests of counter-based noise: the published hash, uniformity, and independence of the batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from unmask.functional.noise import counter_uniform

MASK64 = 2**64 - 1


def splitmix64(state: int) -> int:
    """Compute the hash in Python's unbounded integers, independently of int64 tensors."""
    z = (state + 0x9E3779B97F4A7C15) & MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK64
    return z ^ (z >> 31)


def chi_square(numbers: Tensor, bins: int = 16) -> float:
    count = torch.histc(numbers, bins=bins, min=0, max=1)
    expected = numbers.numel() / bins
    return float(((count - expected) ** 2 / expected).sum())


CHI_SQUARE_BOUND = 45.0
"""Bound that chi-square with 15 degrees of freedom exceeds with probability 1e-4; the draws are
fixed."""


def test_one_key_gives_the_published_first_output_of_splitmix64():
    # Vigna's splitmix64.c, started at 1234567, prints 6457827717110365317 first.
    assert counter_uniform(1234567).item() == (6457827717110365317 >> 11) / 2**53


def test_three_keys_give_a_pinned_number():
    assert counter_uniform(7, 3, 11).item() == 0.524216694334999


@pytest.mark.parametrize("keys", [(0,), (-1,), (2**63, 5), (2**64 - 1, 1, 2), (123, -456, 789, 0)])
def test_keys_are_folded_one_by_one_in_unsigned_64_bit_arithmetic(keys):
    state = 0
    for key in keys:
        state = splitmix64((state + key) & MASK64)
    assert counter_uniform(*keys).item() == (state >> 11) / 2**53


def test_tensor_keys_and_int_keys_give_the_same_numbers():
    tensors = counter_uniform(torch.tensor([5, -6], dtype=torch.int32), torch.tensor(2))
    assert tensors.dtype == torch.float64
    assert tensors.tolist() == [counter_uniform(5, 2).item(), counter_uniform(-6, 2).item()]


def test_keys_broadcast_and_a_batch_equals_its_single_rows():
    seed, position = torch.arange(4).unsqueeze(-1), torch.arange(6)
    batch = counter_uniform(seed, 3, position)
    assert batch.shape == (4, 6)
    for row in range(4):
        for column in range(6):
            assert batch[row, column] == counter_uniform(row, 3, column)
    # Negative control: numbers of a generator do depend on earlier draws.
    first = torch.rand(2, 6, generator=torch.Generator().manual_seed(0))[1]
    alone = torch.rand(1, 6, generator=torch.Generator().manual_seed(0))[0]
    assert not torch.equal(first, alone)


@pytest.mark.parametrize("axis", ["seed", "step", "position"])
def test_numbers_are_uniform_along_each_key(axis):
    many = torch.arange(20_000)
    keys = {"seed": 1, "step": 1, "position": 1, axis: many}
    assert chi_square(counter_uniform(*keys.values())) < CHI_SQUARE_BOUND


def test_the_uniformity_test_can_fail():
    assert chi_square(counter_uniform(1, torch.arange(20_000)) ** 1.1) > CHI_SQUARE_BOUND


def test_neighbouring_keys_give_uncorrelated_numbers():
    position = torch.arange(20_000)
    reference = counter_uniform(7, 0, position)
    neighbours = [
        counter_uniform(8, 0, position),
        counter_uniform(7, 1, position),
        counter_uniform(7, 0, position + 1),
        counter_uniform(0, 7, position),
    ]
    for other in neighbours:
        correlation = torch.corrcoef(torch.stack([reference, other]))[0, 1]
        assert abs(correlation) < 4 / 20_000**0.5
    # Negative control: a shared half is detected.
    mixed = (reference + neighbours[0]) / 2
    assert torch.corrcoef(torch.stack([reference, mixed]))[0, 1] > 0.5


def test_numbers_lie_in_the_half_open_unit_interval():
    numbers = counter_uniform(torch.arange(100_000))
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert numbers.unique().numel() == 100_000


def test_missing_and_fractional_keys_are_refused():
    with pytest.raises(ValueError, match="no key"):
        counter_uniform()
    with pytest.raises(ValueError, match="float32"):
        counter_uniform(torch.tensor([1.0]))

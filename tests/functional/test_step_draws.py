"""Tests of random steps: numbers are uniform alone and even together, and steps have their
frequencies."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy.stats import kstest

from tests.helpers.shapes import unchecked
from unmask.functional.step_draws import low_discrepancy_uniform, step_counts, steps_by_block


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("count", [1, 7, 64])
def test_each_stratum_holds_one_number(count):
    u = low_discrepancy_uniform(count, generator())
    assert (u * count).floor().long().sort().values.tolist() == list(range(count))
    assert bool((u < 1).all())


def test_each_number_alone_is_uniform():
    # Without the permutation, the first number would always be in the first stratum.
    first = torch.stack([low_discrepancy_uniform(8, generator(seed))[0] for seed in range(3000)])
    assert kstest(first.numpy(), "uniform").pvalue > 1e-3
    assert kstest(first.numpy() ** 1.1, "uniform").pvalue < 1e-3


def test_zero_draws_are_refused():
    with pytest.raises(ValueError, match="count must be at least 1; got 0"):
        low_discrepancy_uniform(0, generator())


def test_steps_are_drawn_in_proportion_to_their_probability():
    probability = torch.tensor([[0.5, 0.0, 0.125, 0.375], [0.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    grid = ((torch.arange(800) + 0.5) / 800).expand(2, -1)
    assert step_counts(probability, grid).tolist() == [[400, 0, 100, 300], [0, 800, 0, 0]]


def test_rounding_never_draws_an_impossible_step():
    # Ten tenths sum to less than one in floating point, and no number below one is larger than that
    # sum.
    probability = torch.cat([torch.zeros(1), torch.full((10,), 0.1), torch.zeros(3)]).double().unsqueeze(0)
    extremes = torch.tensor([[0.0, 1 - 2**-53]], dtype=torch.float64)
    assert step_counts(probability, extremes)[0].nonzero().flatten().tolist() == [1, 10]


def test_a_row_without_steps_draws_none():
    assert step_counts(torch.zeros(1, 3), torch.rand(1, 5, generator=generator())).tolist() == [[0, 0, 0]]


def test_rows_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="must agree on B"):
        unchecked(step_counts)(torch.ones(2, 3), torch.zeros(1, 3))


# Steps of each block


def test_over_all_rankings_the_drawn_steps_of_a_block_stand_for_all_of_its_steps():
    # Blocks of three: steps 0 to 2 in the first, 3 and 4 in the second; the third was given.
    unmask_step = torch.tensor([[0, 2, 1, 4, 3, 3, -1, -1]])
    value = torch.tensor([1.0, 10.0, 100.0, 1000.0, 10_000.0])
    for num_draws in (1, 2, 5):
        total = torch.zeros(())
        rankings = list(itertools.permutations([0.1, 0.3, 0.5, 0.7, 0.9]))
        for ranking in rankings:
            steps, weight = steps_by_block(unmask_step, 3, num_draws, torch.tensor([ranking]))
            assert ((steps >= 0).sum(), (weight > 0).sum()) == (min(num_draws, 3) + min(num_draws, 2),) * 2
            total += (weight * value[steps.clamp(min=0)]).sum()
        assert float(total) / len(rankings) == pytest.approx(11_111.0)


def test_the_steps_of_largest_noise_are_drawn_from_each_block():
    steps, weight = steps_by_block(torch.tensor([[0, 1, 2, 3]]), 2, 1, torch.tensor([[0.9, 0.1, 0.2, 0.3]]))
    assert steps.tolist() == [[0, 3]]
    assert weight.tolist() == [[2.0, 2.0]]
    with pytest.raises(ValueError, match="block_length >= 1 and num_draws >= 1; got 0 and 1"):
        steps_by_block(torch.tensor([[0]]), 0, 1, torch.zeros(1, 1))

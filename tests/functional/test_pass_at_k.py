"""Tests of pass@k against all sets of k samples, and of its expectation against the closed form."""

from __future__ import annotations

from itertools import combinations
from math import comb

import pytest

from unmask.functional.pass_at_k import pass_at_k


@pytest.mark.parametrize("num_right", range(7))
@pytest.mark.parametrize("k", range(1, 7))
def test_pass_at_k_is_the_share_of_sets_with_a_right_sample(num_right: int, k: int) -> None:
    samples = [i < num_right for i in range(6)]
    sets = list(combinations(samples, k))
    assert pass_at_k(6, num_right, k) == pytest.approx(sum(map(any, sets)) / len(sets), abs=1e-15)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_pass_at_k_is_unbiased_and_the_plug_in_estimate_is_not(k: int) -> None:
    n, p = 5, 0.3
    chance = [comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    truth = 1 - (1 - p) ** k
    assert sum(w * pass_at_k(n, c, k) for c, w in enumerate(chance)) == pytest.approx(truth, abs=1e-12)
    plug_in = sum(w * (1 - (1 - c / n) ** k) for c, w in enumerate(chance))
    assert plug_in == pytest.approx(truth, abs=1e-12) if k == 1 else plug_in < truth - 0.02


def test_large_numbers_of_samples_do_not_cancel() -> None:
    assert pass_at_k(10_000, 1, 1) == 1e-4
    assert pass_at_k(10_000, 1, 100) == pytest.approx(0.01, rel=1e-12)


@pytest.mark.parametrize("arguments", [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5), (0, 0, 1)])
def test_wrong_arguments_are_refused(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="got"):
        pass_at_k(*arguments)

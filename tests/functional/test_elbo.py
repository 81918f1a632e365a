"""Tests of the masked-diffusion bound: its exact expectation on three positions, and its random
draws."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from math import factorial

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from tests.helpers.shapes import unchecked
from unmask.functional.elbo import (
    coupled_masks,
    elbo,
    elbo_weight,
    gauss_legendre,
    mask_at_times,
    masks_of_counts,
    stratified_counts,
    stratified_times,
)

JOINT = torch.tensor([0.05, 0.2, 0.1, 0.15, 0.25, 0.05, 0.12, 0.08], dtype=torch.float64).view(2, 2, 2)
"""Distribution p(x) of three strongly dependent binary tokens."""

SEQUENCE = (1, 0, 0)

MASKS = torch.tensor(list(product([False, True], repeat=3)))


def conditional_logprob(is_masked: Tensor) -> Tensor:
    """Return log p(x_i | the unmasked tokens of SEQUENCE) under JOINT for masked i, [3] float64;
    NaN elsewhere."""
    consistent = torch.zeros_like(JOINT)
    for x in product(range(2), repeat=3):
        if all(is_masked[i] or x[i] == SEQUENCE[i] for i in range(3)):
            consistent[x] = JOINT[x]
    logprob = torch.full((3,), float("nan"), dtype=torch.float64)
    for i in range(3):
        if is_masked[i]:
            logprob[i] = (consistent.select(i, SEQUENCE[i]).sum() / consistent.sum()).log()
    return logprob


CONDITIONALS = torch.stack([conditional_logprob(mask) for mask in MASKS])


def exact_expectation(estimate_at) -> float:
    """Integrate the mean over masks over t in (0, 1). It has degree 2 in t, so two Gauss nodes are
    exact."""
    num_masked = MASKS.sum(-1).double()
    total = 0.0
    for t in (0.5 - 0.5 / 3**0.5, 0.5 + 0.5 / 3**0.5):
        probability = t**num_masked * (1 - t) ** (3 - num_masked)
        total += 0.5 * (probability * estimate_at(torch.full((8,), t, dtype=torch.float64))).sum().item()
    return total


def test_with_exact_conditionals_the_expected_elbo_is_the_log_probability():
    # Averaged over orders the conditionals telescope (chain rule), so the bound is tight: ELBO =
    # log p(x).
    log_p = JOINT[SEQUENCE].log().item()
    assert exact_expectation(lambda t: elbo(CONDITIONALS, MASKS, t)) == pytest.approx(log_p, abs=1e-14)
    # Negative control: without the weight 1/t the value differs.
    unweighted = exact_expectation(lambda t: elbo(CONDITIONALS, MASKS, torch.ones_like(t)))
    assert abs(unweighted - log_p) > 0.5


def test_with_the_product_of_marginals_the_expected_elbo_is_lower():
    marginals = torch.stack([JOINT.movedim(i, 0)[SEQUENCE[i]].sum().log() for i in range(3)]).expand(8, 3)
    value = exact_expectation(lambda t: elbo(marginals, MASKS, t))
    assert value == pytest.approx(marginals[0].sum().item(), abs=1e-14)
    assert value < JOINT[SEQUENCE].log().item()


def test_the_mean_over_drawn_times_and_masks_reaches_the_log_probability():
    generator = torch.Generator().manual_seed(0)
    count, log_p = 100_000, JOINT[SEQUENCE].log().item()
    times = stratified_times(count, 1e-3, generator)
    is_masked = mask_at_times(times, torch.ones(count, 3, dtype=torch.bool), generator)
    index = (is_masked * torch.tensor([4, 2, 1])).sum(-1)
    estimates = elbo(CONDITIONALS[index], is_masked, times)
    standard_error = estimates.std().item() / count**0.5
    assert standard_error < 0.03
    assert abs(estimates.mean().item() - log_p) < 4 * standard_error
    # Negative control: masks that are drawn at other times than those of their weights.
    shuffled = elbo(CONDITIONALS[index], is_masked, times.flip(0))
    assert abs(shuffled.mean().item() - log_p) > 0.5


def test_the_estimate_by_hand_ignores_unmasked_positions():
    logprob = torch.tensor([[-1.0, float("nan"), -3.0], [-1.0, -2.0, -3.0]])
    is_masked = torch.tensor([[True, False, True], [False, False, False]])
    assert elbo(logprob, is_masked, torch.tensor([0.25, 0.5])).tolist() == [-16.0, 0.0]


@pytest.mark.parametrize(
    ("given_dtype", "dtype"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_the_estimate_is_float32_or_float64(given_dtype, dtype):
    value = elbo(torch.full((1, 300), -1.0, dtype=given_dtype), torch.ones(1, 300, dtype=torch.bool), torch.ones(1))
    assert value.dtype == dtype
    assert value.item() == -300


@pytest.mark.parametrize("count", [1, 2, 7, 64])
@pytest.mark.parametrize("low", [1e-3, 0.3])
def test_each_stratum_holds_one_time(count, low):
    times = stratified_times(count, low, torch.Generator().manual_seed(count))
    assert times.dtype == torch.float32
    assert low <= times.min()
    assert times.max() < 1
    stratum = ((times.double() - low) / (1 - low) * count).floor()
    assert stratum.sort().values.tolist() == list(range(count))


def test_times_are_in_random_order_and_uniform_within_their_strata():
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([stratified_times(4, 0.2, generator) for _ in range(4000)]).double()
    position = (draws - 0.2) / 0.8
    # Each entry alone has mean 1/2 and variance 1/12; sorted entries would have means 1/8, 3/8, ...
    assert (position.mean(0) - 0.5).abs().max() < 4 * (1 / 12 / 4000) ** 0.5
    assert (position.var(0) - 1 / 12).abs().max() < 0.006
    assert ((position * 4 % 1).mean(0) - 0.5).abs().max() < 4 * (1 / 12 / 4000) ** 0.5
    assert (position.sort(1).values.mean(0) - 0.5).abs().max() > 0.3


def test_no_time_reaches_one_even_after_rounding_to_float32():
    # The whole range is one float32 spacing wide: half of the draws would round to 1.
    assert stratified_times(64, 1 - 2**-24, torch.Generator().manual_seed(0)).max() < 1


def test_equal_seeds_give_equal_draws_and_others_do_not():
    def draw(seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        times = stratified_times(16, 0.1, generator)
        return times, mask_at_times(times, torch.ones(16, 9, dtype=torch.bool), generator)

    assert all(torch.equal(a, b) for a, b in zip(draw(3), draw(3), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(draw(3), draw(4), strict=True))


def test_each_maskable_position_is_masked_with_the_probability_of_its_row():
    times = torch.tensor([0.0, 0.25, 0.9, 1.0])
    is_maskable = torch.ones(4, 20_000, dtype=torch.bool)
    is_maskable[:, :1000] = False
    is_masked = mask_at_times(times, is_maskable, torch.Generator().manual_seed(0))
    assert not is_masked[:, :1000].any()
    share = is_masked[:, 1000:].double().mean(-1)
    assert share[0] == 0
    assert share[3] == 1
    assert (share - times).abs().max() < 4 * (0.25 / 19_000) ** 0.5


def test_invalid_arguments_are_refused():
    generator = torch.Generator()
    for count, low in ((0, 0.1), (4, 0.0), (4, 1.0)):
        with pytest.raises(ValueError, match=f"count = {count}, low = {low}"):
            stratified_times(count, low, generator)
    with pytest.raises(ValueError, match=r"\(3,\), \(2, 4\)"):
        unchecked(mask_at_times)(torch.zeros(3), torch.ones(2, 4, dtype=torch.bool), generator)
    with pytest.raises(ValueError, match=r"\(2, 4\), \(2, 4\), \(3,\)"):
        unchecked(elbo)(torch.zeros(2, 4), torch.ones(2, 4, dtype=torch.bool), torch.ones(3))


# Counts, sets and weights, against the enumeration of all counts and sets


def gains_of(mask: Tensor) -> float:
    """Sum the log-probabilities of the masked positions of SEQUENCE given the others."""
    return conditional_logprob(mask)[mask].sum().item()


def mean_over_draws(least: int, estimate: Callable[[Tensor], float]) -> float:
    """Return the mean of an estimate over counts uniform on {least..3} and uniform sets of that
    size."""
    by_count = [[mask for mask in MASKS if int(mask.sum()) == count] for count in range(least, 4)]
    return sum(sum(map(estimate, masks)) / len(masks) for masks in by_count) / len(by_count)


def weight_of(masks: Tensor, *, coupled: bool) -> Tensor:
    return elbo_weight(masks.unsqueeze(0), torch.ones(1, 3, dtype=torch.bool), coupled=coupled)[0].double()


def test_one_set_with_its_weight_is_unbiased_for_the_elbo() -> None:
    log_p = JOINT[SEQUENCE].log().item()

    def estimate(mask: Tensor) -> float:
        return weight_of(mask.view(1, 3), coupled=False).item() * gains_of(mask)

    assert mean_over_draws(1, estimate) == pytest.approx(log_p, abs=1e-7)
    # Negative control: the same weight, with the empty set among the draws.
    assert abs(mean_over_draws(0, estimate) - log_p) > 0.2


def pair_estimate(mask: Tensor, gain: Callable[[Tensor], float] = gains_of) -> float:
    """Return the estimate of a set and its complement."""
    pair = coupled_masks(mask.view(1, 1, 3), torch.ones(1, 3, dtype=torch.bool))[0]
    assert (pair.sum(0) == 1).all(), "each position is masked once"
    weight = weight_of(pair, coupled=True)
    return 0.5 * sum(w * gain(half) for w, half in zip(weight.tolist(), pair, strict=True))


def test_a_coupled_pair_with_its_weights_is_unbiased_for_the_elbo() -> None:
    log_p = JOINT[SEQUENCE].log().item()
    assert mean_over_draws(0, pair_estimate) == pytest.approx(log_p, abs=1e-7)
    # Negative control: without the draw that leaves one half empty.
    assert abs(mean_over_draws(1, pair_estimate) - log_p) > 0.02


def test_a_pair_with_an_empty_half_gives_about_half_of_the_elbo() -> None:
    # Three independent tokens of one nat each, a case in which coupled masks can be noisier.
    values = [pair_estimate(mask, lambda half: float(half.sum())) for mask in MASKS]
    assert values == pytest.approx([2.0] + [4.0] * 6 + [2.0])
    assert mean_over_draws(0, lambda mask: pair_estimate(mask, lambda half: float(half.sum()))) == pytest.approx(3.0)


@pytest.mark.parametrize("least", [0, 1])
@pytest.mark.slow
def test_each_count_alone_is_uniform(least: int) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([4, 2])
    draws = torch.stack([stratified_counts(sizes, 2, least, generator) for _ in range(3000)])
    for row, size in enumerate(sizes.tolist()):
        for draw in range(2):
            seen = torch.bincount(draws[:, row, draw], minlength=size + 1)[least:]
            assert chisquare(seen).pvalue > 1e-3
    assert draws[..., 0].min() == least
    # They are not independent: the two counts of a completion lie half the range apart.
    assert (draws[:, 0, 0] != draws[:, 0, 1]).all()


@pytest.mark.parametrize(("num_rows", "num_draws"), [(1, 5), (5, 1), (10, 2), (4, 5)])
def test_all_counts_together_cover_the_range_evenly(num_rows: int, num_draws: int) -> None:
    for seed in range(10):
        sizes = torch.full((num_rows,), 5)
        counts = stratified_counts(sizes, num_draws, 1, torch.Generator().manual_seed(seed))
        assert torch.bincount(counts.flatten(), minlength=6).tolist() == [0] + [num_rows * num_draws // 5] * 5


def test_a_completion_without_positions_gets_empty_sets() -> None:
    counts = stratified_counts(torch.tensor([0, 3]), 2, 1, torch.Generator().manual_seed(0))
    assert counts[0].tolist() == [0, 0]
    assert (counts[1] >= 1).all()
    is_maskable = torch.tensor([[False] * 3, [True] * 3])
    masks = masks_of_counts(counts, is_maskable, torch.Generator().manual_seed(0))
    assert elbo_weight(masks, is_maskable, coupled=False)[0].tolist() == [0.0, 0.0]


def test_sets_of_a_size_are_equally_likely_and_hold_maskable_positions_only() -> None:
    is_maskable = torch.tensor([[True, False, True, True]]).expand(3000, -1)
    counts = torch.tensor([[1, 2]]).expand(3000, -1)
    masks = masks_of_counts(counts, is_maskable, torch.Generator().manual_seed(0))
    assert torch.equal(masks.sum(-1), counts)
    assert not masks[..., 1].any()
    for draw in range(2):
        seen = torch.bincount((masks[:, draw] * torch.tensor([4, 0, 2, 1])).sum(-1), minlength=8)
        assert chisquare(seen[seen > 0]).pvalue > 1e-3
        assert (seen > 0).sum() == 3


# Quadrature


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 5])
def test_gauss_legendre_is_exact_for_powers_up_to_twice_its_nodes_and_no_further(num_nodes: int) -> None:
    nodes, weights = gauss_legendre(num_nodes)
    for power in range(2 * num_nodes):
        assert (weights * nodes**power).sum().item() == pytest.approx(1 / (power + 1), abs=1e-14)
    # The error of the first power that is not exact is the known constant (N!)⁴ / ((2N)!² (2N+1)).
    degree = 2 * num_nodes
    known = factorial(num_nodes) ** 4 / (factorial(degree) ** 2 * (degree + 1))
    missed = 1 / (degree + 1) - (weights * nodes**degree).sum().item()
    assert missed == pytest.approx(known, rel=1e-6, abs=1e-15)


def test_the_bias_of_quadrature_shrinks_with_the_nodes_and_ends_where_the_rule_is_exact() -> None:
    # Eight tokens; the cost of a masked token grows with the number of masked ones, plus a random
    # amount.
    masks = torch.tensor(list(product([False, True], repeat=8)))
    count = masks.sum(-1)
    noise = torch.rand(256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gain = -count * (0.1 + (count / 8) ** 2 + 0.1 * noise)

    # A set of l masked positions of 8 has ∫ t^(l-1) (1-t)^(8-l) dt = (l-1)! (8-l)! / 8!, and at a
    # node w/t t^l (1-t)^(8-l).
    exact = sum(
        factorial(c - 1) * factorial(8 - c) / factorial(8) * g
        for c, g in zip(count.tolist(), gain.tolist(), strict=True)
        if c
    )
    bias = []
    for num_nodes in range(1, 6):
        nodes, weights = gauss_legendre(num_nodes)
        t = nodes.unsqueeze(-1)
        probability = t**count * (1 - t) ** (8 - count)
        bias.append(abs(((weights / nodes).unsqueeze(-1) * probability * gain).sum().item() - exact))
    assert bias[0] > 0.05
    assert bias[1] < bias[0] / 2
    assert bias[2] < bias[1] / 2
    assert bias[2] > 1e-6
    assert max(bias[3:]) < 1e-12, "degree 7 is exact from four nodes on"


def test_invalid_numbers_of_draws_are_refused() -> None:
    generator = torch.Generator()
    for num_draws, least in ((0, 1), (2, 2)):
        with pytest.raises(ValueError, match=f"num_draws = {num_draws}, least = {least}"):
            stratified_counts(torch.tensor([3]), num_draws, least, generator)
    with pytest.raises(ValueError, match=r"\(2, 1\), \(1, 3\)"):
        unchecked(masks_of_counts)(torch.ones(2, 1), torch.ones(1, 3, dtype=torch.bool), generator)
    with pytest.raises(ValueError, match="got 0"):
        gauss_legendre(0)

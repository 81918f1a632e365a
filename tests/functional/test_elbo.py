"""The masked-diffusion bound: its exact expectation on three positions, and the two draws that it needs."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from unmask.functional.elbo import elbo, mask_at_times, stratified_times

JOINT = torch.tensor([0.05, 0.2, 0.1, 0.15, 0.25, 0.05, 0.12, 0.08], dtype=torch.float64).view(2, 2, 2)
"""p(x) of three binary tokens, far from independent."""

SEQUENCE = (1, 0, 0)

MASKS = torch.tensor(list(product([False, True], repeat=3)))


def conditional_logprob(is_masked: Tensor) -> Tensor:
    """[3] float64: log p(x_i | the unmasked tokens of SEQUENCE) under JOINT, for masked i; NaN elsewhere."""
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
    """∫ over t in (0, 1) of the mean over masks: a polynomial of degree 2 in t, so two Gauss nodes are exact."""
    num_masked = MASKS.sum(-1).double()
    total = 0.0
    for t in (0.5 - 0.5 / 3**0.5, 0.5 + 0.5 / 3**0.5):
        probability = t**num_masked * (1 - t) ** (3 - num_masked)
        total += 0.5 * (probability * estimate_at(torch.full((8,), t, dtype=torch.float64))).sum().item()
    return total


def test_with_exact_conditionals_the_expected_elbo_is_the_log_probability():
    # Averaged over orders the conditionals telescope (chain rule), so the bound is tight: ELBO = log p(x).
    log_p = JOINT[SEQUENCE].log().item()
    assert exact_expectation(lambda t: elbo(CONDITIONALS, MASKS, t)) == pytest.approx(log_p, abs=1e-14)
    # The control: without the weight 1/t it is something else.
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
    # The control: masks drawn at other times than those they are weighted by.
    shuffled = elbo(CONDITIONALS[index], is_masked, times.flip(0))
    assert abs(shuffled.mean().item() - log_p) > 0.5


def test_the_estimate_by_hand_ignores_what_is_not_masked():
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


def test_arguments_that_make_no_sense_are_refused():
    generator = torch.Generator()
    for count, low in ((0, 0.1), (4, 0.0), (4, 1.0)):
        with pytest.raises(ValueError, match=f"count = {count}, low = {low}"):
            stratified_times(count, low, generator)
    with pytest.raises(ValueError, match=r"\(3,\), \(2, 4\)"):
        mask_at_times(torch.zeros(3), torch.ones(2, 4, dtype=torch.bool), generator)
    with pytest.raises(ValueError, match=r"\(2, 4\), \(2, 4\), \(3,\)"):
        elbo(torch.zeros(2, 4), torch.ones(2, 4, dtype=torch.bool), torch.ones(3))

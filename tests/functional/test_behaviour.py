"""Importance weights of the behaviour policy: by hand, by closed form, and at extreme values."""

from __future__ import annotations

import math

import pytest
import torch

from unmask.functional.behaviour import behaviour_weight, effective_share


def weights(ratios, tokens=None, **options):
    log_ratio = torch.tensor(ratios, dtype=torch.float64).log()
    return behaviour_weight(log_ratio, torch.tensor(tokens or [1] * len(ratios)), **options)


def test_without_options_the_weight_is_the_ratio():
    weight, is_truncated, is_masked = weights([0.25, 1.0, 8.0])
    torch.testing.assert_close(weight, torch.tensor([0.25, 1.0, 8.0], dtype=torch.float64), rtol=1e-14, atol=0)
    assert not is_truncated.any()
    assert not is_masked.any()


def test_the_cap_bounds_the_weight_from_above_only():
    weight, is_truncated, _ = weights([0.25, 1.9, 2.1, 8.0], cap=2.0)
    torch.testing.assert_close(weight, torch.tensor([0.25, 1.9, 2.0, 2.0], dtype=torch.float64), rtol=1e-14, atol=0)
    assert is_truncated.tolist() == [False, False, True, True]


@pytest.mark.parametrize(
    ("ratio", "tokens", "is_masked"),
    [
        (0.4, 1, True),
        (0.6, 1, False),
        (4.9, 1, False),
        (5.1, 1, True),
        (0.4, 2, False),  # the geometric mean of two tokens is 0.63
        (0.2, 2, True),
        (20.0, 2, False),
        (30.0, 2, True),
    ],
)
def test_the_band_bounds_the_geometric_mean_of_a_units_tokens(ratio, tokens, is_masked):
    weight, _, masked = weights([ratio], [tokens], band=(0.5, 5.0))
    assert masked.tolist() == [is_masked]
    assert weight.item() == pytest.approx(0.0 if is_masked else ratio, rel=1e-14)


def test_a_masked_unit_does_not_count_as_truncated():
    _, is_truncated, is_masked = weights([3.0, 10.0], cap=2.0, band=(0.5, 5.0))
    assert is_truncated.tolist() == [True, False]
    assert is_masked.tolist() == [False, True]


def test_a_ratio_beyond_the_range_of_float32_has_the_weight_of_the_cap():
    log_ratio = torch.tensor([1e4, -1e4])
    assert behaviour_weight(log_ratio, torch.ones(2, dtype=torch.long), cap=2.0)[0].tolist() == [2.0, 0.0]
    assert behaviour_weight(log_ratio, torch.ones(2, dtype=torch.long), band=(0.5, 2.0))[0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("options", [{"cap": 0.5}, {"cap": -1.0}, {"band": (1.5, 2.0)}, {"band": (-0.1, 2.0)}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        weights([1.0], **options)


def test_the_mean_weight_under_the_behaviour_policy_is_one_and_truncation_lowers_it():
    behaviour = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    old = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    ratio = (old / behaviour).tolist()
    assert float((behaviour * weights(ratio)[0]).sum()) == pytest.approx(1.0, abs=1e-15)
    # Only the third ratio, 5, is above 2: 0.2 + 0.3 + 0.1 * 2.
    assert float((behaviour * weights(ratio, cap=2.0)[0]).sum()) == pytest.approx(0.7, abs=1e-15)


def test_the_effective_share_has_the_closed_form_of_lognormal_weights():
    # E[w]² / E[w²] = exp(-s²) if log w has variance s².
    deviation = 0.6
    log_weight = deviation * torch.randn(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight = log_weight.exp()
    total, squares, count = float(weight.sum()), float(weight.square().sum()), float(len(weight))
    share = effective_share(total, squares, count)
    assert share == pytest.approx(math.exp(-(deviation**2)), rel=0.01)
    assert effective_share(3 * total, 9 * squares, count) == pytest.approx(share)

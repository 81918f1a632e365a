"""Ridge regression from second moments, against numpy's least squares on the samples themselves."""

from __future__ import annotations

import numpy
import pytest
import torch

from unmask.functional.least_squares import ridge_regression, second_moments

EXACT = {"rtol": 0.0, "atol": 1e-10}


def samples(count=40, width=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, width, generator=generator, dtype=torch.float64) * torch.arange(1.0, width + 1) + 3
    target = features @ torch.linspace(-1, 1, width, dtype=torch.float64) + 2
    noise = torch.randn(count, generator=generator, dtype=torch.float64)
    return features, target + noise, torch.rand(count, generator=generator, dtype=torch.float64) + 0.1


def by_numpy(features, target, weight, ridge):
    """Return intercept and slopes by least squares on samples and, for the penalty, further samples of 0."""
    mean = (weight.unsqueeze(-1) * features).sum(0) / weight.sum()
    variance = (weight.unsqueeze(-1) * (features - mean).square()).sum(0) / weight.sum()
    rows = torch.cat([torch.ones(len(target), 1), features], dim=1) * weight.sqrt().unsqueeze(-1)
    penalty = (ridge * variance).sqrt().diag()
    left = torch.cat([rows, torch.cat([torch.zeros(len(penalty), 1), penalty], dim=1)])
    right = torch.cat([target * weight.sqrt(), torch.zeros(len(penalty))])
    solution = torch.from_numpy(numpy.linalg.lstsq(left.numpy(), right.numpy(), rcond=None)[0])
    return solution[0], solution[1:]


@pytest.mark.parametrize("ridge", [0.0, 2.5, 100.0])
def test_it_is_the_penalised_least_squares_of_the_samples(ridge):
    features, target, weight = samples()
    intercept, slopes = ridge_regression(second_moments(features, target, weight), ridge)
    expected, expected_slopes = by_numpy(features, target, weight, ridge)
    torch.testing.assert_close(slopes, expected_slopes, rtol=0, atol=1e-6)
    torch.testing.assert_close(intercept, expected, rtol=0, atol=1e-5)
    if ridge:
        without = by_numpy(features, target, weight, 0.0)[1]
        assert (slopes - without).norm() > 0.01, "the penalty counts"


def test_moments_add_up():
    features, target, weight = samples()
    parts = [second_moments(features[i::2], target[i::2], weight[i::2]) for i in range(2)]
    torch.testing.assert_close(parts[0] + parts[1], second_moments(features, target, weight), **EXACT)


@pytest.mark.parametrize("factors", [torch.full((5,), 1000.0), torch.tensor([1.0, 1.0, 1000.0, 1e-3, 1.0])])
def test_the_scale_of_no_feature_counts(factors):
    features, target, weight = samples()
    small, large = (ridge_regression(second_moments(c * features, target, weight), 3.0) for c in (1.0, factors))
    torch.testing.assert_close(large[1] * factors, small[1], rtol=1e-8, atol=0)
    torch.testing.assert_close(large[0], small[0], rtol=1e-8, atol=0)


def test_without_samples_it_is_zero_and_with_a_large_ridge_the_mean():
    features, target, weight = samples()
    intercept, slopes = ridge_regression(torch.zeros(7, 7, dtype=torch.float64), 3.0)
    assert float(intercept) == 0
    assert not slopes.any()
    intercept, slopes = ridge_regression(second_moments(features, target, weight), 1e12)
    assert float(intercept) == pytest.approx(float((weight * target).sum() / weight.sum()))
    assert slopes.abs().max() < 1e-9


@pytest.mark.parametrize("ridge", [0.0, 3.0])
def test_constant_and_equal_features_give_finite_slopes(ridge):
    features, target, weight = samples()
    features = torch.cat([features, features, torch.full_like(features, 7.0)], dim=1)
    intercept, slopes = ridge_regression(second_moments(features, target, weight), ridge)
    fitted, single = intercept + features @ slopes, by_numpy(features[:, :5], target, weight, 0.0)
    assert fitted.isfinite().all()
    if not ridge:
        torch.testing.assert_close(fitted, single[0] + features[:, :5] @ single[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_features_that_do_not_vary_leave_the_mean(seed):
    # The scatter is then the difference of equal numbers, which rounding leaves at noise of either sign.
    generator = torch.Generator().manual_seed(seed)
    row, target = torch.randn(1, 64, generator=generator), (torch.arange(48) % 3 == 0).float()
    moments = second_moments(row.expand(48, -1), target, torch.full((48,), 1 / 3))
    noise = torch.randn(66, 66, generator=generator, dtype=torch.float64)
    moments *= 1 + 1e-15 * (noise + noise.mT)
    intercept, slopes = ridge_regression(moments, 128.0)
    assert float(intercept) == pytest.approx(1 / 3)
    assert not slopes.any()

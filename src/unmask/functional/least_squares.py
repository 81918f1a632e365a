"""Ridge regression from second moments, which can be added up over batches, ranks and time."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

CONSTANT = 1e-8
"""Variance of a feature, as a share of its mean square, below which it counts as constant."""
COLLINEAR = 1e-7
"""Penalty that is added to `ridge`, as a share of the samples. It keeps the equations regular without a
ridge if features depend on each other: it is above the rounding error of a correlation, which is
largest, about 1e-8, if the variances are near `CONSTANT`."""


def second_moments(
    features: Float[Tensor, "n D"], target: Float[Tensor, "n"], weight: Float[Tensor, "n"]
) -> Float[Tensor, "E E"]:
    """Compute the weighted second moments Σ_i w_i z_i z_iᵀ of z = (1, features, target).

    They are all that a linear regression needs to know of its samples. Moments of two sets of samples
    add up, and moments times γ < 1 forget.

    Args:
        features: [n, D] real.
        target: [n] real.
        weight: [n] weights >= 0.

    Returns:
        [E, E] float64 with E = D + 2; the first entry is the sum of the weights.

    Example:
        >>> second_moments(torch.tensor([[2.0]]), torch.tensor([3.0]), torch.tensor([1.0]))
        tensor([[1., 2., 3.],
                [2., 4., 6.],
                [3., 6., 9.]], dtype=torch.float64)
    """
    z = torch.cat([torch.ones_like(target).unsqueeze(-1), features, target.unsqueeze(-1)], dim=1).double()
    return z.mT @ (z * weight.double().unsqueeze(-1))


def ridge_regression(moments: Float[Tensor, "E E"], ridge: float) -> tuple[Float[Tensor, ""], Float[Tensor, "D"]]:
    """Return the intercept a and the slopes w of the linear function a + w·φ that minimises
    Σ_i w_i (y_i - a - w·φ_i)² + ridge Σ_j v_j w_j², where v_j is the variance of feature j.

    The intercept is not penalised, so with a large ridge the function is the mean of the targets. The
    penalty depends on the scale of no feature. If the features are uncorrelated, it weighs as much as
    `ridge` further samples that show no slope. A feature counts as constant, and its slope is 0, if its
    standard deviation is below 1e-4 of its root mean square.

    Args:
        moments: [E, E] float64 second moments of (1, features, target), E = D + 2; see
            `second_moments`.
        ridge: strength >= 0 of the penalty, in the unit of the sample weights.

    Returns:
        The intercept, 0-dim, and the slopes, [D], float64. Both are 0 without samples.

    Example:
        >>> moments = second_moments(torch.tensor([[0.0], [2.0]]), torch.tensor([1.0, 5.0]), torch.ones(2))
        >>> intercept, slopes = ridge_regression(moments, 2.0)
        >>> round(float(intercept), 4), round(float(slopes), 4)
        (2.0, 1.0)
    """
    total = torch.where(moments[0, 0] > 0, moments[0, 0], 1.0)
    mean = moments[0] / total
    centred = moments[1:, 1:] - torch.outer(mean[1:], moments[0, 1:])
    scatter, covariation = centred[:-1, :-1], centred[:-1, -1]
    # The scatter of a constant feature is what rounding leaves of the difference of equal numbers.
    varies = scatter.diagonal() > CONSTANT * moments.diagonal()[1:-1]
    scale = torch.where(varies, scatter.diagonal(), torch.inf).rsqrt()
    correlation = scatter.mul_(scale).mul_(scale.unsqueeze(-1))
    correlation.diagonal().add_(ridge / total + COLLINEAR)
    slopes = scale * torch.linalg.solve(correlation, scale * covariation)
    return mean[-1] - slopes @ mean[1:-1], slopes

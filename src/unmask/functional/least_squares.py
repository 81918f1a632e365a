"""Ridge regression from second moments, which can be added up over batches, ranks and time."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


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
    Σ_i w_i (y_i - a - w·φ_i)² + ridge v |w|², where v is the mean variance of a feature.

    The intercept is not penalised, so with a large ridge the function is the mean of the targets. The
    penalty does not depend on the scale of the features, and weighs as much as `ridge` further
    samples of slope 0.

    Args:
        moments: [E, E] float64 second moments of (1, features, target), E = D + 2; see
            `second_moments`.
        ridge: strength >= 0 of the penalty, in the unit of the sample weights.

    Returns:
        The intercept, 0-dim, and the slopes, [D], float64. Both are 0 without samples.

    Example:
        >>> moments = second_moments(torch.tensor([[0.0], [2.0]]), torch.tensor([1.0, 5.0]), torch.ones(2))
        >>> ridge_regression(moments, 0.0)
        (tensor(1., dtype=torch.float64), tensor([2.], dtype=torch.float64))
    """
    total = moments[0, 0].clamp(min=torch.finfo(moments.dtype).tiny)
    mean = moments[0] / total
    centred = moments[1:, 1:] - torch.outer(mean[1:], moments[0, 1:])
    scatter, covariation = centred[:-1, :-1], centred[:-1, -1]
    spread = scatter.diagonal().mean() / total
    # A penalty far below rounding keeps the system regular if some features are constant.
    penalty = (ridge + 1e-9 * float(total)) * spread + torch.finfo(moments.dtype).tiny
    identity = torch.eye(len(scatter), dtype=moments.dtype, device=moments.device)
    slopes = torch.linalg.solve(scatter + penalty * identity, covariation)
    return mean[-1] - slopes @ mean[1:-1], slopes

"""Functions that turn values of views (masked versions of a completion) into values of
completions."""

from __future__ import annotations

from jaxtyping import Float, Int, Real
from torch import Tensor


def sum_by_completion(value: Real[Tensor, "N"], row: Int[Tensor, "N"]) -> Real[Tensor, "B"]:
    """Sum a value over the views of each completion.

    Args:
        value: [N] real, differentiable.
        row: [N] int completion of each view.

    Returns:
        One number for each completion that has a view, in ascending order.

    Example:
        >>> import torch
        >>> sum_by_completion(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([3, 0, 3]))
        tensor([2., 5.])
    """
    completion, index = row.unique(return_inverse=True)
    return value.new_zeros(len(completion)).index_add(0, index, value)


def one_by_completion(value: Real[Tensor, "N"], row: Int[Tensor, "N"]) -> Real[Tensor, "B"]:
    """Return the value that all views of a completion share.

    Args:
        value: [N] values, equal for views of one completion.
        row: [N] int completion of each view.

    Returns:
        One value for each completion that has a view, in ascending order.

    Example:
        >>> import torch
        >>> one_by_completion(torch.tensor([1.0, 2.0, 1.0]), torch.tensor([3, 0, 3]))
        tensor([2., 1.])
    """
    completion, index = row.unique(return_inverse=True)
    return value.new_zeros(len(completion)).scatter(0, index, value)


def mean_of_others(value: Float[Tensor, "B"], group: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
    """Compute the mean of a value over the other completions of each group.

    Args:
        value: [B] real.
        group: [B] int group of each completion.

    Returns:
        [B] real; 0 for a completion that is alone in its group.

    Example:
        >>> import torch
        >>> mean_of_others(torch.tensor([1.0, 2.0, 6.0, 5.0]), torch.tensor([0, 0, 0, 7]))
        tensor([4.0000, 3.5000, 1.5000, 0.0000])
    """
    _, index, count = group.unique(return_inverse=True, return_counts=True)
    total = value.new_zeros(len(count)).index_add(0, index, value)
    others: Tensor = (total[index] - value) / (count[index] - 1).clamp(min=1)
    return others

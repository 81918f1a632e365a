"""Functions that turn values of views (masked versions of a completion) into values of
completions."""

from __future__ import annotations

from jaxtyping import Int, Real
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

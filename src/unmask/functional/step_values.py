"""Values of the states along a path, for the steps that a method trains."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int, Real
from torch import Tensor


def next_value(
    reward: Real[Tensor, "B"], value: Real[Tensor, "B K"], is_valid: Bool[Tensor, "B K"]
) -> Real[Tensor, "B K"]:
    """Return the value of the state after each step, V(x_{k+1}), from the values of the states
    before all steps.

    Args:
        reward: [B] rewards of the finished completions, which are the values after the last steps.
        value: [B, K] value V(x_k) of the state before each step, in order of time.
        is_valid: [B, K] bool, False in empty slots, which come last.

    Returns:
        [B, K] of value's dtype; not defined in an empty slot.

    Example:
        >>> value, is_valid = torch.tensor([[0.0, 0.5, 0.2], [0.1, 0.0, 0.0]]), torch.tensor([[True] * 3, [True, False, False]])
        >>> next_value(torch.tensor([1.0, 0.3]), value, is_valid)[is_valid]
        tensor([0.5000, 0.2000, 1.0000, 0.3000])
    """
    # The state after a step is the state before the next step. After the last step it is the
    # finished completion.
    after = torch.cat([value[:, 1:], value[:, :1]], dim=1)
    is_last = is_valid & ~torch.cat([is_valid[:, 1:], torch.zeros_like(is_valid[:, :1])], dim=1)
    return torch.where(is_last, reward.unsqueeze(-1), after)


def of_steps(value: Real[Tensor, "B C"], kept: Int[Tensor, "B C"], steps: Int[Tensor, "B K"]) -> Real[Tensor, "B K"]:
    """Return the values of chosen steps from the values of more steps.

    Args:
        value: [B, C] values of the steps `kept`.
        kept: [B, C] int steps.
        steps: [B, K] int steps, each of which is one of `kept`; -1 in an empty slot.

    Returns:
        [B, K] of value's dtype; that of any step in an empty slot.

    Example:
        >>> of_steps(torch.tensor([[0.1, 0.2, 0.3]]), torch.tensor([[0, 1, 2]]), torch.tensor([[2, 0]]))
        tensor([[0.3000, 0.1000]])
    """
    return value.gather(1, (kept.unsqueeze(1) == steps.unsqueeze(-1)).int().argmax(-1))


def sum_to_come(value: Real[Tensor, "n"], row: Int[Tensor, "n"]) -> Real[Tensor, "n"]:
    """Return for each part of a path the sum of a value over this part and all later parts.

    Args:
        value: [n] values of parts of paths, those of a path next to each other and in order of time.
        row: [n] int path of each part.

    Returns:
        [n] of value's dtype.

    Example:
        >>> sum_to_come(torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([0, 0, 0, 5]))
        tensor([7., 6., 4., 8.])
    """
    _, index, count = row.unique_consecutive(return_inverse=True, return_counts=True)
    # In float64, because the running sum covers all paths.
    up_to = value.double().cumsum(0)
    last = count.cumsum(0) - 1
    return (up_to[last][index] - up_to + value).to(value.dtype)

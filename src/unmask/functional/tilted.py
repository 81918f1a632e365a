"""Self-normalised weights of the completions of a group, as samples of another distribution."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor


def softmax_by_group(logits: Float[Tensor, "B"], group: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
    """Compute the softmax over the members of each group.

    Args:
        logits: [B] real.
        group: [B] int number of the group of each completion.

    Returns:
        [B] of logits' dtype; the sum over each group is 1.

    Example:
        >>> softmax_by_group(torch.tensor([3.0, 0.0, 0.0]), torch.tensor([5, 2, 2]))
        tensor([1.0000, 0.5000, 0.5000])
    """
    number, index = group.unique(return_inverse=True)
    largest = logits.new_full((len(number),), -torch.inf).scatter_reduce(0, index, logits, "amax")
    mass = (logits - largest[index]).exp()
    return mass / mass.new_zeros(len(number)).index_add(0, index, mass)[index]


def tilted_weights(
    log_ratio: Float[Tensor, "B"], tilt: Real[Tensor, "B"], group: Int[Tensor, "B"], centring: float
) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
    """Weigh the completions of a group as samples of a tilted distribution: w+ - c w- with w± =
    softmax(l ± r) over the group.

    With l = log(π_ref/π_old) of a sample of π_old, w+ is its self-normalised importance weight for
    π_ref exp(r) / Z, the optimum of KL-regularised RL, and w- that for π_ref exp(-r) / Z. DMPO
    (arXiv:2510.08233) subtracts the second. With l = 0 and c = 1 the result is `softmax_advantage`
    divided by the size of the group.

    Args:
        log_ratio: [B] nats: log-ratios l of the reference to the sampling policy.
        tilt: [B] rewards r divided by their temperature; a constant in each group has no effect.
        group: [B] int number of the group of each completion.
        centring: weight c >= 0 of w-.

    Returns:
        Two [B] of log_ratio's dtype: the weights, and w+ alone.

    Example:
        >>> tilted_weights(torch.zeros(2), torch.tensor([1.0, 0.0]), torch.tensor([0, 0]), 1.0)[0]
        tensor([ 0.4621, -0.4621])
    """
    wanted, unwanted = (softmax_by_group(log_ratio + sign * tilt.to(log_ratio.dtype), group) for sign in (1, -1))
    return wanted - centring * unwanted, wanted

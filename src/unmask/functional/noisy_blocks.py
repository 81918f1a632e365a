"""Noisy blocks of a masked completion under block-causal attention: which blocks a log-probability
depends on, and how many of them share one clean completion at the least cost.

Under block-causal attention a block attends to itself and to earlier blocks. The log-probabilities
of a masked completion therefore depend on the blocks that hold their positions, on masked blocks
before these, and on the clean past. Versions of a completion can share the forward pass of the
clean past (block diffusion, arXiv:2503.09573).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def noisy_spans(
    hidden: Bool[Tensor, "N L"], target: Bool[Tensor, "N L"], sees_clean_past: Bool[Tensor, "N"], block_length: int
) -> tuple[Int[Tensor, "n"], Int[Tensor, "n"], Int[Tensor, "n"]]:
    """Return the spans of blocks of each view (a masked version of a completion) that have to run, so
    that the log-probabilities of its targets can be read.

    If a view sees the clean past, each block that holds a target is a span, whatever is masked in
    earlier blocks. Otherwise there is one span, from the first block with a mask to the last block
    with a target. A view without targets has the span of its first block.

    Args:
        hidden: [N, L] bool, masked positions of the views.
        target: [N, L] bool, positions whose log-probabilities are read; a subset of `hidden`.
        sees_clean_past: [N] bool.
        block_length: number of positions in a block of the model, which divides L.

    Returns:
        Three [n] int64, in the order of the views and of their positions: the view of each span, its
        first position, and the position after its last.

    Raises:
        ValueError: the blocks do not divide the completion.

    Example: a target in blocks 1 and 3, and block 0 masked without a target

        >>> hidden = torch.tensor([[True, False, True, True, False, False, False, True]]).expand(2, -1)
        >>> target = hidden & (torch.arange(8) > 1)
        >>> for values in noisy_spans(hidden, target, torch.tensor([False, True]), 2):
        ...     print(values)
        tensor([0, 1, 1])
        tensor([0, 2, 6])
        tensor([8, 4, 8])
    """
    num_views, length = target.shape
    if block_length < 1 or length % block_length:
        raise ValueError(f"noisy_spans: blocks of {block_length} positions do not divide {length} positions")
    masked, read = (mask.view(num_views, -1, block_length).any(-1) for mask in (hidden, target))
    read[:, 0] |= ~read.any(-1)
    number = torch.arange(read.shape[1], device=read.device)
    last = number.masked_fill(~read, -1).amax(-1)
    first = torch.minimum(number.masked_fill(~masked, read.shape[1]).amin(-1), last)
    # A span begins at every target block, or only at the first masked block.
    begins = torch.where(sees_clean_past.unsqueeze(-1), read, number == first.unsqueeze(-1))
    view, begin = begins.nonzero(as_tuple=True)
    end = torch.where(sees_clean_past[view], begin, last[view])
    return view, begin * block_length, (end + 1) * block_length


def cheapest_noisy_columns(num_clean: int, width: int) -> int:
    """Return the number of noisy columns behind `num_clean` clean ones at which a noisy column costs
    least.

    The matrices of a transformer layer take about 24 D² operations for a column, and its attention
    4 D for each column that it attends to. A sequence of C clean and N noisy columns thus costs (C +
    N) (1 + (C + N) / κ) in units of the former, where κ = 6 D. The cost of a noisy column is this
    number divided by N, which has its minimum at N² = C² + κ C: with few copies the clean columns
    dominate, and with many copies the attention.

    Args:
        num_clean: number of columns C of the prompt and the clean completion.
        width: size D of the hidden states.

    Example:
        >>> cheapest_noisy_columns(256, 64), cheapest_noisy_columns(512, 4096)
        (404, 3584)
    """
    return math.isqrt(num_clean**2 + 6 * width * num_clean)

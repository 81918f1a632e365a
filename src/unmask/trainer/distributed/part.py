"""What one rank holds of a tensor."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Part(NamedTuple):
    """What this rank holds of a tensor."""

    values: Tensor
    """The whole tensor, or, if the ranks share it, a flat part of it."""
    start: int | None = None
    """Index of the part's first element in the flattened tensor; None if every rank holds the whole
    tensor."""

"""What an order sees at a step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Proposal:
    """Tokens proposed for n positions of each of B rows, before it is decided which of them are committed."""

    logits: Tensor
    """[B, n, V] at temperature 1; MASK is -inf."""
    tokens: Tensor
    """[B, n] int64, drawn at the sampling temperature."""
    positions: Tensor
    """[B, n] int64, in the completion."""
    seed: Tensor
    """[B] int64, the rows' seeds."""
    step: int
    """k."""
    temperature: float = 1.0
    """Of an order that draws positions."""

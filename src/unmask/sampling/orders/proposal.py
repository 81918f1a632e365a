"""Input of an order at a denoising step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Proposal:
    """Tokens proposed for n positions of each of B rows, before the choice of those that are
    committed."""

    logits: Tensor
    """[B, n, V]: logits at temperature 1; MASK is -inf."""
    tokens: Tensor
    """[B, n] int64: tokens drawn at the sampling temperature."""
    positions: Tensor
    """[B, n] int64: positions in the completion."""
    seed: Tensor
    """[B] int64: seeds of the rows."""
    step: Tensor
    """[B, 1] int64: denoising step k of each row. Under an adaptive schedule the rows of a batch may
    be at different steps."""
    temperature: float = 1.0
    """Temperature of an order that draws positions."""
    score: Tensor | None = None
    """[B, n]: scores of the model's position head; None if the order reads none."""
    is_greedy: bool = False
    """True if the sampling temperature is 0, so that nothing but an order's own noise is random."""

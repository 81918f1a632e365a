"""Interface between the sampler and a model: what a forward pass takes and what it keeps.

In the test run, the annotated shapes and types are checked whenever a record is made. That check
needs evaluated annotations, so this module does not use `from __future__ import annotations`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(slots=True)
class KeyValueCache:
    """Keys and values that earlier forward passes of a batch computed, for the columns that a
    forward pass does not run again."""

    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Keys and values of each layer, [B, heads, S, head width] each; empty before the first forward
    pass, which runs all columns."""

    @property
    def length(self) -> int:
        """Number of columns S."""
        return self.layers[0][0].shape[2] if self.layers else 0

    def rows(self, index: Tensor) -> "KeyValueCache":
        """Return a copy of the rows at `index`."""
        return KeyValueCache([(keys[index], values[index]) for keys, values in self.layers])

    def joined(self, other: "KeyValueCache", order: Tensor) -> "KeyValueCache":
        """Return the rows of both caches, with row `order[i]` of their concatenation at i."""
        pairs = zip(self.layers, other.layers, strict=True)
        return KeyValueCache(
            [(torch.cat([a, c])[order], torch.cat([b, d])[order]) for (a, b), (c, d) in pairs],
        )


@dataclass(frozen=True, slots=True)
class NoisyCopies:
    """Columns of a forward pass of a block-causal model that scores several masked versions of one
    completion: the prompt, the clean completion, and noisy copies of some blocks of the completion.

    A column of the prompt or of the clean completion attends as usual. A column of a copy attends to
    the prompt, to the clean blocks before the first block of the copy, and to the blocks of the copy
    up to its own. A copy is therefore scored as if it alone followed the clean blocks before it.
    """

    position: Int[Tensor, "B S"]
    """[B, S] int64: position that the column holds, counted from the first of the completion. The
    positions of the prompt are -P to -1, and they are the first P columns."""
    copy: Int[Tensor, "B S"]
    """[B, S] int64: 0 for the prompt and the clean completion, -1 for columns that only pad the
    width, and otherwise the number of the copy, from 1 in each row. The columns of a copy are
    adjacent, in the order of their positions."""
    start: Int[Tensor, "B S"]
    """[B, S] int64: first position of the copy that holds the column, which starts a block; 0 outside
    the copies."""


class DenoiserLike(Protocol):
    """Interface of a model as the sampler sees it: logits at chosen positions of a partially masked
    sequence."""

    mask_id: int
    eos_id: int

    def __call__(self, ids: Tensor, attention_mask: Tensor | None, positions: Tensor) -> Tensor:
        """Compute logits at the given positions, at temperature 1.

        A denoiser with a cache also takes `cache`, a `KeyValueCache`, and `begin`, the first column
        that it runs; see `Denoiser.forward`. A block-causal denoiser has an attribute
        `block_length`, needs a cache, and takes `copies`, a `NoisyCopies`. A denoiser with a position
        head has an attribute `position_head` and takes `scores`: if True, it returns a pair of the
        logits and [B, n] scores.

        Args:
            ids: [B, S] int64 prompt and completion tokens, MASK at masked positions.
            attention_mask: [B, S] bool, False at padding; None if there is no padding.
            positions: [B, n] int64 columns of prompt and completion.

        Returns:
            [B, n, V] logits, a new tensor, into which the caller may write.
        """
        ...


@dataclass(frozen=True, slots=True)
class Readout:
    """A function of the logits of each position, which a denoiser can compute in chunks of
    positions."""

    function: Callable[[Tensor, Tensor], Tensor]
    """Maps [n, V] logits at temperature 1 and [n, M] inputs to [n, c] values, each position
    independently of the others."""
    is_read: Bool[Tensor, "B N"] | tuple[Int[Tensor, "n"], Int[Tensor, "n"]]
    """[B, N] bool: which of the requested positions are read, numbered row by row from 0 to n - 1; or
    the rows and columns of these positions in the order of their numbers."""
    inputs: Int[Tensor, "n M"]
    """[n, M] int64: further inputs of the function, such as the tokens whose probabilities it
    returns."""
    chunk_size: int
    """Maximum number of positions whose logits exist at the same time."""
    temperature: float | None = None
    """Set if the function returns the log-probabilities of the inputs at this temperature. A linear
    head then computes them without calling the function."""
    forbidden: int | None = None
    """Token whose probability is 0 in these log-probabilities."""

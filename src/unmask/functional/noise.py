"""Random numbers that are a function of what they are for, not of how many were drawn before.

A `torch.Generator` gives numbers in the order of the calls, so the draw of one completion depends on which others
share its batch, and on the device. Here each draw is a hash of its keys (the row's seed, the step, the position, a
purpose): batches can be split, merged, resumed and ended early without a change to any row.

The hash is splitmix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014): its
increment, then its 64-bit finaliser, once for each key.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

TOKEN_STREAM, ORDER_STREAM, SELECTION_STREAM, BRANCH_STREAM, CONTINUATION_STREAM = range(5)
"""Purposes of a row's draws, as the key after its seed: tokens, positions, steps to train, other fills of a state, seeds of
continuations from a state."""


def _signed(value: int) -> int:
    """The int64 with the low 64 bits of `value`."""
    return (value + 2**63) % 2**64 - 2**63


_INCREMENT = _signed(0x9E3779B97F4A7C15)
_ROUNDS = ((30, _signed(0xBF58476D1CE4E5B9)), (27, _signed(0x94D049BB133111EB)), (31, 1))


def _shift(bits: Tensor, count: int) -> Tensor:
    """Logical right shift; int64's own fills with the sign bit."""
    return bits.bitwise_right_shift(count).bitwise_and(2 ** (64 - count) - 1)


def counter_uniform(*keys: Tensor | int) -> Tensor:
    """Uniform numbers in [0, 1), each a hash of its integer keys.

    Folds the keys one by one, h ← splitmix64(h + key) with h = 0 at first, and reads the top 53 bits of h as a
    fraction. Equal keys give an equal number on any device and in any batch; that is why samplers draw here and not
    from a `torch.Generator`, whose numbers depend on what else shares the batch. The order of the keys matters: give
    the row's seed first, then the purpose, step and position.

    Not for secrets: the hash is easily inverted.

    Args:
        keys: ints (their low 64 bits count) or integer tensors, which broadcast against each other.

    Returns:
        float64 in [0, 1), a multiple of 2⁻⁵³, of the broadcast shape of the keys.

    Raises:
        ValueError: no key, or a key that is not an integer.

    Example:
        >>> seed = torch.tensor([[7], [8]])
        >>> u = counter_uniform(seed, 0, torch.arange(3))
        >>> u.shape, bool((u[1] == counter_uniform(8, 0, torch.arange(3))).all())
        (torch.Size([2, 3]), True)
    """
    if not keys:
        raise ValueError("counter_uniform: got no key; give at least one integer")
    bits = torch.zeros((), dtype=torch.int64)
    for key in keys:
        if isinstance(key, Tensor):
            if key.is_floating_point() or key.is_complex():
                raise ValueError(f"counter_uniform: keys must be integers; got a tensor of {key.dtype}")
            bits = bits + key.long()
        else:
            bits = bits + _signed(key)
        bits = bits + _INCREMENT  # int64 arithmetic wraps around, as the hash wants
        for count, multiplier in _ROUNDS:
            bits = (bits ^ _shift(bits, count)) * multiplier
    return _shift(bits, 11).double() * 2.0**-53


def named_generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator whose stream is a hash of a seed and what it is for, so that a resumed run needs no saved state.

    Args:
        seed: of the run.
        names: purpose, step, epoch and the like.

    Returns:
        A fresh generator; equal arguments give equal streams in every process and on every machine.

    Example:
        >>> a, b = named_generator(0, "rollout", 3), named_generator(0, "rollout", 3)
        >>> bool((torch.rand(2, generator=a) == torch.rand(2, generator=b)).all())
        True
    """
    digest = hashlib.sha256("/".join(map(str, (seed, *names))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

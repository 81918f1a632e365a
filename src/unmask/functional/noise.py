"""Random numbers that are hashes of their purpose, and so do not depend on earlier draws.

A `torch.Generator` gives numbers in the order of the calls, so the draws of one completion depend
on the other completions in its batch, and on the device. Here each draw is a hash of its keys: the
row's seed, the step, the position and the purpose. Batches can be split, merged, resumed and ended
early without a change to any row.

The hash is splitmix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators",
OOPSLA 2014): its increment, then its 64-bit finaliser, once for each key.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

TOKEN_STREAM, ORDER_STREAM, SELECTION_STREAM, BRANCH_STREAM, CONTINUATION_STREAM = range(5)
"""Purposes of a row's draws, used as the key after its seed: tokens, positions, selected steps,
branches of a state, and seeds of continuations from a state."""


def _signed(value: int) -> int:
    """Return the int64 with the low 64 bits of `value`."""
    return (value + 2**63) % 2**64 - 2**63


_INCREMENT = _signed(0x9E3779B97F4A7C15)
_ROUNDS = ((30, _signed(0xBF58476D1CE4E5B9)), (27, _signed(0x94D049BB133111EB)), (31, 1))


def _shift(bits: Tensor, count: int) -> Tensor:
    """Shift right and fill with zeros, whereas the >> of an int64 tensor fills with the sign
    bit."""
    return bits.bitwise_right_shift(count).bitwise_and(2 ** (64 - count) - 1)


def counter_uniform(*keys: Tensor | int) -> Tensor:
    """Return uniform numbers in [0, 1), each a hash of its integer keys.

    The keys are folded one by one, h ← splitmix64(h + key) starting from h = 0, and the top 53 bits
    of h are read as a fraction. Equal keys give equal numbers on any device and in any batch. The
    order of the keys matters: the row's seed comes first, then purpose, step and position.

    The hash is easily inverted, so it must not be used for secrets.

    Args:
        keys: ints, of which the low 64 bits count, or integer tensors, which are broadcast.

    Returns:
        float64 in [0, 1), multiples of 2⁻⁵³, of the broadcast shape of the keys.

    Raises:
        ValueError: there is no key, or a key is not an integer.

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
    """Return a CPU generator whose stream is a hash of a seed and a purpose, so that a resumed run
    needs no saved state.

    Args:
        seed: seed of the run.
        names: purpose of the stream, such as a name, a step and an epoch.

    Returns:
        A new generator; equal arguments give equal streams in every process and on every machine.

    Example:
        >>> a, b = named_generator(0, "rollout", 3), named_generator(0, "rollout", 3)
        >>> bool((torch.rand(2, generator=a) == torch.rand(2, generator=b)).all())
        True
    """
    digest = hashlib.sha256("/".join(map(str, (seed, *names))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

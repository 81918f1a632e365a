"""The sum of a weight and a low-rank update of it, rounded to the precision of the weight."""

from __future__ import annotations

import torch
from torch import Tensor


def merged_weight(
    weight: Tensor, a: Tensor, b: Tensor, scale: float, generator: torch.Generator | None = None
) -> Tensor:
    """Return a weight with its low-rank update added, W + s B A (arXiv:2106.09685).

    The sum is float32 and is rounded once. bfloat16 has 8 significant bits, and an update of
    training is often smaller than half the distance between two neighbouring bfloat16 numbers.
    Rounding to the nearest number then drops the update in most places, and the merged weight is
    nearly W. With a generator, the sum is rounded at random so that its expectation is exact; see
    `rounded_at_random`.

    Args:
        weight: [m, n] float, W; or [M, m, n], a stack of M weights.
        a: [r, n] float, A; or [M, r, n].
        b: [m, r] float, B; or [M, m, r].
        scale: s, which is alpha / r in LoRA.
        generator: source of the random rounding of a bfloat16 result, on the device of the weight;
            None to round to the nearest number. Results in other dtypes are always rounded to the
            nearest number.

    Returns:
        W + s B A, in the shape and the dtype of the weight.

    Example:
        >>> a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0], [10.0]])
        >>> merged_weight(torch.ones(2, 2), a, b, scale=0.5)
        tensor([[ 1.5000,  2.0000],
                [ 6.0000, 11.0000]])
    """
    add = torch.addmm if weight.dim() == 2 else torch.baddbmm
    total = add(weight.float(), b.float(), a.float(), alpha=scale)
    if generator is None or weight.dtype != torch.bfloat16:
        return total.to(weight.dtype)
    return rounded_at_random(total, generator)


def rounded_at_random(values: Tensor, generator: torch.Generator) -> Tensor:
    """Round each number to one of the two bfloat16 numbers around it, at random, such that the
    expectation of the result is the number itself (stochastic rounding; arXiv:1502.02551).

    A number at the share p of the way from the lower to the upper neighbour becomes the upper one
    with probability p. A number that bfloat16 can represent does not change.

    Args:
        values: float32, finite.
        generator: source of the random numbers, on the device of the values.

    Returns:
        bfloat16, of the shape of the values.

    Raises:
        ValueError: the values are not float32.

    Example:
        >>> values = torch.full((10_000,), 1 + 2**-8)          # half way from 1 to 1 + 2^-7
        >>> rounded = rounded_at_random(values, torch.Generator().manual_seed(0))
        >>> sorted({float(x) for x in rounded}), round(float((rounded > 1).float().mean()), 1)
        ([1.0, 1.0078125], 0.5)
    """
    if values.dtype != torch.float32:
        raise ValueError(f"rounded_at_random: the values must be float32; got {values.dtype}.")
    # A bfloat16 is the upper half of the bits of a float32. A uniform number is added to the lower
    # half, which carries into the upper half with probability p, and the lower half is cleared.
    bits = values.contiguous().view(torch.int32)
    noise = torch.randint(2**16, bits.shape, generator=generator, dtype=torch.int32, device=bits.device)
    return noise.add_(bits).bitwise_and_(-(2**16)).view(torch.float32).bfloat16()

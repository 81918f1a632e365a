"""Probability that one of k completions is right, estimated from n >= k samples."""

from __future__ import annotations

from math import comb


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Estimate the probability that at least one of k completions of an example is right, without
    bias.

    The estimate is 1 - C(n - c, k) / C(n, k), the share of sets of k among the n samples that
    contain a right one (Chen et al. 2021, arXiv:2107.03374, eq. 1). The estimate 1 - (1 - c/n)^k
    would be simpler, but it is biased downwards.

    Args:
        num_samples: number n >= 1 of independent completions.
        num_right: number c of right ones, 0 <= c <= n.
        k: size of a set, 1 <= k <= n.

    Returns:
        Number in [0, 1]; c/n for k = 1.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> pass_at_k(4, 1, 1), pass_at_k(4, 1, 2)        # 3 of the 6 pairs hold the right one
        (0.25, 0.5)
    """
    if not 0 <= num_right <= num_samples or not 1 <= k <= num_samples:
        raise ValueError(
            f"pass_at_k: needs 0 <= num_right <= num_samples and 1 <= k <= num_samples; got {num_right}, {num_samples}, {k}"
        )
    wrong_sets, sets = comb(num_samples - num_right, k), comb(num_samples, k)
    # One division of whole numbers is exact for k = 1, and avoids cancellation for large n.
    return (sets - wrong_sets) / sets

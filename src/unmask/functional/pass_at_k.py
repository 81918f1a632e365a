"""How likely it is that one of k completions is right, from n >= k samples."""

from __future__ import annotations

from math import comb


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Unbiased estimate of the probability that at least one of k completions of a row is right.

    1 - C(n - c, k) / C(n, k), the share of sets of k among the n samples that hold a right one (Chen et al. 2021,
    arXiv:2107.03374, eq. 1). Putting c/n into 1 - (1 - p)^k instead is biased downwards.

    Args:
        num_samples: n >= 1, completions drawn independently.
        num_right: c, 0 <= c <= n.
        k: 1 <= k <= n.

    Returns:
        In [0, 1]; c/n for k = 1.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> pass_at_k(4, 1, 1), pass_at_k(4, 1, 2)        # 3 of the 6 pairs hold the right one
        (0.25, 0.5)
    """
    if not 0 <= num_right <= num_samples or not 1 <= k <= num_samples:
        raise ValueError(
            f"pass_at_k: needs 0 <= num_right <= num_samples and 1 <= k <= num_samples; got {num_right}, {num_samples}, {k}"
        )
    wrong_sets, sets = comb(num_samples - num_right, k), comb(num_samples, k)
    # One division of whole numbers: exact for k = 1, and a large n cannot cancel.
    return (sets - wrong_sets) / sets

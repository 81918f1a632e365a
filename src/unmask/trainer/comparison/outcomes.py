"""Outcome of each example of an evaluation, in a compact form for cells.jsonl.

An entry has the form {"rows": 512, "samples": 1, "solved": "8f03..."}. The bits of the hexadecimal
number tell, example by example and sample by sample, whether the completion solves its example. The
first bit is the highest bit of the first digit, and the last digit is filled with zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from unmask.core.errors import RunError


def packed(solved: Sequence[bool], samples: int = 1) -> dict[str, Any]:
    """Return the entry of an evaluation.

    Args:
        solved: True for each completion that solves its example, grouped by example.
        samples: number of completions for each example.

    Example:
        >>> packed([True, False, False, False, True])
        {'rows': 5, 'samples': 1, 'solved': '88'}
    """
    bits = "".join("01"[right] for right in solved)
    digits = (bits[i : i + 4].ljust(4, "0") for i in range(0, len(bits), 4))
    return {
        "rows": len(solved) // samples,
        "samples": samples,
        "solved": "".join(f"{int(digit, 2):x}" for digit in digits),
    }


def solved_shares(entry: Mapping[str, Any]) -> Tensor:
    """Return the share of completions that solve their example, for each example of an entry.

    Returns:
        [rows] numbers in [0, 1], float64.

    Raises:
        RunError: if the entry is damaged.

    Example:
        >>> solved_shares({"rows": 2, "samples": 2, "solved": "e"}).tolist()
        [1.0, 0.5]
    """
    try:
        rows, samples, digits = entry["rows"], entry["samples"], entry["solved"]
        if min(rows, samples) < 1 or len(digits) != -(-rows * samples // 4):
            raise ValueError("the number of digits is not that of the outcomes")
        bits = "".join(f"{int(digit, 16):04b}" for digit in digits)
        right = torch.tensor([bit == "1" for bit in bits[: rows * samples]], dtype=torch.float64)
        return right.reshape(rows, samples).mean(1)
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"cells.jsonl has outcomes of examples that cannot be read: {str(dict(entry))[:80]}. Remove their line; the job then "
            "runs again."
        ) from error

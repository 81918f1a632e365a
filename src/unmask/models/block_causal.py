"""Block-causal attention (SDAR, BD3LM): a position attends to its own block and to earlier ones.

Blocks are counted from the end of the sequence, so the first block may be short. Completions
consist of whole blocks. Their first position therefore always starts a block, whatever the length
of the prompt, and left padding does not move the blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor


def block_causal_mask(
    length: int, block_length: int, attention_mask: Tensor | None, start: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return the mask that is added to attention scores: 0 where a query may attend to a key, the
    lowest number of `dtype` elsewhere.

    The mask is not boolean, because the eager attention of transformers adds any mask it gets.

    Args:
        length: length S of the whole sequence.
        block_length: number of positions in a block.
        attention_mask: [B, S] bool, False at padding; None if there is no padding.
        start: first query; the keys of earlier positions are in a cache.
        dtype: dtype of the scores.
        device: device of the result.

    Returns:
        [B, 1, S - start, S], with B = 1 if there is no padding.

    Example:
        >>> (block_causal_mask(5, 2, None, 0, torch.float32, torch.device("cpu"))[0, 0] == 0).int()
        tensor([[1, 0, 0, 0, 0],
                [1, 1, 1, 0, 0],
                [1, 1, 1, 0, 0],
                [1, 1, 1, 1, 1],
                [1, 1, 1, 1, 1]], dtype=torch.int32)
    """
    # Negative block numbers, which rise to 0 for the last block.
    block = -((length - 1 - torch.arange(length, device=device)) // block_length)
    visible = (block <= block[start:].unsqueeze(-1))[None, None]
    if attention_mask is not None:
        # Padding attends to itself: a query without keys would give NaN in half precision, and
        # spoil the keys of the next layer.
        itself = torch.eye(length, dtype=torch.bool, device=device)[start:]
        visible = (visible & attention_mask[:, None, None, :].bool()) | itself
    return torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill(~visible, torch.finfo(dtype).min)

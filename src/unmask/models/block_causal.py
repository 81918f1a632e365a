"""Block-causal attention (SDAR, BD3LM): a position sees its own block and those before it.

Blocks are counted from the end of the sequence, so the first one may be short. As completions are whole blocks, their first
position always begins one, whatever the length of the prompt, and padding on the left does not move them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def block_causal_mask(
    length: int, block_length: int, attention_mask: Tensor | None, start: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """What is added to attention scores: 0 where a query may see a key, the lowest number of `dtype` elsewhere.

    Additive and not boolean, because transformers' eager attention adds whatever it is given.

    Args:
        length: S, of the whole sequence.
        block_length: positions of a block.
        attention_mask: [B, S] bool, False at padding; None if there is none.
        start: the first query; those before it are in a cache.
        dtype: of the scores.
        device: of the result.

    Returns:
        [B, 1, S - start, S], or with 1 for B where nothing is padded.

    Example:
        >>> (block_causal_mask(5, 2, None, 0, torch.float32, torch.device("cpu"))[0, 0] == 0).int()
        tensor([[1, 0, 0, 0, 0],
                [1, 1, 1, 0, 0],
                [1, 1, 1, 0, 0],
                [1, 1, 1, 1, 1],
                [1, 1, 1, 1, 1]], dtype=torch.int32)
    """
    # Negative numbers of blocks, rising to 0 for the last one.
    block = -((length - 1 - torch.arange(length, device=device)) // block_length)
    visible = (block <= block[start:].unsqueeze(-1))[None, None]
    if attention_mask is not None:
        # Padding sees itself: a query that saw nothing would be NaN in half precision, and spoil the keys of the next layer.
        itself = torch.eye(length, dtype=torch.bool, device=device)[start:]
        visible = (visible & attention_mask[:, None, None, :].bool()) | itself
    return torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill(~visible, torch.finfo(dtype).min)

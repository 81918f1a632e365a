"""Block-causal attention (SDAR, BD3LM): a position attends to its own block and to earlier ones.

Blocks are counted from the end of the sequence, so the first block may be short. Completions
consist of whole blocks. Their first position therefore always starts a block, whatever the length
of the prompt, and left padding does not move the blocks.

Several masked versions of a completion can share a sequence with one clean version of it
(`NoisyCopies`). With a copy of every block this is the doubled sequence on which block diffusion
models are trained (arXiv:2503.09573).
"""

from __future__ import annotations

import torch
from torch import Tensor

from unmask.core.denoising import NoisyCopies


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
    return _added((block <= block[start:].unsqueeze(-1))[None, None], attention_mask, dtype)


def copies_mask(copies: NoisyCopies, block_length: int, attention_mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return the mask that is added to attention scores if a sequence holds noisy copies of blocks
    behind the clean completion; see `block_causal_mask`.

    Args:
        copies: the columns of the sequences.
        block_length: number of positions in a block.
        attention_mask: [B, S] bool, False at padding of the prompt; None if there is none.
        dtype: dtype of the scores.

    Returns:
        [B, 1, S, S].

    Example: the last prompt token, a clean block, a noisy copy of it and one of the next block

        >>> position, copy = torch.tensor([[-1, 0, 1, 0, 1, 2, 3]]), torch.tensor([[0, 0, 0, 1, 1, 2, 2]])
        >>> copies = NoisyCopies(position, copy, torch.tensor([[0, 0, 0, 0, 0, 2, 2]]))
        >>> (copies_mask(copies, 2, None, torch.float32)[0, 0] == 0).int()
        tensor([[1, 0, 0, 0, 0, 0, 0],
                [1, 1, 1, 0, 0, 0, 0],
                [1, 1, 1, 0, 0, 0, 0],
                [1, 0, 0, 1, 1, 0, 0],
                [1, 0, 0, 1, 1, 0, 0],
                [1, 1, 1, 0, 0, 1, 1],
                [1, 1, 1, 0, 0, 1, 1]], dtype=torch.int32)
    """
    block = copies.position.div(block_length, rounding_mode="floor")
    is_same = copies.copy.unsqueeze(-1) == copies.copy.unsqueeze(-2)
    is_past = copies.position.unsqueeze(-2) < copies.start.unsqueeze(-1)
    is_past &= (copies.copy > 0).unsqueeze(-1) & (copies.copy == 0).unsqueeze(-2)
    visible = (is_same & (block.unsqueeze(-2) <= block.unsqueeze(-1))) | is_past
    return _added(visible.unsqueeze(1), attention_mask, dtype)


def position_numbers(copies: NoisyCopies, attention_mask: Tensor | None) -> Tensor:
    """Return the number of each column for the model's encoding of positions, [B, S], which counts
    from the first real token. A copy has the numbers of the clean blocks."""
    numbers = copies.position - copies.position[:, :1]
    if attention_mask is not None:
        numbers = numbers - attention_mask.logical_not().sum(-1, keepdim=True)
    return numbers.clamp_min(0)


def column_before(columns: Tensor, copies: NoisyCopies) -> Tensor:
    """Return the column that precedes each of [B, n] columns: in its copy, or in the clean completion
    if the column is the first of its copy."""
    position, copy, start = (values.gather(1, columns) for values in (copies.position, copies.copy, copies.start))
    is_first = (copy > 0) & (position == start)
    return torch.where(is_first, position - copies.position[:, :1], columns) - 1


def _added(visible: Tensor, attention_mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return the mask that is added to scores, [B, 1, queries, keys], from a boolean one."""
    if attention_mask is not None:
        # Padding attends to itself: a query without keys would give NaN in half precision, and
        # spoil the keys of the next layer.
        queries, keys = visible.shape[-2:]
        itself = torch.eye(keys, dtype=torch.bool, device=visible.device)[keys - queries :]
        visible = (visible & attention_mask[:, None, None, :].bool()) | itself
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(~visible, torch.finfo(dtype).min)

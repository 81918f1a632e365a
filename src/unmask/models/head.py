"""The head of a model, evaluated in chunks of positions to save memory.

The [n, V] logits of a language model take more memory than its activations, and the log-probability
of a token needs only one number out of V. The head, the softmax and the function of the logits
therefore run on a few positions at a time, and the backward pass recomputes them. Libraries that
fuse the head into a cross-entropy do not support temperature, top-k and top-p, or several tokens
per position. This module supports every `Readout`, on any device, with the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from unmask.core.records import Readout


def head_in_chunks(head: Callable[[Tensor], Tensor], hidden: Tensor, readout: Readout) -> Tensor:
    """Evaluate a function of the logits of each position, with graph if gradients are enabled.

    Args:
        head: map from hidden states [..., D] to logits [..., V].
        hidden: [B, n, D] hidden states.
        readout: function of the logits, and the number of positions in a chunk.

    Returns:
        [B, n, c] values of the function.
    """

    def chunk(states: Tensor, inputs: Tensor) -> Tensor:
        return readout.function(head(states), inputs)

    states, inputs = hidden.flatten(0, 1), readout.inputs.flatten(0, 1)
    # Chunks of equal size: a small last chunk would be summed in another order.
    count = max(1, -(-len(states) // readout.chunk_size))
    chunks = zip(states.tensor_split(count), inputs.tensor_split(count), strict=True)
    if torch.is_grad_enabled() and count > 1:
        values = [checkpoint(chunk, *arguments, use_reentrant=False) for arguments in chunks]
    else:
        values = [chunk(*arguments) for arguments in chunks]
    return torch.cat(values).view(*hidden.shape[:2], -1)

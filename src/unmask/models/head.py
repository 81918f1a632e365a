"""The head of a model, evaluated in chunks of positions to save memory.

The [n, V] logits of a language model take more memory than its activations, and the log-probability
of a token needs only one number out of V. The head, the softmax and the function of the logits
therefore run on a few positions at a time, and the backward pass recomputes them. Log-probabilities
at a temperature come from a linear head in one operation that keeps only the log-normalisers
(`functional/linear_logprob.py`). Other functions, such as those of top-k and top-p, and other
heads, such as one with an adapter, are differentiated by autograd, chunk by chunk.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from unmask.core.denoising import Readout
from unmask.models.logit_head import LogitHead


def read_head(last: Callable[..., Tensor], states: Tensor, readout: Readout) -> Tensor:
    """Evaluate a function of the logits of each position, with graph if gradients are enabled.

    Args:
        last: last layer of the head, which maps hidden states [..., D] to logits [..., V].
        states: [n, D] inputs of the layer.
        readout: function of the logits, and the number of positions in a chunk.

    Returns:
        [n, c] values of the function.
    """
    if readout.temperature is not None and isinstance(last, LogitHead):
        return last(states, readout)  # type: ignore[no-any-return]

    def chunk(states: Tensor, inputs: Tensor) -> Tensor:
        return readout.function(last(states), inputs)

    # Chunks of equal size: a small last chunk would be summed in another order.
    count = max(1, -(-len(states) // readout.chunk_size))
    chunks = zip(states.tensor_split(count), readout.inputs.tensor_split(count), strict=True)
    if torch.is_grad_enabled() and count > 1:
        values = [checkpoint(chunk, *arguments, use_reentrant=False) for arguments in chunks]
    else:
        values = [chunk(*arguments) for arguments in chunks]
    return torch.cat(values)

"""The head, read in parts: [n, V] logits of a language model are more memory than its activations, and nobody needs them all.

The log-probability of a token takes one number out of V. So the head, the softmax and whatever is read of them run on a few
positions at a time, and the backward pass runs them again instead of finding them kept. Libraries that fuse the head into a
cross-entropy know neither a sampler's temperature, top-k and top-p nor several readings of a position; this knows whatever
`Readout.read` computes, on any device, with the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from unmask.core.records import Readout


def read_in_parts(head: Callable[[Tensor], Tensor], hidden: Tensor, readout: Readout) -> Tensor:
    """What the readout says of each position, with graph if there is one.

    Args:
        head: hidden states [..., D] to logits [..., V].
        hidden: [B, n, D].
        readout: what to take of the logits, and of how many positions at a time.

    Returns:
        [B, n, c].
    """

    def part(states: Tensor, facts: Tensor) -> Tensor:
        return readout.read(head(states), facts)

    states, facts = hidden.flatten(0, 1), readout.facts.flatten(0, 1)
    # Even parts, so that no last one of a few positions is summed in another order.
    count = max(1, -(-len(states) // readout.at_once))
    pieces = zip(states.tensor_split(count), facts.tensor_split(count), strict=True)
    if torch.is_grad_enabled() and count > 1:
        found = [checkpoint(part, *piece, use_reentrant=False) for piece in pieces]
    else:
        found = [part(*piece) for piece in pieces]
    return torch.cat(found).view(*hidden.shape[:2], -1)

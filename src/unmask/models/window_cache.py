"""The cache of transformers over a window of columns, which serves block-causal and bidirectional
models.

Attention does not depend on the order of keys and values, only on the positions that they encode. A
forward pass over some of the columns therefore needs no other attention: it writes the keys and
values of its columns between those of the others, and attends to all of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from unmask.core.denoising import KeyValueCache


class WindowCache(Cache):
    """Cache of one forward pass over the columns from `begin` on.

    Args:
        store: keys and values of all columns, which the pass reads and updates. If the store is
            empty or ends within the window, the pass extends it.
        begin: first column that the pass runs.
    """

    def __init__(self, store: KeyValueCache, begin: int) -> None:
        super().__init__(layer_class_to_replicate=DynamicLayer)
        self.store, self.begin = store, begin

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_args: Any, **_options: Any
    ) -> tuple[Tensor, Tensor]:
        """Store the keys and values of the window, [B, heads, W, head width] each, and return those
        of all columns."""
        layers = self.store.layers
        if layer_idx == len(layers):
            # Copies, because values may be views of a larger tensor, which would be kept as well.
            layers.append((key_states.contiguous(), value_states.contiguous()))
        else:
            keys, values = layers[layer_idx]
            layers[layer_idx] = (self._written(keys, key_states), self._written(values, value_states))
        return layers[layer_idx]

    def _written(self, whole: Tensor, part: Tensor) -> Tensor:
        stop = self.begin + part.shape[2]
        if stop > whole.shape[2]:
            return torch.cat([whole[:, :, : self.begin], part], dim=2)
        whole[:, :, self.begin : stop] = part
        return whole

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of columns before the window."""
        del layer_idx
        return self.begin

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return the number of columns that the window attends to, and the first of them."""
        del layer_idx
        return max(self.begin + query_length, self.store.length), 0

"""The denoiser: one nn.Module round a bidirectional transformers backbone.

Its forward takes the positions that are wanted and applies the head there only: logits 126k wide at every position are
most of the memory of the released codes. Being one module with one forward, it can be wrapped by DDP, FSDP and ZeRO.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unmask.core.errors import ModelError
from unmask.core.records import PrefixCache, Readout
from unmask.models.block_causal import block_causal_mask
from unmask.models.head import head_in_chunks
from unmask.models.native import NATIVE_CLASSES

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Denoiser(nn.Module):
    """p(x_i | partially masked sequence) at wanted positions, over any family of `NATIVE_CLASSES`.

    Args:
        backbone: a transformers model whose class is in the table and whose config says `is_causal = False`
            (masked LMs need not say it).
        mask_id: id of the MASK token.
        eos_id: id of the token that ends a completion.
        pad_id: id written where the attention mask is False.
    """

    def __init__(self, backbone: PreTrainedModel, mask_id: int, eos_id: int, pad_id: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.mask_id = mask_id
        self.eos_id = eos_id
        self.pad_id = pad_id
        self.logit_shift = bool(getattr(backbone.config, "logit_shift", False))
        self.block_length: int | None = getattr(backbone.config, "block_length", None)
        """Of block-causal attention; None where every position sees every other."""
        self._head = NATIVE_CLASSES[type(backbone).__name__].head
        self._checkpointed: list[nn.Module] = []

    @property
    def _no_split_modules(self) -> list[str]:
        """Classes of the layers that FSDP gathers one by one: those of the backbone's list that it has."""
        present = {type(module).__name__ for module in self.backbone.modules()}
        return sorted(present & set(self.backbone._no_split_modules or ()))

    @property
    def vocab_size(self) -> int:
        """V."""
        return int(self.backbone.config.vocab_size)

    def checkpoint_gradients(self) -> None:
        """From now on, a backward pass computes each block's activations again instead of finding them kept."""
        from transformers.modeling_layers import GradientCheckpointingLayer

        backbone = self.backbone
        # Its name from transformers 5.23 on, and before.
        enable = getattr(backbone, "activation_checkpointing_enable", None) or backbone.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        self._checkpointed = [m for m in self.modules() if isinstance(m, GradientCheckpointingLayer)]

    def compile_trunk(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """torch.compile the trunk in place; shapes may change from call to call."""
        self.backbone.base_model.compile(backend=backend, dynamic=True)

    def forward(
        self,
        ids: Tensor,
        attention_mask: Tensor | None,
        positions: Tensor,
        *,
        prefix: PrefixCache | None = None,
        cache_until: int = 0,
        readout: Readout | None = None,
    ) -> Tensor:
        """Logits at the wanted positions.

        A block-causal denoiser does not run the columns that `prefix` holds again: none of them sees what comes after its block.

        Args:
            ids: [B, S] int64, MASK where hidden, anything at padding.
            attention_mask: [B, S] bool, False at (left) padding; None if there is none, which is faster.
            positions: [B, n] int64 in 0..S-1; at or after the columns that `prefix` holds.
            prefix: leading columns of these rows that were run before; filled up to `cache_until`.
            cache_until: leading columns that are final, a number of whole blocks but for the first.
            readout: what is wanted of the logits, if not they themselves; they are then made for a few positions at a time.

        Returns:
            [B, n, V] logits at temperature 1, in the backbone's dtype; or what the readout says of them.
        """
        for block in self._checkpointed:
            # transformers checkpoints in training mode only, and reinforcement learning runs in evaluation mode, without dropout.
            # The flag of the block itself switches nothing else: dropouts are modules below it.
            block.training = torch.is_grad_enabled()
        if self.block_length is not None:
            return self._block_causal(ids, attention_mask, positions, prefix, cache_until, readout)
        if prefix is not None:
            raise ValueError(
                "no column of a bidirectional model is final before the last token is: it has no exact prefix."
            )
        kwargs: dict[str, Any] = {}
        if attention_mask is not None:
            # Learned and rotary positions alike must count from the first real token, or a row depends on its padding.
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)
            kwargs = {"attention_mask": attention_mask.long(), "position_ids": position_ids}
        if self.backbone.can_generate():
            kwargs["use_cache"] = False
        hidden = self.backbone.base_model(input_ids=ids, **kwargs).last_hidden_state
        return self._logits(hidden, self._columns(positions, attention_mask), readout)

    def _block_causal(
        self,
        ids: Tensor,
        attention_mask: Tensor | None,
        positions: Tensor,
        prefix: PrefixCache | None,
        cache_until: int,
        readout: Readout | None,
    ) -> Tensor:
        assert self.block_length is not None
        start = prefix.length if prefix is not None else 0
        columns = torch.arange(ids.shape[1], device=ids.device).unsqueeze(0)
        if attention_mask is not None:
            columns = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)
        cache: Any = None if prefix is None else _as_cache(prefix)
        hidden = self.backbone.base_model(
            input_ids=ids[:, start:],
            attention_mask=block_causal_mask(
                ids.shape[1], self.block_length, attention_mask, start, self.backbone.dtype, ids.device
            ),
            position_ids=columns[:, start:],
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        # A shifted head still has to be asked at the last final column.
        cache_until -= int(self.logit_shift)
        if prefix is not None and cache_until > start:
            prefix.layers = [
                (layer.keys[:, :, :cache_until], layer.values[:, :, :cache_until]) for layer in cache.layers
            ]
            prefix.length = cache_until
        return self._logits(hidden, self._columns(positions, attention_mask) - start, readout)

    def _columns(self, positions: Tensor, attention_mask: Tensor | None) -> Tensor:
        """[B, n] columns at which the head speaks of `positions`."""
        if not self.logit_shift:
            return positions
        # A shifted head at i - 1 speaks of position i. Before a row's first is padding or nothing: as in Dream's code, it
        # is asked of itself.
        before = positions - 1
        return (
            before.clamp_min(0)
            if attention_mask is None
            else before.maximum(attention_mask.logical_not().sum(-1, keepdim=True))
        )

    def _logits(self, hidden: Tensor, columns: Tensor, readout: Readout | None) -> Tensor:
        wanted = hidden.gather(1, columns.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
        head = self._head(self.backbone)
        return head(wanted) if readout is None else head_in_chunks(head, wanted, readout)


def _as_cache(prefix: PrefixCache) -> Any:
    """transformers' cache of the same tensors; filling one by its own `update` would copy them at every step."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    cache = DynamicCache()
    for keys, values in prefix.layers:
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache


@torch.no_grad()
def check_bidirectional(denoiser: Denoiser) -> None:
    """Refuse a model that cannot see to its right: changing the last token must move the first position's logits.

    Two tiny forwards at load catch every silently causal checkpoint. Of a block-causal one, the same within a block.

    Raises:
        ModelError: the first position did not move.
    """
    if denoiser.block_length is not None:
        _check_block_causal(denoiser, denoiser.block_length)
    device = next(denoiser.parameters()).device
    ids = torch.full((2, min(4, denoiser.block_length or 4)), denoiser.mask_id, device=device)
    ids[1, -1] = denoiser.eos_id
    # A shifted head says nothing of position 0.
    at = torch.full((2, 1), 1 if denoiser.logit_shift else 0, device=device)
    first, second = denoiser(ids, None, at).float()
    if torch.equal(first, second):
        raise ModelError(
            f"{type(denoiser.backbone).__name__} is causal: a change of the last token does not reach the first logits. "
            "unmask needs a bidirectional model; set is_causal to false in its config.json if it was trained as one."
        )


def _check_block_causal(denoiser: Denoiser, block_length: int) -> None:
    """Raise for blocks of one position, or an attention that takes no mask of ours."""
    if block_length < 2:
        raise ModelError(
            f"block_length in config.json is {block_length}: blocks of block diffusion have two positions or more."
        )
    attention = denoiser.backbone.config._attn_implementation
    if attention not in ("sdpa", "eager"):
        raise ModelError(
            f"block-causal attention wants attn_implementation sdpa or eager, and this model is loaded with {attention}."
        )

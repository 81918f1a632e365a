"""The denoiser: one nn.Module around a bidirectional transformers backbone.

Its forward pass applies the head only at the requested positions, because logits at every position
of a large vocabulary take most of the memory. The denoiser is one module with one forward method,
so DDP, FSDP and ZeRO can wrap it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unmask.core.denoising import KeyValueCache, NoisyCopies, Readout
from unmask.core.errors import ModelError
from unmask.models.block_causal import block_causal_mask, column_before, copies_mask, position_numbers
from unmask.models.head import read_head
from unmask.models.last_layer import LastLayer, columns_of
from unmask.models.logit_head import LogitHead
from unmask.models.native import NATIVE_CLASSES
from unmask.models.position_head import POSITION_HEAD, PositionHead

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RECOMPILE_LIMIT = 32
"""Number of graphs of a layer that torch.compile may make."""


class Denoiser(nn.Module):
    """Computes p(x_i | partially masked sequence) at requested positions, with a backbone of any
    class in `NATIVE_CLASSES`.

    Args:
        backbone: transformers model whose class is in the table and whose config has `is_causal =
            False` (optional for masked LMs).
        mask_id: token id of MASK.
        eos_id: token id that ends a completion.
        pad_id: token id at positions where the attention mask is False.
    """

    def __init__(self, backbone: PreTrainedModel, mask_id: int, eos_id: int, pad_id: int) -> None:
        super().__init__()
        self.backbone = backbone
        last: Any = backbone.get_output_embeddings()
        if type(last) is nn.Linear:
            backbone.set_output_embeddings(LogitHead.of(last))
        self.mask_id = mask_id
        self.eos_id = eos_id
        self.pad_id = pad_id
        self.logit_shift = bool(getattr(backbone.config, "logit_shift", False))
        self.block_length: int | None = getattr(backbone.config, "block_length", None)
        """Block length of block-causal attention; None if every position attends to every other."""
        native = NATIVE_CLASSES[type(backbone).__name__]
        self._transform = native.transform
        self._last_layer = LastLayer(backbone.base_model, native.last)
        self._checkpointed: list[nn.Module] = []

    @property
    def _no_split_modules(self) -> list[str]:
        """Classes of the layers that FSDP gathers one by one: those in the backbone's
        `_no_split_modules` of which the backbone has a layer."""
        present = {type(module).__name__ for module in self.backbone.modules()}
        return sorted(present & set(self.backbone._no_split_modules or ()))

    def get_input_embeddings(self) -> nn.Module | None:
        """Return the embeddings of the tokens, which accelerate's FSDP2 then gathers apart from the
        head; None if the two share their weights.

        The head has no such method. It stays in the group of weights that FSDP2 gathers once for
        the whole forward pass, because it may run on one chunk of positions after another.
        """
        embeddings, head = self.backbone.get_input_embeddings(), self.backbone.get_output_embeddings()
        is_tied = head is not None and head.weight is embeddings.weight
        return None if is_tied else embeddings

    @property
    def position_head(self) -> PositionHead | None:
        """The head that scores masked positions; None if the model has none."""
        head: PositionHead | None = getattr(self.backbone, POSITION_HEAD, None)
        return head

    @property
    def vocab_size(self) -> int:
        """Size V of the vocabulary."""
        return int(self.backbone.config.vocab_size)

    def checkpoint_gradients(self) -> None:
        """Make backward passes recompute the activations of each block instead of storing them."""
        self._checkpoint(context_fn=self._last_layer.recomputation)

    def compile_layers(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Compile the layers of the trunk in place with torch.compile; shapes may change from call
        to call.

        All layers share one graph for each kind of pass. Gradient checkpointing does not break it,
        as it would break a graph of the whole trunk.
        """
        if self._checkpointed:
            # A compiled last layer runs at all columns, so its recomputation needs no context.
            self._checkpoint()
        # Passes with gradients or without, with adapters or without, with padding or without, differ
        # in kind. Beyond its limit of 8 graphs, torch silently stops to compile.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
        for layer in self._layers():
            layer.compile(backend=backend, dynamic=True)

    def _checkpoint(self, **options: Any) -> None:
        backbone = self.backbone
        # transformers renamed this method in 5.23.
        enable = getattr(backbone, "activation_checkpointing_enable", None) or backbone.gradient_checkpointing_enable
        enable({"use_reentrant": False} | options)
        self._checkpointed = self._layers()

    def _layers(self) -> list[nn.Module]:
        from transformers.modeling_layers import GradientCheckpointingLayer

        return [module for module in self.modules() if isinstance(module, GradientCheckpointingLayer)]

    def forward(
        self,
        ids: Tensor,
        attention_mask: Tensor | None,
        positions: Tensor,
        *,
        cache: KeyValueCache | None = None,
        begin: int = 0,
        readout: Readout | None = None,
        copies: NoisyCopies | None = None,
        scores: bool = False,
        pooled: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Compute the logits at the requested positions.

        With a cache, only the columns in `ids` run. They attend to all columns, and the keys and
        values of the others come from the cache. The cache then holds those of the columns that
        ran, too.

        Args:
            ids: [B, W] int64 tokens of columns begin..begin+W-1, MASK at masked positions, any
                token at padding. Without a cache these are all S columns.
            attention_mask: [B, S] bool, False at (left) padding; None if there is no padding, which
                is faster.
            positions: [B, n] int64 in begin..begin+W-1; with a shifted head, the column before each
                runs as well.
            cache: keys and values of the S columns of these rows, which is updated in place. An
                empty cache takes the keys and values of columns 0..W-1.
            begin: first column that runs; 0 without a cache.
            readout: function of the logits to return instead, evaluated in chunks of positions.
            copies: description of the S columns if they hold noisy copies of blocks behind the clean
                completion; only for a block-causal model without a cache.
            scores: True to return the scores of the position head, too, which the model then needs.
            pooled: True to return the mean of the trunk's output at the positions instead.

        Returns:
            [B, n, V] float32 logits at temperature 1, or the values of the readout, with one row
            for each position that is read. With `scores`, also [B, n] scores, or one for each
            position that is read. With `pooled`, [B, D] float32 means.

        Raises:
            ModelError: the class of the backbone has no cache.
        """
        for block in self._checkpointed:
            # transformers checkpoints only in training mode, but reinforcement learning runs in
            # evaluation mode, without dropout. The flag of the block itself has no other effect:
            # dropouts are modules below it.
            block.training = torch.is_grad_enabled()
        kwargs = self._attention(ids, attention_mask, begin, copies, is_cached=cache is not None)
        if cache is not None:
            kwargs |= {"past_key_values": self._cache(cache, begin), "use_cache": True}
        elif self.backbone.can_generate():
            kwargs["use_cache"] = False
        if pooled:
            return self._hidden(positions - begin, input_ids=ids, **kwargs).float().mean(1)
        hidden = self._hidden(self._columns(positions, attention_mask, copies) - begin, input_ids=ids, **kwargs)
        last: Any = self.backbone.get_output_embeddings()
        transform = self._transform(self.backbone)
        if readout is not None:
            hidden = hidden[readout.is_read]
        # A head runs even where its scores are not read: under ZeRO-3 it is a collective.
        score = None if self.position_head is None else self.position_head(hidden)
        states = transform(hidden)
        output: Tensor = last(states) if readout is None else read_head(last, states, readout)
        if not scores:
            return output
        assert score is not None
        return output, score

    def _attention(
        self, ids: Tensor, attention_mask: Tensor | None, begin: int, copies: NoisyCopies | None, *, is_cached: bool
    ) -> dict[str, Any]:
        """Return the arguments that tell the trunk which columns run and what they attend to."""
        stop = begin + ids.shape[1]
        columns = torch.arange(begin, stop, device=ids.device).unsqueeze(0)
        if attention_mask is not None:
            # Learned and rotary positions must both count from the first real token; otherwise a
            # row depends on its padding.
            columns = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)[:, begin:stop]
        if self.block_length is not None:
            dtype, device = self.backbone.dtype, ids.device
            if copies is not None:
                mask = copies_mask(copies, self.block_length, attention_mask, dtype)
                return {"attention_mask": mask, "position_ids": position_numbers(copies, attention_mask)}
            mask = block_causal_mask(stop, self.block_length, attention_mask, begin, dtype, device)
            return {"attention_mask": mask, "position_ids": columns}
        if attention_mask is not None:
            return {"attention_mask": attention_mask.long(), "position_ids": columns}
        return {"position_ids": columns} if is_cached else {}

    def _cache(self, cache: KeyValueCache, begin: int) -> Any:
        """Return a transformers cache that reads and updates `cache`."""
        from unmask.models.window_cache import WindowCache

        name = type(self.backbone).__name__
        if not NATIVE_CLASSES[name].has_cache:
            raise ModelError(f"{name} has no cache of keys and values. Set sampler.cache to off.")
        return WindowCache(cache, begin)

    def _hidden(self, columns: Tensor, **inputs: Any) -> Tensor:
        """Run the trunk and return its output at `columns` [B, n] of its input, [B, n, D]."""
        if columns.shape[1] >= inputs["input_ids"].shape[1]:
            return columns_of(self.backbone.base_model(**inputs).last_hidden_state, columns)
        with self._last_layer.at(columns) as reading:
            hidden = self.backbone.base_model(**inputs).last_hidden_state
        return columns_of(hidden, columns) if reading.hidden is None else reading.hidden

    def _columns(self, positions: Tensor, attention_mask: Tensor | None, copies: NoisyCopies | None) -> Tensor:
        """Return the columns at which the head predicts `positions`, [B, n]."""
        if not self.logit_shift:
            return positions
        # A shifted head at i - 1 predicts position i. Before the first position of a row is padding
        # or nothing; as in Dream's code, its own column predicts it.
        before = positions - 1 if copies is None else column_before(positions, copies)
        return (
            before.clamp_min(0)
            if attention_mask is None
            else before.maximum(attention_mask.logical_not().sum(-1, keepdim=True))
        )


@torch.no_grad()
def check_bidirectional(denoiser: Denoiser) -> None:
    """Refuse a model whose positions do not attend to later positions: changing the last token must
    change the first logits.

    Two tiny forward passes find every causal checkpoint. For a block-causal model, the test is
    within a block.

    Raises:
        ModelError: the first logits did not change.
    """
    if denoiser.block_length is not None:
        _check_block_causal(denoiser, denoiser.block_length)
    device = next(denoiser.parameters()).device
    ids = torch.full((2, min(4, denoiser.block_length or 4)), denoiser.mask_id, device=device)
    ids[1, -1] = denoiser.eos_id
    # A shifted head does not predict position 0.
    at = torch.full((2, 1), 1 if denoiser.logit_shift else 0, device=device)
    first, second = denoiser(ids, None, at).float()
    if torch.equal(first, second):
        raise ModelError(
            f"{type(denoiser.backbone).__name__} is causal: the first logits do not depend on the last token. "
            "unmask needs a bidirectional model. If it was trained as one, set is_causal to false in its config.json."
        )


def _check_block_causal(denoiser: Denoiser, block_length: int) -> None:
    """Raise for blocks of one position, or an attention that does not take a mask."""
    if block_length < 2:
        raise ModelError(f"block_length in config.json is {block_length}, but a block needs at least two positions.")
    attention = denoiser.backbone.config._attn_implementation
    if attention not in ("sdpa", "eager"):
        raise ModelError(
            f"block-causal attention needs attn_implementation sdpa or eager, but this model is loaded with {attention}."
        )

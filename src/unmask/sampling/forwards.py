"""How the loop runs its states: of a block-causal denoiser, no more than the next logits depend on, and nothing twice."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError
from unmask.core.records import DenoiserLike, PrefixCache
from unmask.sampling.predict import predict


class Forwards:
    """Logits of the states of one batch.

    Under block-causal attention the prompt and the finished blocks see nothing of what is still to be written, so their keys and
    values are kept: each block's first step runs the block before it and its own, every other step its own alone. That is exact.
    Of a bidirectional denoiser nothing is kept, because there every commitment changes every key.

    Args:
        denoiser: the policy.
        prompt_ids: [B, P] int64, left-padded.
        prompt_mask: [B, P] bool, False at padding.
        sampler: its blocks must divide the denoiser's, if it has any.

    Raises:
        ConfigError: blocks that do not fit.
    """

    def __init__(self, denoiser: DenoiserLike, prompt_ids: Tensor, prompt_mask: Tensor, sampler: SamplerConfig) -> None:
        self.denoiser, self.sampler = denoiser, sampler
        self.prompt_ids, self.prompt_mask = prompt_ids, prompt_mask
        self.block_length: int | None = getattr(denoiser, "block_length", None)
        if self.block_length is not None:
            check_blocks(self.block_length, sampler)
        self._rows = torch.arange(0)
        self._prefixes: list[PrefixCache] = []

    def logits(self, rows: Tensor, tokens: Tensor, positions: Tensor, start: int, reach: int) -> Tensor:
        """[b, n, V] logits of the `rows` [b] at `positions` [b, n] of their completions, `tokens` [b, L].

        Args:
            rows: which of the batch, ascending.
            tokens: their completions, MASK where hidden.
            positions: all in start..reach-1.
            start: where the active block begins; before it nothing is hidden.
            reach: where the last position that is asked for ends.
        """
        state = (self.prompt_ids[rows], self.prompt_mask[rows])
        options: dict[str, Any] = {}
        if self.block_length is not None:
            # Whole blocks: what is after them is seen by nobody that is asked.
            end = -(-reach // self.block_length) * self.block_length
            tokens = tokens[:, :end]
            prefixes = self._prefixes_of(rows)
            before = prefixes[0].length
            cache_until = self.prompt_ids.shape[1] + start // self.block_length * self.block_length
            options = {"prefixes": prefixes, "cache_until": cache_until}
        logits = predict(
            self.denoiser,
            *state,
            tokens,
            positions,
            self.denoiser.mask_id,
            self.sampler.guidance,
            **options,
        )
        # What some rows hold is less than what all of them do, unless it is longer.
        if self.block_length is not None and prefixes[0].length > before:
            self._rows, self._prefixes = rows, prefixes
        return logits

    def _prefixes_of(self, rows: Tensor) -> list[PrefixCache]:
        """What is held of these rows: one cache, and with guidance another one of the masked prompt; empty if any row is new."""
        if torch.equal(rows, self._rows):
            return self._prefixes
        place = torch.searchsorted(self._rows, rows)
        known = len(self._rows) > 0 and torch.equal(self._rows[place.clamp_max(len(self._rows) - 1)], rows)
        if known:
            return [prefix.rows(place) for prefix in self._prefixes]
        return [PrefixCache() for _ in range(2 if self.sampler.guidance else 1)]


def check_blocks(block_length: int, sampler: SamplerConfig) -> None:
    """Raise ConfigError for a sampler whose blocks do not fit those of a block-causal model."""
    if sampler.max_completion_length % block_length:
        raise ConfigError(
            f"the model's blocks have {block_length} positions, which do not tile max_completion_length = "
            f"{sampler.max_completion_length}. Use a multiple of {block_length}."
        )
    if block_length % sampler.block:
        given = sampler.block_length or f"{sampler.block} (all of the completion, its default)"
        raise ConfigError(
            f"the model denoises block by block, {block_length} positions each, and the sampler's block_length is {given}. "
            f"Set block_length to {block_length}, or to a divisor of it."
        )

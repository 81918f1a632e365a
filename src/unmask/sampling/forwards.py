"""Forward passes of the denoising loop, with a cache for block-causal denoisers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError
from unmask.core.records import DenoiserLike, PrefixCache
from unmask.sampling.predict import predict


class Forwards:
    """Computes the logits of the states of one batch.

    Under block-causal attention the prompt and the finished blocks do not depend on later tokens.
    Their keys and values are cached: the first step of a block runs the block before it and its own
    block, and every other step runs only its own block. The result is exact. A bidirectional
    denoiser has no cache, because every committed token changes every key.

    Args:
        denoiser: policy.
        prompt_ids: [B, P] int64 prompt tokens, padded on the left.
        prompt_mask: [B, P] bool, False at padding.
        sampler: sampler settings, whose block length must divide the block length of a block-causal
            denoiser.

    Raises:
        ConfigError: the blocks of sampler and denoiser do not fit.
    """

    def __init__(self, denoiser: DenoiserLike, prompt_ids: Tensor, prompt_mask: Tensor, sampler: SamplerConfig) -> None:
        self.denoiser, self.sampler = denoiser, sampler
        self.prompt_ids, self.prompt_mask = prompt_ids, prompt_mask
        self.block_length: int | None = getattr(denoiser, "block_length", None)
        if self.block_length is not None:
            check_blocks(self.block_length, sampler)
        self._rows = torch.arange(0, device=prompt_ids.device)
        self._prefixes: list[PrefixCache] = []

    def logits(self, rows: Tensor, tokens: Tensor, positions: Tensor, start: int, end: int) -> Tensor:
        """Compute the logits of rows at positions of their completions, [b, n, V].

        Args:
            rows: [b] int64 rows of the batch, in ascending order.
            tokens: [b, L] int64 completions of the rows, MASK at masked positions.
            positions: [b, n] int64 positions, all in start..end-1.
            start: first position of the active block; no earlier position is masked.
            end: end of the last block that holds any of the positions.
        """
        state = (self.prompt_ids[rows], self.prompt_mask[rows])
        options: dict[str, Any] = {}
        if self.block_length is not None:
            # Later blocks are left out, because these positions do not depend on them.
            last = -(-end // self.block_length) * self.block_length
            tokens = tokens[:, :last]
            prefixes = self._prefixes_of(rows)
            cached = prefixes[0].length
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
        # A call with fewer rows replaces the cache only if its columns reach further.
        if self.block_length is not None and prefixes[0].length > cached:
            self._rows, self._prefixes = rows, prefixes
        return logits

    def _prefixes_of(self, rows: Tensor) -> list[PrefixCache]:
        """Return the caches of these rows, empty if any row is not cached.

        There is one cache, and with guidance a second one for the masked prompt.
        """
        if torch.equal(rows, self._rows):
            return self._prefixes
        index = torch.searchsorted(self._rows, rows)
        is_cached = len(self._rows) > 0 and torch.equal(self._rows[index.clamp_max(len(self._rows) - 1)], rows)
        if is_cached:
            return [prefix.rows(index) for prefix in self._prefixes]
        return [PrefixCache() for _ in range(2 if self.sampler.guidance else 1)]


def check_blocks(block_length: int, sampler: SamplerConfig) -> None:
    """Check that the blocks of a sampler fit those of a block-causal model.

    Raises:
        ConfigError: the blocks of the sampler do not fit those of the model.
    """
    if sampler.max_completion_length % block_length:
        raise ConfigError(
            f"the model's blocks have {block_length} positions, which do not divide max_completion_length = "
            f"{sampler.max_completion_length}. Use a multiple of {block_length}."
        )
    if block_length % sampler.block:
        block = sampler.block_length or f"{sampler.block} (the whole completion, its default)"
        raise ConfigError(
            f"the model has blocks of {block_length} positions, and the sampler's block_length is {block}. "
            f"Set block_length to {block_length} or a divisor of it."
        )

"""Forward passes of the denoising loop, which do not run the columns whose keys and values are in a
cache."""

from __future__ import annotations

import torch
from torch import Tensor

from unmask.core.config import LEARNED, SamplerConfig
from unmask.core.denoising import DenoiserLike, KeyValueCache
from unmask.core.errors import ConfigError
from unmask.sampling.predict import Prediction, predict


class Forwards:
    """Computes the logits of the states of one batch.

    There are two caches of keys and values:

    - Under block-causal attention the prompt and the finished blocks do not depend on later tokens.
      The first step of a block runs the block before it and its own block, and every other step
      runs only its own block. The result is exact.
    - In a bidirectional model every committed token changes every key. The approximate cache
      (`SamplerConfig.cache`, arXiv:2505.22618) keeps the keys and values of the last full forward
      pass for columns outside the active block. The first step of a block is a full forward pass,
      and so is every `cache_refresh_steps`-th step after it. A row whose first step is in the
      middle of a block starts with a full forward pass, too. A row therefore does not depend on the
      rows that share its batch.

    In torch's deterministic mode, an exact forward pass of a bidirectional model runs all rows of
    the batch, also those that have ended.

    Args:
        denoiser: policy.
        prompt_ids: [B, P] int64 prompt tokens, padded on the left.
        prompt_mask: [B, P] bool, False at padding.
        sampler: sampler settings, whose block length must divide the block length of a block-causal
            denoiser.

    Raises:
        ConfigError: the blocks or the cache of the sampler do not fit the denoiser, or the order reads
            a position head that the denoiser lacks.
    """

    def __init__(self, denoiser: DenoiserLike, prompt_ids: Tensor, prompt_mask: Tensor, sampler: SamplerConfig) -> None:
        self.denoiser, self.sampler = denoiser, sampler
        self.prompt_ids, self.prompt_mask = prompt_ids, prompt_mask
        # Read before the loop, in which a GPU would have to wait for it at each step.
        self._is_padded = not bool(prompt_mask.all())
        self.block_length: int | None = getattr(denoiser, "block_length", None)
        if self.block_length is not None:
            check_blocks(self.block_length, sampler)
        self._scores = sampler.order == LEARNED
        if self._scores and getattr(denoiser, "position_head", None) is None:
            raise ConfigError(
                "sampler.order = learned reads the position head of the model, and this model has none. Train it with this "
                "order first, or choose another order, such as plackett_luce."
            )
        # A shifted head predicts a position at the column before it.
        self._shift = int(getattr(denoiser, "logit_shift", False))
        self._rows = torch.arange(0, device=prompt_ids.device)
        self._caches: list[KeyValueCache] = []
        self._at_block = self._rows, self._caches
        self._num_final = 0
        # The kernel of a matrix product, and with it the rounding, depends on the number of rows.
        self._keeps_rows = torch.are_deterministic_algorithms_enabled()
        self._may_share = not self._keeps_rows

    def predict(
        self, rows: Tensor, tokens: Tensor, positions: Tensor, start: int, end: int, step_in_block: int
    ) -> Prediction:
        """Compute the logits of rows at positions of their completions, and the scores of the position
        head if the order reads them.

        Args:
            rows: [b] int64 rows of the batch, in ascending order.
            tokens: [b, L] int64 completions of the rows, MASK at masked positions.
            positions: [b, n] int64 masked positions, from the active block to `end` - 1; no earlier
                position is masked.
            start: first position of the active block.
            end: end of the last block that holds any of the positions.
            step_in_block: number of earlier steps of this batch in the active block.
        """
        if not self._may_share:
            return self._prediction(rows, tokens, positions, start, end, step_in_block)
        # The completions of a group have the same state before the first step, so one of them runs
        # for all.
        self._may_share = False
        first, index = _runs(torch.cat([self.prompt_ids[rows], self.prompt_mask[rows], tokens], dim=1))
        prediction = self._prediction(rows[first], tokens[first], positions[first], start, end, step_in_block)
        if len(first) == len(rows):
            return prediction
        if self._caches:
            self._rows, self._caches = rows, [cache.rows(index) for cache in self._caches]
            self._at_block = self._rows, self._caches
        return prediction.rows(index)

    def _prediction(
        self, rows: Tensor, tokens: Tensor, positions: Tensor, start: int, end: int, step_in_block: int
    ) -> Prediction:
        num_prompt, block = self.prompt_ids.shape[1], self.sampler.block
        if self.block_length is not None:
            # Later blocks are left out, because these positions do not depend on them.
            tokens = tokens[:, : -(-end // self.block_length) * self.block_length]
            window = slice(self._num_final, num_prompt + tokens.shape[1])
            self._num_final = self._first(start // self.block_length * self.block_length)
            return self._of_block(rows, tokens, positions, window, step_in_block)
        if self.sampler.is_exact:
            return (
                self._of_all_rows(rows, tokens, positions)
                if self._keeps_rows
                else self._predict(rows, tokens, positions)
            )
        if self._is_refresh(step_in_block):
            self._rows, self._caches = self._rows[:0], []
        stop = start + block if self.sampler.cache == "dual" else tokens.shape[1]
        return self._cached(rows, tokens, positions, slice(self._first(start), num_prompt + stop))

    def _of_block(
        self, rows: Tensor, tokens: Tensor, positions: Tensor, window: slice, step_in_block: int
    ) -> Prediction:
        """Run a block-causal model. Under an adaptive schedule a row may leave the batch until the
        next block, for which the keys and values of the finished blocks are kept."""
        is_first = step_in_block == 0 and self.sampler.is_adaptive
        if is_first:
            self._rows, self._caches = self._at_block
        prediction = self._cached(rows, tokens, positions, window)
        if is_first:
            # Complete after the first step of the block, which runs the block before it once more.
            self._at_block = self._rows, self._caches
        return prediction

    def _of_all_rows(self, rows: Tensor, tokens: Tensor, positions: Tensor) -> Prediction:
        """Run as many rows as the batch has, each in its own place. A copy of the first row stands
        for each row that has ended."""
        index = torch.zeros(len(self.prompt_ids), dtype=torch.long, device=rows.device)
        index[rows] = torch.arange(len(rows), device=rows.device)
        return self._predict(rows[index], tokens[index], positions[index]).rows(rows)

    def _first(self, position: int) -> int:
        """Return the first column that must run to predict the positions from `position` on."""
        return max(0, self.prompt_ids.shape[1] + position - self._shift)

    def _is_refresh(self, step_in_block: int) -> bool:
        every = self.sampler.cache_refresh_steps
        return step_in_block % every == 0 if every else step_in_block == 0

    def _cached(self, rows: Tensor, tokens: Tensor, positions: Tensor, window: slice) -> Prediction:
        """Run the columns `window` of the cached rows, and all columns of the others, which then
        are cached."""
        if not torch.equal(rows, self._rows):
            is_held = torch.isin(rows, self._rows)
            if not is_held.any():
                self._rows, self._caches = rows, self._no_caches()
                return self._predict(rows, tokens, positions, self._caches)
            if not is_held.all():
                return self._with_new_rows(rows, tokens, positions, window, is_held)
            index = torch.searchsorted(self._rows, rows)
            self._rows, self._caches = rows, [cache.rows(index) for cache in self._caches]
        return self._predict(rows, tokens, positions, self._caches, window)

    def _with_new_rows(
        self, rows: Tensor, tokens: Tensor, positions: Tensor, window: slice, is_held: Tensor
    ) -> Prediction:
        """Run the rows that are in the caches and those that are not, and join their caches."""
        new, caches = ~is_held, self._no_caches()
        parts = [
            self._cached(rows[is_held], tokens[is_held], positions[is_held], window),
            self._predict(rows[new], tokens[new], positions[new], caches),
        ]
        order = torch.cat([rows[is_held], rows[new]]).argsort()
        held = zip(self._caches, caches, strict=True)
        self._rows, self._caches = rows, [one.joined(other, order) for one, other in held]
        return Prediction.cat(parts).rows(order)

    def _no_caches(self) -> list[KeyValueCache]:
        """Return an empty cache, and with guidance a second one for the masked prompt."""
        return [KeyValueCache() for _ in range(2 if self.sampler.guidance else 1)]

    def _predict(
        self,
        rows: Tensor,
        tokens: Tensor,
        positions: Tensor,
        caches: list[KeyValueCache] | None = None,
        window: slice = slice(None),
    ) -> Prediction:
        return predict(
            self.denoiser,
            self.prompt_ids[rows],
            self.prompt_mask[rows] if self._is_padded else None,
            tokens,
            positions,
            self.denoiser.mask_id,
            self.sampler.guidance,
            caches=caches or (),
            window=window,
            scores=self._scores,
        )


def _runs(states: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first row of each run of equal rows of [b, n] states, and the run of each row."""
    is_new = torch.ones(len(states), dtype=torch.bool, device=states.device)
    is_new[1:] = (states[1:] != states[:-1]).any(-1)
    return is_new.nonzero().squeeze(-1), is_new.cumsum(0) - 1


def check_blocks(block_length: int, sampler: SamplerConfig) -> None:
    """Check that the blocks and the cache of a sampler fit a block-causal model.

    Raises:
        ConfigError: the blocks of the sampler do not fit those of the model, or its cache is
            approximate.
    """
    if sampler.cache != "off":
        raise ConfigError(
            f"the model is block-causal, so its cache of finished blocks is exact and always on, and "
            f"sampler.cache = {sampler.cache} would be approximate. Set sampler.cache to off."
        )
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

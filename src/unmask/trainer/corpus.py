"""Demonstrations to pretrain on, which are encoded once and drawn in random batches. The ELBO gives
their loss."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unmask.core.denoising import Readout
from unmask.core.errors import ConfigError, DataError
from unmask.core.records import Row
from unmask.functional.distribution import token_logprobs
from unmask.functional.elbo import elbo, mask_at_times, stratified_times
from unmask.functional.masking import compact_columns, trim_left_padding
from unmask.models import Denoiser
from unmask.recipes.schema import PretrainRecipe
from unmask.sampling.encoding import check_fits_context, encode_batch
from unmask.sampling.predict import predict_in_chunks
from unmask.trainer.model_limits import positions_at_once

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class PretrainBatch:
    """Demonstrations with masked positions."""

    prompt_ids: Tensor
    """[B, P] int64: prompts, padded on the left to the longest of the batches of all ranks."""
    prompt_mask: Tensor
    """[B, P] bool: False at padding."""
    completion: Tensor
    """[B, L] int64: demonstrations, filled up with EOS."""
    masked: Tensor
    """[B, L] bool: True at masked positions."""
    times: Tensor
    """[B] float32: probability with which each position of the row was masked."""
    num_blocks: int
    """Number of blocks in a completion, of which each row masks one; 1 for a model without
    blocks."""

    def __len__(self) -> int:
        return len(self.completion)

    def split(self, max_tokens: int | None) -> list[PretrainBatch]:
        """Split into parts, each as wide as its longest prompt requires. A part has at least one
        row, and at most `max_tokens` as rows times tokens.

        The number of parts depends on shapes alone, so that it is the same on all ranks.
        """
        width = self.prompt_ids.shape[1] + self.completion.shape[1]
        rows = len(self) if max_tokens is None else max(1, max_tokens // width)
        if rows >= len(self):
            return [self.take(slice(None))]
        by_length = self.prompt_mask.sum(-1).argsort(stable=True)
        return [self.take(part) for part in by_length.split(rows)]

    def take(self, rows: Tensor | slice) -> PretrainBatch:
        """Return some rows, without columns that are padding in all of them."""
        prompt_ids, prompt_mask = trim_left_padding(self.prompt_ids[rows], self.prompt_mask[rows])
        rest = {name: getattr(self, name)[rows] for name in ("completion", "masked", "times")}
        return replace(self, prompt_ids=prompt_ids, prompt_mask=prompt_mask, **rest)


class Corpus:
    """Encoded demonstrations, and the loss of a random batch of them.

    Args:
        recipe: settings of the run, which include the task and the share of noisy demonstrations.
        denoiser: the model, for its special tokens and its context length.
        tokenizer: tokenizer of the model.
        rows: examples; default the training examples of the task, all of which must fit.

    Raises:
        DataError: a demonstration is longer than a completion.
        ConfigError: a completion is not a whole number of the model's blocks, or does not fit into
            its context.
    """

    def __init__(
        self, recipe: PretrainRecipe, denoiser: Denoiser, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row] = ()
    ) -> None:
        rows = rows or recipe.task.rows("train", recipe.num_rows, recipe.seed)
        length = completion_length(recipe)
        texts = []
        for i, row in enumerate(rows):
            rng = random.Random(f"{recipe.seed}/demonstration/{i}")
            texts.append(recipe.task.demonstration(row, rng, rng.random() < recipe.noise_share))
        completions = []
        for text, ids in zip(texts, tokenizer(texts, add_special_tokens=False).input_ids, strict=True):
            if len(ids) > length:
                raise DataError(
                    f"a demonstration of {len(ids)} tokens does not fit into max_completion_length = {length}: {text[:80]!r}."
                )
            # EOS fills the rest, so that the model learns to end, and what follows the end.
            completions.append(ids + [denoiser.eos_id] * (length - len(ids)))
        self.prompt_ids, self.prompt_mask = encode_batch(tokenizer, [row["prompt"] for row in rows], denoiser.pad_id)
        check_fits_context(denoiser, self.prompt_ids.shape[1], length)
        if denoiser.block_length is not None and length % denoiser.block_length:
            raise ConfigError(
                f"max_completion_length = {length} is not a multiple of the model's block length, {denoiser.block_length}. "
                f"Use a multiple of {denoiser.block_length}."
            )
        self.completions = torch.tensor(completions)
        self.mask_id, self.block_length = denoiser.mask_id, denoiser.block_length
        self.batch_size, self.min_time = recipe.batch_size, recipe.min_time
        self.positions_at_once = positions_at_once(denoiser) or len(completions) * length

    def draw(self, generator: torch.Generator, share: slice, device: torch.device) -> PretrainBatch:
        """Draw a random batch for all ranks, and return a share of it. The number of ranks does not
        change the batch.

        Args:
            generator: source of the random numbers.
            share: rows that this rank owns.
            device: device of the returned tensors.
        """
        rows = torch.randint(len(self.completions), (self.batch_size,), generator=generator)
        times = stratified_times(self.batch_size, self.min_time, generator)
        everything = torch.ones_like(self.completions[rows], dtype=torch.bool)
        masked = mask_at_times(times, everything, generator)
        # Block diffusion (arXiv:2503.09573) masks one block, keeps the blocks before it clean and
        # hides those after it. A random block of each row stands for all of its blocks.
        num_blocks = 1 if self.block_length is None else masked.shape[1] // self.block_length
        if self.block_length is not None:
            block = torch.randint(num_blocks, (self.batch_size, 1), generator=generator)
            masked &= torch.arange(masked.shape[1]) // self.block_length == block
        # Trimmed before the ranks take their shares, so that all ranks have equal shapes.
        prompt_ids, prompt_mask = trim_left_padding(self.prompt_ids[rows], self.prompt_mask[rows])
        return PretrainBatch(
            prompt_ids=prompt_ids[share].to(device),
            prompt_mask=prompt_mask[share].to(device),
            completion=self.completions[rows[share]].to(device),
            masked=masked[share].to(device),
            times=times[share].to(device),
            num_blocks=num_blocks,
        )

    def loss(self, model: torch.nn.Module, batch: PretrainBatch) -> Tensor:
        """Return the negative ELBO per completion token of a batch, in nats."""
        target, masked = batch.completion, batch.masked
        columns, is_masked = compact_columns(masked)
        shown = target.masked_fill(masked, self.mask_id)
        inputs = (batch.prompt_ids, batch.prompt_mask, shown, columns, self.mask_id)
        readout = Readout(_token_logprob, is_masked, target[masked].unsqueeze(-1), self.positions_at_once, 1.0)
        read = predict_in_chunks(model, *inputs, readout)[0].squeeze(-1)
        logprob = read.new_zeros(target.shape).masked_scatter(masked, read)
        return -elbo(logprob, masked, batch.times).mean() / target.shape[1] * batch.num_blocks


def completion_length(recipe: PretrainRecipe) -> int:
    """Return the number of positions of a completion: the one in the recipe or, if the recipe has
    none, the task's default."""
    return recipe.max_completion_length or recipe.task.completion_length


def _token_logprob(logits: Tensor, tokens: Tensor) -> Tensor:
    return token_logprobs(logits).gather(-1, tokens)

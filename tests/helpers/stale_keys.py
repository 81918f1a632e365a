"""What a cached rollout computes, by hand: every column runs at every step, and attention takes the keys and values of an
earlier step for the columns that a cache would hold."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.modeling_utils import AttentionInterface

from unmask.core.config import SamplerConfig
from unmask.models import Denoiser


class StaleKeys:
    """Denoiser of one row that never leaves out a column, with the schedule of a sampler's cache.

    Give it to `denoise` with a sampler whose cache is off. It replaces the attention of the denoiser.

    Args:
        denoiser: denoiser of any native class with a bidirectional attention.
        sampler: sampler with a cache.
        prompt_length: number of columns before the completion.
        first_step: step of the first call.
    """

    def __init__(self, denoiser: Denoiser, sampler: SamplerConfig, prompt_length: int, first_step: int = 0) -> None:
        self.denoiser, self.sampler, self.prompt_length = denoiser, sampler, prompt_length
        self.mask_id, self.eos_id = denoiser.mask_id, denoiser.eos_id
        self.kept: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self.start, self.step_in_block, self.calls = -1, first_step % sampler.steps_per_block - 1, 0
        AttentionInterface.register("stale", self._attend)
        AttentionMaskInterface.register("stale", eager_mask)
        denoiser.backbone.set_attn_implementation("stale")

    def __call__(self, ids: Tensor, attention_mask: Tensor | None, positions: Tensor) -> Tensor:
        assert len(ids) == 1
        sampler, num_prompts = self.sampler, 2 if self.sampler.guidance else 1
        self.prompt = self.calls % num_prompts
        if self.prompt == 0:
            first = int((ids[0, self.prompt_length :] == self.mask_id).nonzero()[0])
            start = first // sampler.block * sampler.block
            is_new = start != self.start
            self.step_in_block = 0 if is_new and self.start >= 0 else self.step_in_block + 1
            every = sampler.cache_refresh_steps or sampler.steps_per_block
            self.is_refresh = is_new or self.step_in_block % every == 0
            self.start = start
        self.calls += 1
        column, begin = torch.arange(ids.shape[1]), self.prompt_length + self.start
        self.is_run = column >= begin - int(self.denoiser.logit_shift)
        if sampler.cache == "dual":
            self.is_run &= column < begin + sampler.block
        return self.denoiser(ids, attention_mask, positions)

    def _attend(self, module, query, key, value, attention_mask, scaling, dropout=0.0, **_):
        place = (self.prompt, module.layer_idx)
        if self.is_refresh:
            self.kept[place] = (key, value)
        run, (old_key, old_value) = self.is_run[:, None], self.kept[place]
        groups = query.shape[1] // key.shape[1]
        key, value = (
            torch.where(run, new, old).repeat_interleave(groups, dim=1)
            for new, old in ((key, old_key), (value, old_value))
        )
        scores = query @ key.mT * scaling
        if attention_mask is not None:
            scores = scores + attention_mask
        return (scores.softmax(-1) @ value).transpose(1, 2), None

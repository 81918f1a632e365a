"""What the checks run on: a model of LLaDA-8B's shape with random weights, its prompts, and the
folder of the runs; or all of it at toy size."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unmask.core.config import LoraConfig, SamplerConfig
from unmask.models import Denoiser
from unmask.models.adapters import Adapters
from unmask.models.device import default_device


@dataclass(frozen=True)
class Scale:
    """Sizes of the model and of its rollouts."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    vocabulary: int
    mask_id: int
    eos_id: int
    prompt: int
    sampler: dict[str, int]
    """Length, steps and block length of a completion."""
    rows: tuple[int, ...]
    """Numbers of completions in a batch."""
    rank: int
    """Rank of the adapters."""
    run_width: int
    """Width of the two layers of the model that the command line trains. It is such that ZeRO-3
    shards the weights, which it does not for tiny ones."""
    methods: int | None
    """Number of methods and variants that train; None for all."""


LARGE = Scale(
    hidden=4096,
    intermediate=12_288,
    layers=32,
    heads=32,
    vocabulary=126_464,
    mask_id=126_336,
    eos_id=126_081,
    prompt=200,
    sampler={"max_completion_length": 256, "num_steps": 128, "block_length": 32},
    rows=(8, 24, 48),
    rank=128,
    run_width=2048,
    methods=None,
)
"""LLaDA-8B-Instruct, with the lengths, steps and blocks of the published runs."""
TINY = Scale(
    hidden=64,
    intermediate=192,
    layers=3,
    heads=4,
    vocabulary=512,
    mask_id=510,
    eos_id=509,
    prompt=20,
    sampler={"max_completion_length": 32, "num_steps": 16, "block_length": 8},
    rows=(2, 3),
    rank=8,
    run_width=64,
    methods=2,
)


@contextmanager
def new_tensors(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Make the tensors of a block on a device, and those of floating-point numbers in a dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)


class Adapted(NamedTuple):
    """A model and the adapters in it."""

    denoiser: Denoiser
    adapters: Adapters


@dataclass
class Bench:
    """The device, the sizes, and a model that several checks share."""

    scale: Scale
    folder: Path
    device: torch.device = field(default_factory=lambda: torch.device(default_device()))

    @property
    def is_gpu(self) -> bool:
        """True on a CUDA GPU."""
        return self.device.type == "cuda"

    @property
    def has_bounds(self) -> bool:
        """True if times and memory must keep their bounds: at full size on a GPU. At toy size a
        kernel takes less time than its launch."""
        return self.is_gpu and self.scale is LARGE

    @cached_property
    def model(self) -> Denoiser:
        """The model with all layers, in bfloat16."""
        return self.made(self.scale.layers)

    @cached_property
    def adapted(self) -> Adapted:
        """The same model after adapters have been put into it."""
        adapters = Adapters(self.model, LoraConfig(r=self.scale.rank, alpha=64.0))
        return Adapted(self.model, adapters)

    def drop_model(self) -> None:
        """Free the memory of `model`."""
        self.__dict__.pop("adapted", None)
        self.__dict__.pop("model", None)
        gc.collect()
        if self.is_gpu:
            torch.cuda.empty_cache()

    def made(self, layers: int, block_length: int | None = None) -> Denoiser:
        """Return a model with random weights, made on the device in bfloat16.

        Args:
            layers: number of layers.
            block_length: block length of block-causal attention; None for bidirectional attention.
        """
        from transformers import LlamaConfig, LlamaForCausalLM

        scale = self.scale
        config = LlamaConfig(
            vocab_size=scale.vocabulary,
            hidden_size=scale.hidden,
            intermediate_size=scale.intermediate,
            num_hidden_layers=layers,
            num_attention_heads=scale.heads,
            num_key_value_heads=scale.heads,
            max_position_embeddings=4096,
            rms_norm_eps=1e-5,
            tie_word_embeddings=False,
            rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        )
        config.is_causal = False
        if block_length is not None:
            config.block_length = block_length
        config.architectures = ["LlamaForCausalLM"]
        torch.manual_seed(0)
        with new_tensors(self.device, torch.bfloat16):
            backbone = LlamaForCausalLM(config)
        with torch.no_grad():
            # Logits with a standard deviation of 5, as those of a trained model.
            backbone.lm_head.weight.normal_(0, 5 / scale.hidden**0.5)
        return Denoiser(backbone, scale.mask_id, scale.eos_id, scale.eos_id).requires_grad_(False).eval()

    def prompts(self, rows: int, padded: bool = False) -> tuple[Tensor, Tensor]:
        """Return random prompts [rows, P] and their mask; padded at the left of every second row if
        requested."""
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(self.scale.eos_id - 8, (rows, self.scale.prompt), generator=generator).to(self.device)
        mask = torch.ones_like(ids, dtype=torch.bool)
        if padded:
            mask[::2, :5] = False
        return ids, mask

    def sampler(self, **changes: Any) -> SamplerConfig:
        """Return the settings of a rollout, with changes."""
        settings: dict[str, Any] = {"temperature": 0.9, "order": "low_confidence", **self.scale.sampler, **changes}
        return SamplerConfig(**settings)

    def one_step_a_block(self, **changes: Any) -> SamplerConfig:
        """Return a sampler with one denoising step in each block, to time single steps."""
        whole = self.sampler()
        return self.sampler(num_steps=whole.max_completion_length // whole.block, **changes)

    def half_filled(self, rows: int) -> Tensor:
        """Return completions of which every second position is masked, so that a step of a rollout
        has as many masked positions as on average."""
        completion = torch.full((rows, self.scale.sampler["max_completion_length"]), self.scale.mask_id)
        completion[:, ::2] = 3
        return completion.to(self.device)

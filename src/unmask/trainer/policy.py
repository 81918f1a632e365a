"""The policy of a run, set up in one place: weights and their precision, adapters, the reference beside it, the optimizer."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unmask.core.errors import ConfigError
from unmask.models import Denoiser, Policy, from_run, load_model
from unmask.models.adapters import Adapters, save_adapted
from unmask.recipes.schema import PretrainRecipe, RunRecipe, TrainRecipe
from unmask.trainer.optimizer import make_optimizer, trainable
from unmask.trainer.reference import FrozenCopy, Reference, SecondAdapter, WithoutAdapters

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("unmask")


@dataclass(frozen=True, slots=True)
class TrainedPolicy:
    """A policy with what its training needs: adapters, reference and optimizer."""

    denoiser: Denoiser
    """Bare; rollouts and evaluations run it."""
    tokenizer: PreTrainedTokenizerBase
    adapters: Adapters | None
    """What is trained of it, if not all."""
    reference: Reference | None
    """If the method needs one."""
    optimizers: list[torch.optim.Optimizer]
    """Optimizers of what is trained; `train` has one, and `pretrain` two if it sets `muon_learning_rate`."""
    mark: dict[str, Tensor]
    """See `base_mark`."""

    def kept(self, recipe: TrainRecipe | PretrainRecipe) -> dict[str, Tensor]:
        """What a checkpoint holds beside what is trained: a reference that moves, and of which model the adapters are.

        To be asked for when the weights are where they stay.
        """
        moves = isinstance(recipe, TrainRecipe) and recipe.sync_ref_model
        return (self.reference.tensors() if self.reference and moves else {}) | self.mark

    def describe(self, folder: Path) -> None:
        """Write into a checkpoint what a model can be read from it with; see `from_run.describe`."""
        from_run.describe(folder, self.denoiser, self.tokenizer, self.adapters)

    def save(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write a plain transformers checkpoint, with the adapter in a folder of its own; see `save_adapted`."""
        save_adapted(self.denoiser, self.tokenizer, self.adapters, folder, weights)


def make_policy(recipe: TrainRecipe, device: torch.device) -> TrainedPolicy:
    """What a training recipe asks for, before anything is wrapped.

    Raises:
        ModelError: no usable model.
        ConfigError: adapters or a quantization that cannot be had.
    """
    denoiser, tokenizer = load_policy(recipe, recipe.model)
    reference: Reference | None = None
    needs_reference = recipe.method.needs().reference != "none"
    if needs_reference and not recipe.lora:
        # Before the copied becomes anything but plain weights.
        reference = FrozenCopy.of(denoiser, device, offload=recipe.reference_offload)
    adapters = equip(recipe, denoiser, recipe.model)
    if needs_reference and adapters:
        reference = SecondAdapter(adapters) if recipe.sync_ref_model else WithoutAdapters(adapters)
    optimizers = [make_optimizer(trainable(denoiser), recipe.optim)]
    return TrainedPolicy(denoiser, tokenizer, adapters, reference, optimizers, base_mark(denoiser, adapters))


def load_policy(recipe: RunRecipe, model: str) -> Policy:
    """The model in the recipe's precision, as `load_model` gives it."""
    quantization = _four_bits(recipe) if recipe.lora and recipe.lora.quantize == "4bit" else None
    return load_model(model, recipe.dtype, quantization)


def equip(recipe: RunRecipe, denoiser: Denoiser, base: str | None) -> Adapters | None:
    """Adapters, checkpointing and compilation as the recipe asks for them, in place.

    Raises:
        ConfigError: peft is missing, or a target that no module has.
    """
    adapters = Adapters(denoiser, recipe.lora, recipe.seed, base) if recipe.lora else None
    if adapters is None and recipe.dtype == "bfloat16":
        logger.warning(
            "dtype = bfloat16 without lora trains weights of 8 significant bits: an update below 1/256 of a weight is rounded "
            "away. Use dtype = float32 with mixed_precision = bf16, or lora."
        )
    if recipe.gradient_checkpointing:
        denoiser.checkpoint_gradients()
    if recipe.compile:
        denoiser.compile_trunk()
    return adapters


def base_mark(denoiser: Denoiser, adapters: Adapters | None) -> dict[str, Tensor]:
    """A tensor whose name tells the model under the adapters; a checkpoint with another name is refused."""
    return {from_run.base_mark(denoiser): torch.zeros(1)} if adapters else {}


def _four_bits(recipe: RunRecipe) -> object:
    """transformers' settings of QLoRA: NormalFloat with doubly quantized scales, computing in the other weights' precision."""
    if not torch.cuda.is_available():
        raise ConfigError(
            "lora.quantize = 4bit needs a CUDA GPU, and there is none here. Set it to none; dtype = bfloat16 halves the weights."
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError("lora.quantize = 4bit needs bitsandbytes, which is not installed: pip install bitsandbytes")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, recipe.dtype),
    )

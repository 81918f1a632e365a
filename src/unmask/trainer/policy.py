"""Set-up of the policy of a run, which loads its weights and makes its adapters, its reference
policy and its optimizer."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unmask.core.errors import ConfigError
from unmask.models import Denoiser, Policy, from_run, load_model
from unmask.models.adapter_folders import save_adapted
from unmask.models.adapters import Adapters
from unmask.models.device import weights_dtype
from unmask.recipes.schema import PretrainRecipe, RunRecipe, TrainRecipe
from unmask.trainer.optimizer import make_optimizer, trainable
from unmask.trainer.reference import FrozenCopy, Reference, SecondAdapter, WithoutAdapters

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class TrainedPolicy:
    """A policy with its adapters, its reference and its optimizer."""

    denoiser: Denoiser
    """The model without accelerate's wrapper."""
    tokenizer: PreTrainedTokenizerBase
    """The tokenizer of the model."""
    adapters: Adapters | None
    """The adapters that are trained; None if all weights are trained."""
    reference: Reference | None
    """The reference policy; None if the method needs none."""
    optimizers: list[torch.optim.Optimizer]
    """The optimizers of the trained weights: one in `train`, two in `pretrain` with
    `muon_learning_rate`."""
    mark: dict[str, Tensor]
    """A tensor whose name identifies the model under the adapters; see `base_mark`."""

    def kept(self, recipe: TrainRecipe | PretrainRecipe) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint holds besides the trained tensors: a reference
        policy that changes during the run, and the mark of the base model (see `base_mark`).

        Call this after accelerate has moved the weights to their device.
        """
        moves = isinstance(recipe, TrainRecipe) and recipe.sync_ref_model
        return (self.reference.tensors() if self.reference and moves else {}) | self.mark

    def describe(self, folder: Path) -> None:
        """Write the files that `load_model` needs to read a model from a checkpoint; see
        `from_run.describe`."""
        from_run.describe(folder, self.denoiser, self.tokenizer, self.adapters)

    def save(
        self,
        folder: Path,
        weights: Mapping[str, Tensor] | None = None,
        adapter: Path | None = None,
        working: Callable[[], None] = lambda: None,
    ) -> None:
        """Write a plain transformers checkpoint, and the adapter in a folder of its own; see
        `save_adapted`."""
        save_adapted(self.denoiser, self.tokenizer, self.adapters, folder, weights, adapter, working)

    def save_adapter(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write only the adapter, which `load_model` merges when it reads the folder; see
        `Adapters.save`."""
        assert self.adapters is not None
        self.adapters.save(folder / from_run.ADAPTER, weights)


def make_policy(recipe: TrainRecipe, device: torch.device, *, is_sharded: bool = False) -> TrainedPolicy:
    """Load the policy of a training recipe, and make its adapters, its reference and its optimizer.

    Args:
        recipe: settings of the run.
        device: device that the policy is trained on.
        is_sharded: True if no rank will hold the whole weights on its device; see `load_policy`.

    Raises:
        ModelError: the model is missing or cannot be used.
        ConfigError: the adapters or the quantization do not work with this model or on this
            machine.
    """
    denoiser, tokenizer = load_policy(recipe, recipe.model, device, is_sharded=is_sharded)
    reference: Reference | None = None
    needs_reference = recipe.method.needs().reference != "none"
    # At α = 1 a move is a copy, which loses nothing.
    is_fine = recipe.sync_ref_model and recipe.ref_model_mixup_alpha < 1
    if needs_reference and not recipe.lora:
        # The copy is made while the policy still has plain weights.
        reference = FrozenCopy.of(denoiser, device, offload=recipe.reference_offload, is_fine=is_fine)
    adapters = equip(recipe, denoiser, recipe.model)
    if needs_reference and adapters:
        reference = SecondAdapter(adapters, is_fine=is_fine) if recipe.sync_ref_model else WithoutAdapters(adapters)
    optimizers = [make_optimizer(trainable(denoiser), recipe.optim)]
    return TrainedPolicy(denoiser, tokenizer, adapters, reference, optimizers, base_mark(denoiser, adapters))


def load_policy(recipe: RunRecipe, model: str, device: torch.device, *, is_sharded: bool = False) -> Policy:
    """Load a model in the precision of the recipe; see `load_model`.

    The forward passes that check the model run where it is loaded. Whole weights therefore go to
    the device at once; weights that will be sharded stay on the CPU, because the device may not
    hold all of them.
    """
    dtype = weights_dtype(device, recipe.precision)
    quantization = _four_bits(dtype, device) if recipe.lora and recipe.lora.quantize == "4bit" else None
    return load_model(model, str(dtype).removeprefix("torch."), quantization, None if is_sharded else device)


def equip(recipe: RunRecipe, denoiser: Denoiser, base: str | None) -> Adapters | None:
    """Add adapters, gradient checkpointing and compilation to a denoiser in place, as the recipe
    sets them.

    Args:
        recipe: settings of the run.
        denoiser: the model.
        base: folder or hub id of the model. The saved adapter names it as its base model.

    Returns:
        The adapters; None if all weights are trained.

    Raises:
        ConfigError: peft is missing, or no module has the name of a target.
    """
    adapters = Adapters(denoiser, recipe.lora, recipe.seed, base) if recipe.lora else None
    if recipe.gradient_checkpointing:
        denoiser.checkpoint_gradients()
    if recipe.compile:
        denoiser.compile_layers()
    return adapters


def base_mark(denoiser: Denoiser, adapters: Adapters | None) -> dict[str, Tensor]:
    """Return a tensor whose name identifies the base model under the adapters.

    A run does not resume from a checkpoint whose tensor has another name, because its base model
    differs.
    """
    return {from_run.base_mark(denoiser): torch.zeros(1)} if adapters else {}


def _four_bits(dtype: torch.dtype, device: torch.device) -> object:
    """Return the quantization settings of QLoRA for transformers: 4-bit NormalFloat with doubly
    quantized scales, and the precision of the other weights.

    Raises:
        ConfigError: bitsandbytes is not installed, or does not support the device.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError("lora.quantize = 4bit needs bitsandbytes, which is not installed: pip install bitsandbytes")
    import bitsandbytes

    if device.type not in bitsandbytes.supported_torch_devices:
        raise ConfigError(
            f"lora.quantize = 4bit does not work on {device.type}: bitsandbytes {bitsandbytes.__version__} supports "
            f"{', '.join(sorted(bitsandbytes.supported_torch_devices))}. Set it to none; precision = bf16 halves the memory of "
            "the weights."
        )
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )

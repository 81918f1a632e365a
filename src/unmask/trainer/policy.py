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

from unmask.core.config import LEARNED
from unmask.core.errors import ConfigError
from unmask.models import Denoiser, Policy, from_run, load_model
from unmask.models.adapter_folders import save_adapted
from unmask.models.adapters import Adapters
from unmask.models.device import weights_dtype
from unmask.models.experts import freeze_routers, is_mixture
from unmask.models.position_head import add_position_head
from unmask.recipes.schema import PretrainRecipe, RunRecipe, TrainRecipe
from unmask.trainer.critic import blank_moments
from unmask.trainer.expert_use import ExpertUse
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
    expert_use: ExpertUse | None = None
    """Counter of the tokens of each expert; None if the model is no mixture of experts."""
    critic: Tensor | None = None
    """Moments of the critic, see `Critic`; None if the method needs none."""

    def kept(self, recipe: TrainRecipe | PretrainRecipe) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint holds besides the trained tensors: a reference
        policy that changes during the run, what the critic has learned, and the mark of the base
        model (see `base_mark`).

        Call this after accelerate has moved the weights to their device.
        """
        moves = isinstance(recipe, TrainRecipe) and recipe.sync_ref_model
        reference = self.reference.tensors() if self.reference and moves else {}
        return reference | ({"critic": self.critic} if self.critic is not None else {}) | self.mark

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
    if recipe.sampler.order == LEARNED and denoiser.position_head is None:
        add_position_head(denoiser.backbone, recipe.seed)
    expert_use = ExpertUse.of(denoiser)
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
    mark = base_mark(denoiser, adapters)
    critic = blank_moments(denoiser, device) if recipe.method.needs().critic else None
    return TrainedPolicy(denoiser, tokenizer, adapters, reference, optimizers, mark, expert_use, critic)


def load_policy(recipe: RunRecipe, model: str, device: torch.device, *, is_sharded: bool = False) -> Policy:
    """Load a model in the precision of the recipe; see `load_model`.

    The forward passes that check the model run where it is loaded. Whole weights therefore go to
    the device at once; weights that will be sharded stay on the CPU, because the device may not
    hold all of them.

    Raises:
        ModelError: the model is missing or cannot be used.
        ConfigError: the settings of `lora` do not work with this model or on this machine.
    """
    dtype = weights_dtype(device, recipe.precision)
    quantization = _four_bits(dtype, device) if recipe.lora and recipe.lora.quantize == "4bit" else None
    policy = load_model(model, str(dtype).removeprefix("torch."), quantization, None if is_sharded else device)
    if recipe.lora and is_mixture(policy.denoiser):
        if quantization is not None:
            raise ConfigError(
                "lora.quantize = 4bit does not store the stacked experts of a mixture in 4 bits, and they are most of its "
                "weights. Set it to none; precision = bf16 halves the memory of the weights."
            )
        if recipe.lora.experts and is_sharded:
            raise ConfigError(
                "lora.experts = true needs whole weights, and this preset shards them. Use ddp or zero2, or set it to false.",
                agreed=True,
            )
    return policy


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
    if not recipe.train_router and not recipe.lora:
        freeze_routers(denoiser)
    if denoiser.position_head is not None:
        # Under another order it has no gradient.
        denoiser.position_head.requires_grad_(isinstance(recipe, TrainRecipe) and recipe.sampler.order == LEARNED)
    if recipe.gradient_checkpointing:
        denoiser.checkpoint_gradients()
    if recipe.compile:
        denoiser.compile_layers()
    return adapters


def trained_parts(recipe: RunRecipe, policy: TrainedPolicy) -> str:
    """Return a sentence that says which parts of a mixture of experts are trained; empty for other
    models."""
    if policy.expert_use is None:
        return ""
    start = f"The model is a mixture of {policy.expert_use.num_experts} experts in {len(policy.expert_use)} layers. "
    if policy.adapters is None:
        routers = "" if recipe.train_router else " except its routers (train_router: true trains them)"
        return f"{start}All its weights are trained{routers}."
    stems = {name.partition(".lora_")[0] for name, _ in policy.adapters.parameters()}
    layers = sorted({stem.rpartition(".")[2] for stem in stems} - {"experts", "base_layer"})
    of_experts = recipe.lora is not None and recipe.lora.experts
    experts = " and its experts" if of_experts else ""
    frozen = "The routers are" if of_experts else "The experts (lora.experts: true adapts them) and the routers are"
    return f"{start}Adapters on {', '.join(layers)}{experts} are trained. {frozen} frozen."


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

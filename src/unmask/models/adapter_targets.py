"""The weights of a denoiser that get LoRA adapters: linear layers, and the stacked experts of a
mixture."""

from __future__ import annotations

from torch import nn

from unmask.core.config import LoraConfig
from unmask.core.errors import ConfigError, unknown_name
from unmask.models.denoiser import Denoiser
from unmask.models.experts import experts_of, is_mixture

_TAKEN_FOR_EXPERTS = ("gate_proj", "up_proj", "down_proj")
"""Names of linear layers that peft replaces by the stacked experts of a mixture, wherever the layers
are."""


def target_modules(denoiser: Denoiser, config: LoraConfig) -> list[str]:
    """Return the full names, within the backbone, of the linear modules that get an adapter.

    In a mixture of experts these are modules of the attention: `all-linear` leaves out the MLPs of
    dense layers and of shared experts, because peft takes targets with their names for the stacked
    experts of all layers.

    Raises:
        ConfigError: no linear module matches a target; the message lists the modules.
    """
    backbone = denoiser.backbone
    linear = [name for name, module in backbone.named_modules() if _is_linear(module)]
    if is_mixture(denoiser):
        linear = [name for name in linear if name.rpartition(".")[2] not in _TAKEN_FOR_EXPERTS]
        _check_experts(config)
    if config.targets == "all-linear":
        trunk = f"{backbone.base_model_prefix}."
        return [name for name in linear if name.startswith(trunk)]
    names: list[str] = []
    for target in config.targets:
        matching = [name for name in linear if f".{name}".endswith(f".{target}")]
        if not matching:
            available = {name.rpartition(".")[2] for name in linear}
            raise ConfigError(
                f"lora.targets: {unknown_name('linear module', target, available)} These are the linear modules of a "
                f"{type(backbone).__name__}; all-linear takes all of the trunk."
            )
        names += [name for name in matching if name not in names]
    head = backbone.get_output_embeddings()
    tied = head is not None and head.weight is backbone.get_input_embeddings().weight
    if tied and any(backbone.get_submodule(name) is head for name in names):
        raise ConfigError("lora.targets names the head, which shares its weights with the embeddings. Leave it out.")
    return names


def target_experts(denoiser: Denoiser, config: LoraConfig) -> list[str]:
    """Return the full names, within the backbone, of the stacked experts that get an adapter.

    Raises:
        ConfigError: the setting does not fit the model or the other settings.
    """
    if not config.experts:
        return []
    if not is_mixture(denoiser):
        raise ConfigError(
            f"lora.experts is set, but a {type(denoiser.backbone).__name__} has no mixtures of experts. Set it to false."
        )
    if config.dropout:
        raise ConfigError(
            f"lora.experts does not work with lora.dropout = {config.dropout}, because the adapter of a stack of experts is "
            "added to the weights. Set lora.dropout to 0."
        )
    return [name for name, _ in experts_of(denoiser)]


def _check_experts(config: LoraConfig) -> None:
    """Raise ConfigError for a target that peft would replace by stacked experts."""
    for target in () if config.targets == "all-linear" else config.targets:
        if target.rpartition(".")[2] in _TAKEN_FOR_EXPERTS:
            raise ConfigError(
                f'lora.targets has "{target}", which peft takes for the stacked experts of all layers of a mixture. Leave it '
                "out, and set lora.experts to true to adapt the experts."
            )


def _is_linear(module: nn.Module) -> bool:
    # Conv1D is GPT-2's transposed linear layer; quantized linear layers are subclasses.
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"

"""Loading and saving of masked diffusion models in the folder format of transformers: safetensors,
native classes, no remote code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unmask.core.errors import ModelError, no_file, reason
from unmask.models.denoiser import Denoiser, check_bidirectional
from unmask.models.families import FAMILIES, UNSUPPORTED, original_family_of
from unmask.models.from_run import adapter_in, load_checkpoint, locate
from unmask.models.native import NATIVE_CLASSES, twins_of
from unmask.models.policy import Policy
from unmask.models.position_head import (
    POSITION_HEAD,
    head_tensors,
    read_position_head,
    restore_position_head,
    save_position_head,
)
from unmask.models.size import check_size, sizes_of_tensors
from unmask.models.source import check_on_hub, is_hub_id, refuse_pickles
from unmask.runs.checkpoints import is_checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

SHARD_BYTES = 2 * 10**9
"""Largest size of a file of weights in bytes, unless a single tensor is larger. A run counts each
finished file as progress."""

_ONE_AT_A_TIME = Lock()
"""Lock of the loading of models. While transformers loads a model it replaces methods of its classes,
and two threads that overlap would restore the replacement: later models would not tie their
weights."""


def load_model(
    source: str | os.PathLike[str],
    dtype: str = "auto",
    quantization_config: object = None,
    device: torch.device | str | None = None,
) -> Policy:
    """Load a denoiser and its tokenizer, and check them.

    Args:
        source: folder, hub id, run folder or checkpoint of a run; see `locate`. A LoRA adapter
            stands for its base model with the adapter merged.
        dtype: dtype of the weights, such as float32 or bfloat16; `auto` is the dtype in the file.
        quantization_config: a quantization config of transformers, for weights that are quantized
            while they are loaded.
        device: device of the model; by default the CPU, or for quantized weights the GPU.

    Raises:
        ModelError: there is no model, its class is not in `NATIVE_CLASSES`, its weights do not
            match, it needs remote code, it has no MASK or EOS token, or it is causal.
    """
    source = locate(os.path.expanduser(source))
    adapter = adapter_in(Path(source))
    if adapter is None and not is_checkpoint(Path(source)):
        return load_folder(source, dtype, quantization_config, device=device)
    if quantization_config is not None:
        kind = "a checkpoint of a run" if adapter is None else "an adapter"
        raise ModelError(
            f"{source} is {kind}, which cannot be quantized while it is loaded. Make a model folder of it first: "
            f"unmask merge {quote(source)} FOLDER"
        )
    if adapter is None:
        policy = load_checkpoint(Path(source), load_folder, dtype)
    else:
        from unmask.models.adapter_folders import load_adapter

        policy, _ = load_adapter(adapter, dtype=dtype)
    if device is not None:
        policy.denoiser.to(device)
    return policy


def load_folder(
    source: str | os.PathLike[str],
    dtype: str = "auto",
    quantization_config: object = None,
    weights: Mapping[str, Tensor] | None = None,
    device: torch.device | str | None = None,
) -> Policy:
    """Load the model of a folder or a hub id.

    Args:
        source: folder or hub id.
        dtype: dtype of the weights.
        quantization_config: quantization config of transformers.
        weights: weights of the backbone to use instead of those in the folder.
        device: device of the model.
    """
    config = _read_config(source)
    architecture = _native_class(source, config)
    weights, head = (None, None) if weights is None else head_tensors(weights)
    tokenizer = _load_tokenizer(source)
    sizes = {name: value.numel() for name, value in weights.items()} if weights else sizes_of_tensors(Path(source))
    check_size(str(source), architecture, config, sizes)
    backbone = _load_backbone(source, architecture, config, dtype, quantization_config, weights)
    if len(tokenizer) > backbone.config.vocab_size:
        raise ModelError(
            f"the tokenizer of {source} has {len(tokenizer)} tokens and the model only {backbone.config.vocab_size}: "
            "they do not belong together. Copy the tokenizer that the model was trained with."
        )
    if getattr(config, POSITION_HEAD, False):
        restore_position_head(backbone, read_position_head(source) if head is None else head, source)
    denoiser = Denoiser(backbone, tokenizer.mask_token_id, tokenizer.eos_token_id, _pad_id(tokenizer))
    denoiser.eval()
    if device is not None:
        denoiser.to(device)
    try:
        check_bidirectional(denoiser)
    except ModelError:
        raise
    except Exception as error:  # sizes that do not fit each other show when the model is run
        raise ModelError(
            f"{source} cannot be run: {reason(error)}. Correct its config.json, or copy the checkpoint again."
        ) from error
    return Policy(denoiser, tokenizer)


def _native_class(source: str | os.PathLike[str], config: PreTrainedConfig) -> str:
    """Return the name of the class of a config.

    Raises:
        ModelError: the class is not in `NATIVE_CLASSES`, or the model is causal.
    """
    named = config.architectures if isinstance(config.architectures, list) else [config.architectures]
    architecture = str((named or ["none"])[0])
    if architecture not in NATIVE_CLASSES:
        raise ModelError(
            f"{source} holds a {architecture}, which is not a known class. Known: {', '.join(NATIVE_CLASSES)}. "
            "To add a class, add an entry to unmask/models/native.py."
        )
    native = NATIVE_CLASSES[architecture]
    if native.auto_class == "AutoModelForCausalLM" and getattr(config, "is_causal", True):
        raise ModelError(
            f"{source} is a causal model: its config.json does not say is_causal: false. "
            "If it was trained as a masked diffusion model, add that line; otherwise it cannot be used here."
        )
    return architecture


def _load_backbone(
    source: str | os.PathLike[str],
    architecture: str,
    config: PreTrainedConfig,
    dtype: str,
    quantization_config: object,
    weights: Mapping[str, Tensor] | None,
) -> PreTrainedModel:
    """Load the backbone, with all of its weights in the shapes that its config states; the
    arguments are those of `load_folder`."""
    import transformers

    try:
        # Shapes that differ are then reported in `info`, together with missing weights.
        with _ONE_AT_A_TIME:
            backbone, info = getattr(transformers, architecture).from_pretrained(
                None if weights else source,
                state_dict=weights,
                config=config,
                dtype=config.dtype if weights and dtype == "auto" else dtype,
                quantization_config=quantization_config,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except Exception as error:  # any error that transformers raises is a fault of the folder
        if not list(Path(source).glob("*.safetensors")):
            refuse_pickles(Path(source))
        raise ModelError(f"{source} could not be loaded: {reason(error)}") from error
    if quantization_config is not None:
        _keep_trainable(backbone)
    wrong = sorted(info["missing_keys"]) + sorted(name for name, *_ in info["mismatched_keys"])
    if wrong:
        raise ModelError(
            f"{source} lacks weights that its config.json requires of a {architecture}, or has them in another shape: "
            f"{', '.join(wrong[:3])}{', ...' if len(wrong) > 3 else ''}. Copy the checkpoint again, or correct its config.json."
        )
    loaded: PreTrainedModel = backbone
    return loaded


def save_model(
    denoiser: Denoiser,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | os.PathLike[str],
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a folder that `load_model` and `from_pretrained` of transformers can read.

    `weights` is the state dict to write, of the backbone or of the whole denoiser; by default the
    state dict of the model.
    """
    if weights is None and denoiser.position_head is not None:
        weights = denoiser.backbone.state_dict()
    position_head: dict[str, Tensor] = {}
    if weights is not None:
        # After gathering or a move to the CPU, the head no longer shares memory with the embedding
        # that it is tied to, and would be written twice.
        twins = twins_of(denoiser.backbone)
        plain = {key.removeprefix("backbone."): value for key, value in weights.items()}
        weights, position_head = head_tensors({key: value for key, value in plain.items() if key not in twins})
    # Names and shapes stay those of the class; transformers would save experts one by one.
    denoiser.backbone.save_pretrained(
        folder, state_dict=weights, max_shard_size=SHARD_BYTES, save_original_format=False
    )
    if position_head:
        save_position_head(Path(folder), position_head)
    tokenizer.save_pretrained(folder)


def _keep_trainable(backbone: nn.Module) -> None:
    """Keep the format of 4-bit weights that backward passes read. On a CPU with bfloat16 units,
    bitsandbytes would repack them for inference in the first forward pass without gradients."""
    for module in backbone.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def _read_config(source: str | os.PathLike[str]) -> PreTrainedConfig:
    from transformers import AutoConfig, PreTrainedConfig

    folder = Path(source)
    if not folder.exists() and not is_hub_id(source):
        raise ModelError(
            f"{no_file(source, 'folder')} Set model to a folder or a hub id; if a recipe makes it, run that first "
            "(unmask pretrain ...)."
        )
    if not folder.exists():
        check_on_hub(source)
    if folder.exists() and not (folder / "config.json").is_file():
        raise ModelError(
            f"{source} is not a model, because it has no config.json. Give a folder that holds one, or a hub id."
        )
    try:
        raw, _ = PreTrainedConfig.get_config_dict(source)
        # This comes before transformers reads the config, because it would ask on the terminal
        # whether to run the code.
        _refuse_other_layouts(str(source), raw)
        config: PreTrainedConfig = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"no model at {source}{'' if folder.exists() else ', which is not a folder here'}: {reason(error)} "
            "Give a folder with config.json, or a hub id."
        ) from error
    return config


def _refuse_other_layouts(source: str, raw: Mapping[str, Any]) -> None:
    """Raise for a config that is not native, with the command that converts it if there is one."""
    architecture = (raw.get("architectures") or ["no class"])[0]
    points = f"{source} refers to its own code ({architecture}), and unmask runs no remote code."
    if architecture in UNSUPPORTED:
        raise ModelError(f"{source} cannot be used: {UNSUPPORTED[architecture]}.")
    if (name := original_family_of(raw)) is not None:
        raise ModelError(
            f"{points if 'auto_map' in raw else f'{source} is not in a native layout ({architecture}).'} "
            f"{FAMILIES[name].title} is a known family. Convert it once, without that code: "
            f"unmask convert {quote(source)} {quote(Path(source).name + '-native')}"
        )
    if "auto_map" in raw:
        raise ModelError(
            f"{points} If {raw.get('model_type')} is the same function as a native transformers class, an entry in "
            "unmask/models/releases makes `unmask convert` read it (docs/models.md); remove auto_map from its config.json "
            "if it is in a native layout already."
        )


def _load_tokenizer(source: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, padding_side="left", trust_remote_code=False
        )
    except Exception as error:
        raise ModelError(f"{source} has no tokenizer that transformers can read: {reason(error)}") from error
    for name in ("mask_token", "eos_token"):
        if getattr(tokenizer, f"{name}_id") is None:
            raise ModelError(
                f"the tokenizer of {source} has no {name}. Set it in its tokenizer_config.json, or use `unmask convert` for a "
                "known family."
            )
    return tokenizer


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    pad_id: int = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return pad_id

"""Models in run folders: the final model of a run, the model of its best evaluation, or any
checkpoint. The run need not have ended."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unmask.core.errors import ModelError
from unmask.core.files import read_json_object
from unmask.models.policy import Policy
from unmask.models.position_head import head_tensors, restore_position_head
from unmask.models.state_files import BUFFER, EXTRA, WEIGHT, StateFiles
from unmask.runs.checkpoints import checkpoints_in, fault_of, is_checkpoint, is_of_another

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from unmask.models.adapters import Adapters
    from unmask.models.denoiser import Denoiser

ADAPTER = "adapter"
"""Name of the folder of an adapter beside or in place of its model."""
ADAPTER_CONFIG = "adapter_config.json"
"""Name of peft's file that describes an adapter."""
BASE_FACTS = "base.json"
"""Name of the file that records the precision of the model under an adapter, and whether it was
quantized."""
_BACKBONE = "backbone."
"""Prefix of the backbone's weights in a denoiser's state dict."""
_MARK = "base model "
"""Prefix of the fingerprint of the model under an adapter."""

Load = Callable[..., "Policy"]

logger = logging.getLogger("unmask")


def locate(source: str | os.PathLike[str]) -> str:
    """Find the folder of the model that a source stands for.

    A run folder stands for its final/ or, if the run has not ended, for its newest checkpoint, with
    a warning. Any other source stands for itself: a model folder, RUN/best, RUN/final,
    RUN/checkpoints/step-N, or a name on the hub.

    Raises:
        ModelError: a run folder has no model, its newest checkpoint belongs to another run, or the
            source is a folder of checkpoints.
    """
    folder = Path(source)
    try:
        is_folder = folder.is_dir()
    except OSError as error:
        raise ModelError(f"{source} cannot be read ({error.strerror}). Set model to a folder or a hub id.") from error
    if not is_folder or (folder / "config.json").exists() or is_checkpoint(folder):
        return str(source)
    if os.path.basename(os.path.realpath(folder)) == "checkpoints" and checkpoints_in(folder.parent):
        names = ", ".join(path.name for path in checkpoints_in(folder.parent)[-3:])
        raise ModelError(f"{source} holds several checkpoints of a run. Name one of them: {names}.")
    if not (folder / "run.lock").exists() and not (folder / "checkpoints").exists():
        # Only final/ may have been copied here from the run folder.
        return str(folder / "final") if (folder / "final" / "config.json").is_file() else str(source)
    if (folder / "final" / "config.json").is_file():
        return str(folder / "final")
    checkpoints = checkpoints_in(folder)
    if not checkpoints:
        raise ModelError(
            f"{source} is a run that has not ended and has no checkpoint yet. Resume it (--resume), or give "
            "another folder."
        )
    run_id = read_json_object(folder / "run.json", ModelError).get("id") if (folder / "run.json").exists() else None
    if isinstance(run_id, str) and is_of_another(checkpoints[-1], run_id):
        raise ModelError(
            f"the newest checkpoint in {source}, {checkpoints[-1].name}, belongs to another run. Name the checkpoint that you "
            f"want, such as {checkpoints[-1]}."
        )
    logger.warning(f"{source} has not ended; using its newest checkpoint, {checkpoints[-1]}.")
    return str(checkpoints[-1])


def adapter_in(folder: Path) -> Path | None:
    """Return the folder of the adapter if `folder` is one, or holds one and no model; otherwise
    None."""
    if (folder / "config.json").is_file() or is_checkpoint(folder):
        return None
    return next((path for path in (folder, folder / ADAPTER) if (path / ADAPTER_CONFIG).is_file()), None)


def describe(folder: Path, denoiser: Denoiser, tokenizer: PreTrainedTokenizerBase, adapters: Adapters | None) -> None:
    """Write what `load_checkpoint` needs besides the weights into a checkpoint: the config of the
    adapter or of the model.

    A base model has a config and a tokenizer in its own folder, so this function does not write
    them beside an adapter.
    """
    backbone = denoiser.backbone
    if adapters is not None:
        adapters.save_config(folder)
        is_quantized = bool(getattr(backbone, "is_quantized", False))
        facts = {"dtype": str(backbone.dtype).removeprefix("torch."), "is_quantized": is_quantized}
        (folder / BASE_FACTS).write_text(json.dumps(facts) + "\n")
        return
    config = type(backbone.config).from_dict(backbone.config.to_dict())
    # FSDP renames the classes of the modules that it shards.
    config.architectures = [type(backbone).__name__.removeprefix("FSDP")]
    config.dtype = backbone.dtype
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_checkpoint(folder: Path, load: Load, dtype: str = "auto", base: str | None = None) -> Policy:
    """Load the model of a checkpoint with adapters merged, as RUN/final would hold it if the run
    had ended there.

    Args:
        folder: checkpoint.
        load: function that reads a model folder, with weights to use instead of the folder's.
        dtype: dtype of the weights; see `load_model`.
        base: model under the adapter, instead of the model that the run named.

    Raises:
        ModelError: the checkpoint is damaged, or its base model is missing or has changed.
    """
    if (fault := fault_of(folder)) is not None:
        raise ModelError(f"the checkpoint {folder} cannot be used: {fault}. Use another checkpoint of its run.")
    try:
        files = StateFiles(folder)
        weights = {
            name.removeprefix(_BACKBONE): files.read(kind + name)
            for kind in (WEIGHT, BUFFER)
            for name in files.of_kind(kind)
        }
    except Exception as error:  # a damaged file can make safetensors raise any error
        raise ModelError(
            f"the checkpoint {folder} cannot be read: {error}. Use another checkpoint of its run."
        ) from error
    if not (folder / ADAPTER_CONFIG).is_file():
        return load(folder, dtype, weights=weights)
    return _merged(folder, weights, files.of_kind(EXTRA), dtype, base)


def base_of(folder: Path) -> str | None:
    """Return the model under the adapter of a checkpoint, as the run named it; None if the
    checkpoint holds all weights."""
    if not (folder / ADAPTER_CONFIG).is_file():
        return None
    base = read_json_object(folder / ADAPTER_CONFIG, ModelError).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(f"the checkpoint {folder} does not say which model its adapter was trained on.")
    return base


def base_mark(denoiser: Denoiser) -> str:
    """Return the name of the checkpoint entry that holds the fingerprint of the base model."""
    from unmask.models.adapters import fingerprint

    return f"{_MARK}{fingerprint(denoiser)}"


def _merged(folder: Path, weights: dict[str, Tensor], marks: list[str], dtype: str, base: str | None) -> Policy:
    """Return the base model of a checkpoint with the adapter merged."""
    from unmask.models.adapters import Adapters
    from unmask.models.loading import load_model

    facts = read_json_object(folder / BASE_FACTS, ModelError)
    under, is_quantized = base or base_of(folder), bool(facts.get("is_quantized"))
    assert under is not None
    try:
        denoiser, tokenizer = load_model(under, "auto" if is_quantized or base else str(facts.get("dtype", "auto")))
    except ModelError as error:
        error.add_note(f"{under} is the model that the adapter in {folder} was trained on.")
        raise
    weights, head = head_tensors(weights)
    if head:
        restore_position_head(denoiser.backbone, head, folder)
    adapters = Adapters.restore(denoiser, folder, weights)
    trained_on = [mark for mark in marks if mark.startswith(_MARK)]
    # Quantized weights differ from those of the file.
    if trained_on and not base and not is_quantized and base_mark(denoiser) not in trained_on:
        raise ModelError(
            f"{under} is no longer the model that the adapter in {folder} was trained on, because its weights differ. Restore "
            f"that model, or merge into this one: unmask merge {quote(str(folder))} FOLDER --base {quote(under)}."
        )
    adapters.merge_in_place()
    if dtype != "auto":
        # Buffers stay float32: the frequencies of rotary positions, and the biases of routers.
        for parameter in denoiser.parameters():
            parameter.data = parameter.data.to(getattr(torch, dtype))
    return Policy(denoiser, tokenizer)

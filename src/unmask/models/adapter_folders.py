"""Folders of adapters: an adapter beside its model, alone, and merged into its base model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from unmask.core.errors import ModelError, no_file
from unmask.models.adapters import CONFIG_FILE, Adapters
from unmask.models.denoiser import Denoiser
from unmask.models.from_run import ADAPTER, base_of, load_checkpoint, locate
from unmask.models.loading import load_folder, load_model, save_model
from unmask.models.policy import Policy
from unmask.models.source import read_json
from unmask.runs.checkpoints import is_checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("unmask")


def save_adapted(
    denoiser: Denoiser,
    tokenizer: PreTrainedTokenizerBase,
    adapters: Adapters | None,
    folder: Path,
    weights: Mapping[str, Tensor] | None = None,
    adapter: Path | None = None,
    working: Callable[[], None] = lambda: None,
) -> None:
    """Write a denoiser as a plain transformers checkpoint with adapters merged, and write the
    adapter alone to `folder`/adapter.

    An adapter of quantized weights is merged into the model that it names. If that model cannot be
    loaded, `folder` holds the adapter alone, which `load_model` merges as soon as it can, and a
    warning says why.

    Args:
        denoiser: policy.
        tokenizer: tokenizer of the policy.
        adapters: adapters of the policy; None if there are none.
        folder: folder to write.
        weights: whole state dict of the denoiser, if the model is sharded.
        adapter: folder of an adapter that `Adapters.save` wrote earlier, to write in place of the
            policy's present one.
        working: function that is called before each tensor is merged, to report progress.
    """
    if adapters is None:
        save_model(denoiser, tokenizer, folder, weights)
        return
    if adapter is not None:
        own = denoiser.state_dict() if weights is None else weights
        weights = {**own, **adapters.read(adapter)}
    adapters.save(folder / ADAPTER, weights=weights)
    if not getattr(denoiser.backbone, "is_quantized", False):
        save_model(denoiser, tokenizer, folder, adapters.merged(weights, working))
        return
    try:
        merge_adapter(folder / ADAPTER, folder)
    except ModelError as error:
        notes = " ".join(getattr(error, "__notes__", ()))
        logger.warning(f"The adapter is saved without its base model, which cannot be loaded: {error} {notes}".rstrip())


def load_adapter(adapter: Path, base: str | None = None, dtype: str = "auto") -> tuple[Policy, str]:
    """Load the model of an adapter with the adapter merged, and return it with the name of the base
    model.

    Args:
        adapter: folder that peft can read; see `find_adapter`.
        base: model under the adapter; default the one that the adapter names.
        dtype: dtype of the weights; see `load_model`.

    Raises:
        ModelError: the adapter or the model is missing, or the two do not fit.
    """
    under = base or read_json(adapter / CONFIG_FILE).get("base_model_name_or_path")
    if not under:
        raise ModelError(f"the adapter {adapter} does not say which model it was made for. Name it with --base.")
    if Path(under).is_dir() and Path(under).samefile(adapter):
        raise ModelError(
            f"the adapter {adapter} names itself as the model it was made for. Name that model with --base."
        )
    try:
        policy = load_model(under, dtype)
    except ModelError as error:
        if not base:
            error.add_note(f"{under} is the model that the adapter names. If the model has moved, name it with --base.")
        raise
    Adapters.load(policy.denoiser, adapter).merge_in_place()
    return policy, under


def merge_adapter(adapter: Path, target: Path, base: str | None = None) -> str:
    """Merge an adapter into its base model, write a plain checkpoint, and return the name of the
    base model; see `load_adapter`."""
    (denoiser, tokenizer), under = load_adapter(adapter, base)
    save_model(denoiser, tokenizer, target)
    return under


def merge(source: Path, target: Path, base: str | None = None) -> str:
    """Write the plain checkpoint of a LoRA adapter or of a run's checkpoint, and return a sentence
    that describes it.

    Args:
        source: folder of an adapter, of a model with an adapter, of a run, or of a run's checkpoint
            with or without adapters.
        target: folder to write.
        base: model under the adapter; default the one that the adapter names.

    Raises:
        ModelError: the adapter or the model is missing, or the two do not fit.
    """
    model_folder = Path(locate(source))
    if not is_checkpoint(model_folder):
        adapter = find_adapter(model_folder if source.is_dir() else source)
        return f"{adapter} merged into {merge_adapter(adapter, target, base)}"
    under = base_of(model_folder)
    if base and under is None:
        raise ModelError(f"{model_folder} holds all weights of its model, not an adapter. Leave --base out.")
    denoiser, tokenizer = load_checkpoint(model_folder, load_folder, base=base)
    save_model(denoiser, tokenizer, target)
    if under:
        return f"{model_folder} merged into {base or under}"
    return f"{model_folder} written as a model folder"


def find_adapter(source: Path) -> Path:
    """Return the folder of an adapter: `source` itself, or the adapter folder of a model.

    Raises:
        ModelError: there is no adapter; the message says what the folder holds.
    """
    for folder in (source, source / ADAPTER):
        if (folder / CONFIG_FILE).is_file():
            return folder
    if not source.exists():
        raise ModelError(no_file(source, "folder"))
    if list(source.glob("model*.safetensors")):
        raise ModelError(f"{source} holds a plain checkpoint without an adapter, so there is nothing to merge.")
    raise ModelError(f"{source} holds no adapter: neither it nor adapter/ in it has an {CONFIG_FILE}.")

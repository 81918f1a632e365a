"""Load the tokenizers of released models with native classes, and declare the special tokens."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.core.errors import ModelError
from unmask.models.family import Family
from unmask.models.source import DATA_FILES, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def complete_tokenizer(folder: Path, family: Family, config: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder in any layout by a native class, with mask, end, padding and
    chat template declared.

    Args:
        folder: folder with the tokenizer's files.
        family: family of the model, which lists the special tokens that a released tokenizer may
            not declare.
        config: config.json of the checkpoint. Its mask_token_id, if it has one, must be that of the
            tokenizer.

    Raises:
        ModelError: files are missing or belong to another model.
    """
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model")):
        where = f", as {family.checkpoints[0].hub_id} on the hub has it" if family.checkpoints else ""
        raise ModelError(
            f"{folder} has neither tokenizer.json nor vocab.json, so the vocabulary is missing. Copy it there{where}, "
            "or name a folder that has one with --tokenizer."
        )
    with tempfile.TemporaryDirectory() as clean:
        _copy_without_code(folder, Path(clean), family)
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                clean, padding_side="left", trust_remote_code=False
            )
        except Exception as error:  # any error that transformers raises is a fault of the files
            raise ModelError(f"the tokenizer files in {folder} cannot be read: {error}") from error
    vocabulary = tokenizer.get_vocab()
    for role, token in family.tokens.items():
        if getattr(tokenizer, role) is None:
            if token not in vocabulary:
                raise ModelError(
                    f"the tokenizer in {folder} declares no {role} and does not contain {token}, which {family.title} uses. "
                    "It belongs to another model. Copy the one that belongs to the checkpoint."
                )
            setattr(tokenizer, role, token)
    for role in ("mask_token", "eos_token"):
        if getattr(tokenizer, role) is None:
            raise ModelError(f"the tokenizer in {folder} has no {role}. Set it in its tokenizer_config.json.")
    mask_id = config.get("mask_token_id")
    if mask_id is not None and mask_id != tokenizer.mask_token_id:
        raise ModelError(
            f"config.json has mask_token_id: {mask_id}, but the tokenizer in {folder} has {tokenizer.mask_token} at "
            f"{tokenizer.mask_token_id}. They belong to different models."
        )
    if tokenizer.chat_template is None and family.template is not None:
        tokenizer.chat_template = family.template
    return tokenizer


def _copy_without_code(folder: Path, clean: Path, family: Family) -> None:
    """Copy the tokenizer's files with a config that names a native class."""
    for pattern in DATA_FILES:
        for path in folder.glob(pattern):
            if path.suffix != ".safetensors" and path.name not in ("config.json", "model.safetensors.index.json"):
                shutil.copy(path, clean)
    file = clean / "tokenizer_config.json"
    config = read_json(file) if file.is_file() else {}
    config = {key: value for key, value in config.items() if key not in ("auto_map", "trust_remote_code")}
    if family.tokenizer_class:
        config["tokenizer_class"] = family.tokenizer_class
    file.write_text(json.dumps(config))

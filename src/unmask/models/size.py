"""Check, before a model is built, that the model size described by its config.json fits its
tensors.

A config is untrusted data. A config with ten million layers or a vocabulary of 10^12 tokens would
keep transformers busy for hours or fill the memory, before tensors could be compared.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from unmask.core.errors import ModelError, reason
from unmask.core.files import parse_json

MAX_HEADER_BYTES = 100_000_000
"""Largest header of a safetensors file, according to its format."""
MAX_SIZE_RATIO = 4
"""Maximum ratio of the number of values that a config describes to the number of values in the
tensors. A tied head is stored once and may count twice."""


def sizes_of_tensors(folder: Path) -> dict[str, int]:
    """Count the values in each tensor of a folder's safetensors files, by reading only the headers
    of the files.

    Unreadable files are skipped; loading them reports the fault.
    """
    sizes: dict[str, int] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = parse_json(file.read(length).decode()) if length <= MAX_HEADER_BYTES else {}
            sizes |= {name: prod(facts["shape"]) for name, facts in header.items() if name != "__metadata__"}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
            continue
    return sizes


def check_size(source: str, architecture: str, config: Any, sizes: Mapping[str, int]) -> None:
    """Refuse a config whose number of layers or size does not fit the tensors.

    Args:
        source: name of the model, for the message.
        architecture: name of the transformers class.
        config: config of the model.
        sizes: number of values in each tensor, by name; empty if unknown, as for a model on the
            hub.

    Raises:
        ModelError: the number of layers is below 1 or above the number of tensors, a size is
            impossible, or the model is more than `MAX_SIZE_RATIO` times as large as its tensors.
    """
    layers = getattr(config, "num_hidden_layers", None)
    if isinstance(layers, bool) or not isinstance(layers, int) or layers < 1:
        raise ModelError(
            f"{source}: its config.json has {layers!r} layers, but a model needs at least 1. Copy the checkpoint again."
        )
    if not sizes:
        return
    if layers > len(sizes):
        raise ModelError(
            f"{source}: its config.json has {layers:,} layers, but its files hold {len(sizes):,} tensors. They do not belong "
            "together. Copy the checkpoint again."
        )
    described, held = (
        sum(value.numel() for value in built_empty(source, architecture, config).parameters()),
        sum(sizes.values()),
    )
    if described > MAX_SIZE_RATIO * held:
        raise ModelError(
            f"{source}: its config.json describes a model of {described:,} weights, but its files hold {held:,}. They do not "
            "belong together. Copy the checkpoint again."
        )


def built_empty(source: str, architecture: str, config: Any) -> Any:
    """Build the model without memory for its weights, to read names and shapes from it.

    Raises:
        ModelError: the model cannot be built.
    """
    import torch
    import transformers

    try:
        with torch.device("meta"):
            return getattr(transformers, architecture)(config)
    except Exception as error:  # a config can be wrong in more ways than can be listed
        raise ModelError(f"{source}: a {architecture} cannot be built from its config.json: {reason(error)}") from error

"""Whether a config.json describes a model of the size that its tensors have, looked at before the model is built.

A config is data of others: ten million layers, or a vocabulary of 10^12 tokens, would keep transformers busy for hours or fill
the memory before anything is compared.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from unmask.core.errors import ModelError, reason
from unmask.core.files import parse_json

MOST_HEADER_BYTES = 100_000_000
"""Largest header of a safetensors file, as the format has it."""
MOST_TIMES = 4
"""How many times as many numbers a config may describe as the tensors hold; a tied head is there once and may count twice."""


def sizes_of_tensors(folder: Path) -> dict[str, int]:
    """Count the numbers of each tensor in a folder's safetensors files, from their headers.

    Files that cannot be read are left out: what loads them says what is wrong with them.
    """
    sizes: dict[str, int] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = parse_json(file.read(length).decode()) if length <= MOST_HEADER_BYTES else {}
            sizes |= {name: prod(facts["shape"]) for name, facts in header.items() if name != "__metadata__"}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
            continue
    return sizes


def check_size(source: str, architecture: str, config: Any, sizes: Mapping[str, int]) -> None:
    """Refuse a config that describes another number of layers, or a much larger model, than the tensors are of.

    Args:
        source: what the model was named, for the message.
        architecture: name of the transformers class.
        config: of the model.
        sizes: numbers in each tensor, by name; empty where they are not known yet, as with a model on the hub.

    Raises:
        ModelError: a number of layers below 1 or above the number of tensors, sizes that no model can have, or a model
            more than `MOST_TIMES` as large as its tensors.
    """
    layers = getattr(config, "num_hidden_layers", None)
    if isinstance(layers, bool) or not isinstance(layers, int) or layers < 1:
        raise ModelError(
            f"{source}: its config.json has {layers!r} layers, and a model has 1 or more. Copy the checkpoint again."
        )
    if not sizes:
        return
    if layers > len(sizes):
        raise ModelError(
            f"{source}: its config.json has {layers:,} layers, and its files hold {len(sizes):,} tensors. They do not belong "
            "together; copy the checkpoint again."
        )
    described, held = (
        sum(value.numel() for value in built_empty(source, architecture, config).parameters()),
        sum(sizes.values()),
    )
    if described > MOST_TIMES * held:
        raise ModelError(
            f"{source}: its config.json describes a model of {described:,} weights, and its files hold {held:,}. They do not "
            "belong together; copy the checkpoint again."
        )


def built_empty(source: str, architecture: str, config: Any) -> Any:
    """The model without memory for its weights, to read names and shapes from.

    Raises:
        ModelError: it cannot be built.
    """
    import torch
    import transformers

    try:
        with torch.device("meta"):
            return getattr(transformers, architecture)(config)
    except Exception as error:  # a config can be wrong in more ways than can be listed
        raise ModelError(f"{source}: a {architecture} cannot be built from its config.json: {reason(error)}") from error

"""What the shape and the device of a model decide about the forward passes of an update."""

from __future__ import annotations

import torch

from unmask.models import Denoiser
from unmask.sampling.noisy_copies import Packing

LOGITS_AT_ONCE = {"cpu": 2**23}
"""Number of logits that a forward pass of the update computes at once, by type of device; 2^25 on
all others, which take 128 MiB in float32. A CPU is faster with less."""


def width_on_cpu(model: torch.nn.Module) -> int | None:
    """Return the size of the hidden states of a model on a CPU; None for any other model."""
    if not isinstance(model, Denoiser) or model.backbone.device.type != "cpu":
        return None
    return int(model.backbone.config.hidden_size)


def packing_of(model: torch.nn.Module) -> Packing | None:
    """Return the rule by which views of a block-causal model share rows of forward passes; None for
    any other model."""
    if not isinstance(model, Denoiser) or model.block_length is None:
        return None
    return Packing(model.block_length, int(model.backbone.config.hidden_size))


def positions_at_once(model: torch.nn.Module) -> int | None:
    """Return the number of positions whose logits are computed at once. Return None for a stand-in
    of a model, which computes the logits of all positions."""
    if not isinstance(model, Denoiser):
        return None
    return max(1, logits_at_once(model.backbone.device.type) // model.vocab_size)


def logits_at_once(device: str) -> int:
    """Return the number of logits that a forward pass of the update computes at once on a type of
    device."""
    return LOGITS_AT_ONCE.get(device, 2**25)

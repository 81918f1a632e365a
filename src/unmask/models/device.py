"""The device that commands run a model on, and the precision that suits a device."""

from __future__ import annotations

import os
from typing import Literal

import torch


def default_device() -> str:
    """Return `cuda` if there is a CUDA GPU, otherwise `cpu`.

    Apple's GPUs do not count, because they lack float64, which the hashed draws need.
    """
    use_expandable_segments()
    return "cuda" if torch.cuda.is_available() else "cpu"


def precision_on(device: torch.device | str, precision: str = "auto") -> Literal["bf16", "float32"]:
    """Return the precision that the setting `precision` stands for on a device: `auto` is bf16 on a
    CUDA GPU with units for it, and float32 elsewhere."""
    if precision == "auto":
        has_units = torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if has_units else "float32"
    return "bf16" if precision == "bf16" else "float32"


def weights_dtype(device: torch.device | str, precision: str = "auto") -> torch.dtype:
    """Return the dtype of a model's weights in a precision; see `precision_on`."""
    return torch.bfloat16 if precision_on(device, precision) == "bf16" else torch.float32


def use_expandable_segments() -> None:
    """Let CUDA's allocator grow its segments, unless the user configures it.

    Rows leave a batch when they end, so shapes shrink from step to step, and segments of a fixed
    size would keep gaps that no later tensor fits into. torch reads the variable when it first uses
    a GPU.
    """
    if not os.environ.keys() & {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"}:
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"

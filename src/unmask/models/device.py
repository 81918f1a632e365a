"""The device that commands run a model on."""

from __future__ import annotations

import torch


def default_device() -> str:
    """Return `cuda` if there is a CUDA GPU, otherwise `cpu`.

    Apple's GPUs do not count, because they lack float64, which the hashed draws need.
    """
    return "cuda" if torch.cuda.is_available() else "cpu"

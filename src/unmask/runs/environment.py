"""What a result was made with: hardware, precision and library versions, to be written beside it.

The same checkpoint with the same settings has been seen to score several points apart on two kinds of GPU, so a number without
these is only half reported.
"""

from __future__ import annotations

import hashlib
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unmask import __version__

LIBRARIES = (
    *("torch", "transformers", "tokenizers", "accelerate", "peft", "numpy"),
    *("math-verify", "latex2sympy2-extended", "sympy", "pydantic-monty", "reasoning-gym", "datasets"),
)
"""Those whose version can change a number: of the forward, of a grader, of the rows."""


def environment(model: nn.Module) -> dict[str, Any]:
    """Facts about the machine and the libraries, and the device and precision of a model's weights.

    Returns:
        Plain values by name: device, accelerator, cpu, cores, threads, system, dtype, versions.
    """
    weight = next(model.parameters())
    return {
        "device": str(weight.device),
        "accelerator": torch.cuda.get_device_name(weight.device) if weight.device.type == "cuda" else None,
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "dtype": str(weight.dtype).removeprefix("torch."),
        "versions": {"unmask": __version__, "python": platform.python_version(), **_installed()},
    }


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over a model's weights: name, precision, shape and bytes of each, in the order of the names.

    A path says where a model was, which another run may have written to since; this says which model it was.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _installed() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    # The build (+cpu, +cu128) is not in the package's metadata everywhere.
    return found | {"torch": torch.__version__}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()

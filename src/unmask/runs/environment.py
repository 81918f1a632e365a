"""The hardware, precision and library versions behind a result, which are recorded with it.

The scores of one checkpoint with the same settings can differ by several points between two kinds
of GPU, so a complete report of a score includes this information.
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
"""Libraries whose version can change a result, through the forward pass, a grader or the
examples."""


def environment(model: nn.Module) -> dict[str, Any]:
    """Return facts about the machine, the libraries, and the device and precision of a model's
    weights.

    Returns:
        JSON values under device, accelerator, cpu, cores, threads, system, dtype, origin and
        versions.
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
        "origin": origin_of(model),
        "versions": {"unmask": __version__, "python": platform.python_version(), **_installed()},
    }


def origin_of(model: nn.Module) -> dict[str, str] | None:
    """Return the release that a model's weights began from.

    `unmask convert` writes it into config.json, from which it passes to models that are trained
    from this one. A model that is loaded from the hub has the commit of its download.

    Returns:
        The hub id or the name of a folder under source, and the commit under revision; None if
        they are unknown.
    """
    config = getattr(getattr(model, "backbone", model), "config", None)
    recorded = getattr(config, "converted_from", None)
    commit = getattr(config, "_commit_hash", None)
    return recorded or ({"source": str(config.name_or_path), "revision": commit} if config and commit else None)


def weights_hash(model: nn.Module) -> str:
    """Return the SHA-256 of the name, precision, shape and bytes of a model's weights, in the order
    of their names.

    The hash identifies the model. The path of the model does not, because another run may have
    overwritten it.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _installed() -> dict[str, str]:
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    # The package's metadata does not always name the build, such as +cpu or +cu128.
    return versions | {"torch": torch.__version__}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()

"""Functions of a release, taken unmodified and by name from the files of a checkout.

A release's trainer imports libraries and GPUs that the functions themselves do not need. The
functions are therefore compiled alone, and find torch and small stand-ins for helpers of TRL, verl
and accelerate under the names that the file uses.
"""

from __future__ import annotations

import ast
import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (the name in the releases)
from torch import Tensor


def selective_log_softmax(logits: Tensor, index: Tensor) -> Tensor:
    """Return the log-probabilities of chosen tokens row by row, as TRL's function of this name
    does."""
    chosen = logits.gather(-1, index.unsqueeze(-1)).squeeze(-1)
    return chosen - torch.stack([row.logsumexp(-1) for row in logits])


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of the values where the mask is True, as verl's function of this name does."""
    return (values * mask).sum() / mask.sum()


NAMES: dict[str, Any] = {
    "__name__": __name__,
    "torch": torch,
    "F": F,
    "np": np,
    "math": math,
    "dataclasses": dataclasses,
    "dataclass": dataclasses.dataclass,
    "ClassVar": ClassVar,
    "BaseSampler": object,
    "set_seed": lambda seed: torch.manual_seed(int(seed)),
    "profiling_decorator": lambda function: function,
    "selective_log_softmax": selective_log_softmax,
    "nanmin": lambda values: values[~values.isnan()].min(),
    "nanmax": lambda values: values[~values.isnan()].max(),
    "verl_F": SimpleNamespace(masked_mean=masked_mean),
    "agg_loss": lambda loss_mat, loss_mask, loss_agg_mode: masked_mean(loss_mat, loss_mask),
    "print": lambda *_, **__: None,
}
"""What the functions of a release find under these names. Their prints are silenced, and losses are
averaged over tokens."""


def functions_of(files: Sequence[tuple[Path, Sequence[str]]], **names: Any) -> dict[str, Callable[..., Any]]:
    """Return functions, methods and classes of files by name, compiled without the rest of the
    files. They find each other under their names.

    Args:
        files: files, and the names that are taken from each.
        names: what they find under further names.

    Raises:
        LookupError: a file has no function or class of a name.
    """
    scope: dict[str, Any] = NAMES | names
    for file, wanted in files:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        kinds = (ast.FunctionDef, ast.ClassDef)
        found = {node.name: node for node in ast.walk(tree) if isinstance(node, kinds) and node.name in wanted}
        if missing := set(wanted) - set(found):
            raise LookupError(f"{file} has no function or class {', '.join(sorted(missing))}")
        exec(compile(ast.Module([found[name] for name in wanted], []), str(file), "exec"), scope)
    return {name: scope[name] for _, wanted in files for name in wanted}


class Accelerator:
    """Stand-in of accelerate's class on one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def backward(self, loss: Tensor, **_: Any) -> None:
        """Back-propagate a loss."""
        loss.backward()

    def gather(self, values: Tensor) -> Tensor:
        """Return the values of the only rank."""
        return values

    gather_for_metrics = gather

    def wait_for_everyone(self) -> None:
        """Do nothing: there is one rank."""


class Metrics(dict[str, Any]):
    """Lists of metrics, made when they are asked for."""

    def __missing__(self, key: str) -> Any:
        self[key] = Metrics() if key in ("train", "eval") else []
        return self[key]


def trainer_of(functions: dict[str, Callable[..., Any]], device: torch.device, **attributes: Any) -> Any:
    """Return a stand-in of a release's trainer, with its own methods and the given attributes."""
    trainer = type("Trainer", (), dict(functions))()
    settings = {
        "accelerator": Accelerator(device),
        "control": SimpleNamespace(should_evaluate=False),
        "_metrics": Metrics(),
        "_step": 0,
    }
    for name, value in (settings | attributes).items():
        setattr(trainer, name, value)
    return trainer

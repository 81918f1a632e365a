"""Functions of a release, taken unmodified and by name from the files of a checkout.

A release's trainer imports libraries and GPUs that the functions themselves do not need. The
functions are therefore compiled alone, and find torch and small stand-ins for helpers of TRL and
accelerate under the names that the file uses.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (the name in the releases)
from torch import Tensor


def selective_log_softmax(logits: Tensor, index: Tensor) -> Tensor:
    """Return the log-probabilities of chosen tokens row by row, as TRL's function of this name
    does."""
    chosen = logits.gather(-1, index.unsqueeze(-1)).squeeze(-1)
    return chosen - torch.stack([row.logsumexp(-1) for row in logits])


NAMES: dict[str, Any] = {
    "torch": torch,
    "F": F,
    "np": np,
    "set_seed": lambda seed: torch.manual_seed(int(seed)),
    "profiling_decorator": lambda function: function,
    "selective_log_softmax": selective_log_softmax,
    "nanmin": lambda values: values[~values.isnan()].min(),
    "nanmax": lambda values: values[~values.isnan()].max(),
    "print": lambda *_, **__: None,
}
"""What the functions of a release find under these names. Their prints are silenced."""


def functions_of(file: Path, names: Sequence[str]) -> dict[str, Callable[..., Any]]:
    """Return functions and methods of a file by name, compiled without the rest of the file.

    Raises:
        LookupError: the file has no function of a name.
    """
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name in names}
    if missing := set(names) - set(found):
        raise LookupError(f"{file} has no function {', '.join(sorted(missing))}")
    scope = dict(NAMES)
    exec(compile(ast.Module([found[name] for name in names], []), str(file), "exec"), scope)
    return {name: scope[name] for name in names}


class Accelerator:
    """Stand-in of accelerate's class on one device."""

    device = torch.device("cpu")

    def backward(self, loss: Tensor, **_: Any) -> None:
        """Back-propagate a loss."""
        loss.backward()

    def gather_for_metrics(self, values: Tensor) -> Tensor:
        """Return the values of the only rank."""
        return values


class Metrics(dict[str, Any]):
    """Lists of metrics, made when they are asked for."""

    def __missing__(self, key: str) -> Any:
        self[key] = Metrics() if key in ("train", "eval") else []
        return self[key]


def trainer_of(functions: dict[str, Callable[..., Any]], **attributes: Any) -> Any:
    """Return a stand-in of a release's trainer, with its own methods and the given attributes."""
    trainer = type("Trainer", (), dict(functions))()
    settings = {
        "accelerator": Accelerator(),
        "control": SimpleNamespace(should_evaluate=False),
        "_metrics": Metrics(),
        "_step": 0,
    }
    for name, value in (settings | attributes).items():
        setattr(trainer, name, value)
    return trainer

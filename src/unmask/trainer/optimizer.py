"""Construction of a run's optimizer, the size of its state, and its learning rate at each step."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unmask.core.by_path import load_callable
from unmask.core.config import OptimConfig
from unmask.core.errors import ConfigError
from unmask.functional.schedule import learning_rate_factor
from unmask.models import Denoiser

PEAK = "peak_lr"
"""Key under which a parameter group holds a peak learning rate other than `optim.learning_rate`."""


def make_optimizer(parameters: Iterable[nn.Parameter], optim: OptimConfig) -> torch.optim.Optimizer:
    """Return the optimizer that the settings describe, for `parameters`.

    Raises:
        ConfigError: an optimizer outside the package cannot be constructed with these settings.
    """
    if optim.type == "adamw":
        return torch.optim.AdamW(
            parameters, lr=optim.learning_rate, betas=optim.betas, weight_decay=optim.weight_decay, fused=True
        )
    make = load_callable(optim.path, "optimizer")
    accepted = inspect.signature(make).parameters
    settings = {"lr": optim.learning_rate} | {
        name: getattr(optim, name) for name in ("betas", "weight_decay") if name in accepted
    }
    try:
        optimizer = make(list(parameters), **settings | optim.options)
    except (TypeError, ValueError) as error:
        arguments = ", ".join(settings | optim.options)
        raise ConfigError(
            f'optimizer "{optim.type}" cannot be made: {error}. It is called with the parameters and with {arguments}. '
            "Set further arguments in optim.options."
        ) from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(
            f'optimizer "{optim.type}" returns a {type(optimizer).__name__}. It must return a torch.optim.Optimizer.'
        )
    for group in optimizer.param_groups:
        # A function may set a learning rate for each group; the schedule scales all of them.
        group.setdefault(PEAK, group["lr"])
    return optimizer


def make_optimizers(
    denoiser: Denoiser, optim: OptimConfig, muon_learning_rate: float = 0.0
) -> list[torch.optim.Optimizer]:
    """Return the optimizers of all trained parameters.

    Args:
        denoiser: the model, with its adapters if it has any.
        optim: settings of the optimizer.
        muon_learning_rate: peak learning rate of Muon, which then updates the matrices of the
            blocks; the optimizer of the settings then updates only embeddings, head, norms and
            biases. At 0, Muon is not used.
    """
    matrices = _block_matrices(denoiser) if muon_learning_rate else []
    matrix_ids = {id(p) for p in matrices}
    optimizers = [make_optimizer([p for p in trainable(denoiser) if id(p) not in matrix_ids], optim)]
    if matrices:
        group = {"params": matrices, PEAK: muon_learning_rate}
        muon = torch.optim.Muon(
            [group], lr=muon_learning_rate, momentum=0.95, weight_decay=0.01, adjust_lr_fn="original"
        )
        optimizers.append(muon)
    return optimizers


def state_bytes(weight_bytes: float, optim: OptimConfig, device: torch.device | str = "cpu") -> float:
    """Return the size of the optimizer's state in bytes for weights of `weight_bytes` bytes.

    The optimizer makes one step on a small matrix, so the answer is right for any optimizer whose
    state grows with the weights.

    Args:
        weight_bytes: size of the trained weights in bytes.
        optim: settings of the optimizer.
        device: device of this step; some optimizers work on a GPU only.
    """
    matrix = nn.Parameter(torch.zeros(64, 64, device=device))
    matrix.grad = torch.zeros_like(matrix)
    optimizer = make_optimizer([matrix], optim)
    optimizer.step()
    state = optimizer.state[matrix].values()
    size = sum(value.nbytes for value in state if isinstance(value, Tensor) and value.dim())
    return weight_bytes * size / matrix.nbytes


def set_learning_rate(
    optimizers: Sequence[Any], optim: OptimConfig, step: int, max_steps: int, spent: float = 0.0
) -> float:
    """Set the learning rate of one training step in all parameter groups.

    Args:
        optimizers: the optimizers of the run.
        optim: their settings.
        step: index of the training step, from 0.
        max_steps: number of training steps in the run.
        spent: share of the run's limit of token passes that is used; 0 without a limit.

    Returns:
        The learning rate of the groups without a peak rate of their own.
    """
    factor = learning_rate_factor(step, max_steps, optim.warmup_steps, optim.lr_schedule, optim.lr_floor, spent)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.get(PEAK, optim.learning_rate) * factor
    return optim.learning_rate * factor


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that the optimizer updates."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def _block_matrices(denoiser: Denoiser) -> list[nn.Parameter]:
    """Return all trained matrices except those of the embeddings and the head."""
    ends = (denoiser.backbone.get_input_embeddings(), denoiser.backbone.get_output_embeddings())
    embeddings = (m for m in denoiser.modules() if isinstance(m, nn.Embedding))
    outside = {id(p) for m in (*ends, *embeddings) for p in m.parameters()}
    return [p for p in trainable(denoiser) if p.ndim == 2 and id(p) not in outside]

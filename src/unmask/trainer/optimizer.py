"""The optimizer of a run: how it is made, how large its state becomes, and how its learning rate follows the schedule."""

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
"""Key of a parameter group whose peak learning rate is another than `optim.learning_rate`."""


def make_optimizer(parameters: Iterable[nn.Parameter], optim: OptimConfig) -> torch.optim.Optimizer:
    """Returns the optimizer that the settings name, over `parameters`.

    Raises:
        ConfigError: an optimizer outside the package that cannot be made with these settings.
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
        made = make(list(parameters), **settings | optim.options)
    except (TypeError, ValueError) as error:
        called = ", ".join(settings | optim.options)
        raise ConfigError(
            f'optimizer "{optim.type}" cannot be made: {error}. It is called with the parameters and with {called}; '
            "optim.options holds further arguments."
        ) from error
    if not isinstance(made, torch.optim.Optimizer):
        raise ConfigError(f'optimizer "{optim.type}" gave a {type(made).__name__}, not a torch.optim.Optimizer.')
    for group in made.param_groups:
        # A function may give its groups learning rates of their own, which the schedule scales alike.
        group.setdefault(PEAK, group["lr"])
    return made


def make_optimizers(
    denoiser: Denoiser, optim: OptimConfig, muon_learning_rate: float = 0.0
) -> list[torch.optim.Optimizer]:
    """Returns the optimizers of everything that is trained.

    Args:
        denoiser: the model, with its adapters if it has any.
        optim: settings of the optimizer.
        muon_learning_rate: above 0, Muon takes the matrices of the blocks at this peak rate, and the optimizer of the settings
            takes embeddings, head, norms and biases.
    """
    matrices = _block_matrices(denoiser) if muon_learning_rate else []
    taken = {id(p) for p in matrices}
    optimizers = [make_optimizer([p for p in trainable(denoiser) if id(p) not in taken], optim)]
    if matrices:
        group = {"params": matrices, PEAK: muon_learning_rate}
        muon = torch.optim.Muon(
            [group], lr=muon_learning_rate, momentum=0.95, weight_decay=0.01, adjust_lr_fn="original"
        )
        optimizers.append(muon)
    return optimizers


def state_bytes(weight_bytes: float, optim: OptimConfig) -> float:
    """Returns how many bytes the optimizer's state takes beside weights of `weight_bytes` bytes.

    The optimizer takes one step on a small matrix, so that the answer holds for any optimizer.
    """
    matrix = nn.Parameter(torch.zeros(64, 64))
    matrix.grad = torch.zeros_like(matrix)
    optimizer = make_optimizer([matrix], optim)
    optimizer.step()
    state = optimizer.state[matrix].values()
    numbers = sum(value.numel() for value in state if isinstance(value, Tensor) and value.dim())
    return weight_bytes * numbers / matrix.numel()


def set_learning_rate(optimizers: Sequence[Any], optim: OptimConfig, step: int, max_steps: int) -> float:
    """Set the learning rate of training step `step`, from 0, in all parameter groups; returns the one of the settings."""
    factor = learning_rate_factor(step, max_steps, optim.warmup_steps, optim.lr_schedule, optim.lr_floor)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.get(PEAK, optim.learning_rate) * factor
    return optim.learning_rate * factor


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """Returns the parameters that the optimizer changes."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def _block_matrices(denoiser: Denoiser) -> list[nn.Parameter]:
    """Returns the matrices outside of the embeddings and the head."""
    ends = (denoiser.backbone.get_input_embeddings(), denoiser.backbone.get_output_embeddings())
    embeddings = (m for m in denoiser.modules() if isinstance(m, nn.Embedding))
    outside = {id(p) for m in (*ends, *embeddings) for p in m.parameters()}
    return [p for p in denoiser.parameters() if p.ndim == 2 and id(p) not in outside]

"""Float32 master copies of the bfloat16 weights that are trained (arXiv:1710.03740, section 3.1).

An update of reinforcement learning is often smaller than the spacing of bfloat16 numbers, 1/256 of
a weight, and would be rounded away. The optimizer therefore updates a float32 copy of each trained
weight, and the model holds the copy rounded to bfloat16. Gradients of several batches are added up
in float32 as well. FSDP2 and ZeRO keep such copies themselves, in shards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

_MASTER = "unmask_master"


def master_of(parameter: nn.Parameter) -> nn.Parameter:
    """Return the tensor that the optimizer updates: the master copy of the parameter, or the
    parameter itself if it has none."""
    found: nn.Parameter = getattr(parameter, _MASTER, parameter)
    return found


def add_masters(module: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Give each trained bfloat16 parameter a float32 master copy, which the optimizers update in
    its place.

    A backward pass adds its gradient to that of the master copy, and the parameter itself keeps
    none. After each step of an optimizer, the parameters are the rounded copies.

    Args:
        module: the policy, on its device.
        optimizers: optimizers of the parameters, before their first step.
    """
    for parameter in module.parameters():
        if parameter.requires_grad and parameter.dtype == torch.bfloat16:
            setattr(parameter, _MASTER, nn.Parameter(parameter.detach().float()))
            parameter.register_post_accumulate_grad_hook(_hand_over_gradient)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            pairs = [(master_of(p), p) for p in group["params"]]
            group["params"] = [master for master, _ in pairs]
            optimizer.register_step_post_hook(_Rounding([(m, p) for m, p in pairs if m is not p]))


def _hand_over_gradient(parameter: torch.Tensor) -> None:
    """Add the gradient of a parameter to that of its master copy."""
    assert isinstance(parameter, nn.Parameter)
    assert parameter.grad is not None
    master, gradient = master_of(parameter), parameter.grad
    parameter.grad = None
    if master.grad is None:
        master.grad = gradient.float()
    else:
        master.grad.add_(gradient)


class _Rounding:
    """Hook that sets the parameters to their master copies after a step.

    Args:
        pairs: master copies, each with its parameter.
    """

    def __init__(self, pairs: Sequence[tuple[nn.Parameter, nn.Parameter]]) -> None:
        self.pairs = pairs

    @torch.no_grad()
    def __call__(self, *_: Any) -> None:
        for master, parameter in self.pairs:
            parameter.copy_(master)

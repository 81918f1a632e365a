"""One update under whatever wraps the policy: a plain module, DDP, FSDP2 or a DeepSpeed engine.

accelerate's own wrapper of DeepSpeed steps inside `backward`, where a gradient that is not finite could no longer be refused and
several chunks could not be added up; so the engine is driven here, with the same three calls as everything else.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from accelerate import Accelerator


def is_deepspeed(accelerator: Accelerator) -> bool:
    """Whether DeepSpeed holds the policy."""
    return str(accelerator.distributed_type).endswith("DEEPSPEED")


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether each process holds a part of the weights only, so that a forward is a collective."""
    if is_deepspeed(accelerator):
        return int(accelerator.deepspeed_plugin.zero_stage) == 3
    return str(accelerator.distributed_type).endswith("FSDP")


def unwrapped(model: Any) -> Any:
    """The policy itself, under whatever wraps it. accelerate's own way of looking imports DeepSpeed."""
    return getattr(model, "module", model)


def accumulating(accelerator: Accelerator, model: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """Around a chunk's forward and backward: only the last one sends gradients to the other processes."""
    if is_last or is_deepspeed(accelerator):
        return nullcontext()
    context: AbstractContextManager[None] = accelerator.no_sync(model)
    return context


def backward(accelerator: Accelerator, model: nn.Module, loss: torch.Tensor, is_last: bool) -> None:
    """Add the gradient of one chunk's loss."""
    if is_deepspeed(accelerator):
        engine: Any = model
        engine.set_gradient_accumulation_boundary(is_boundary=is_last)
        engine.backward(loss)
    else:
        accelerator.backward(loss)


def step(accelerator: Accelerator, model: nn.Module, optimizers: list[Any], max_grad_norm: float) -> float:
    """Clip what was added up and update the weights; returns the norm before clipping.

    Raises:
        FloatingPointError: a norm that is not finite, on all processes; the weights have not been changed.
    """
    if is_deepspeed(accelerator):
        engine: Any = model
        # Leaves the weights alone where the norm is not finite, and says so with an infinite norm.
        engine.step()
        norm = float(engine.get_global_grad_norm())
    else:
        norm = float(accelerator.clip_grad_norm_(model.parameters(), max_grad_norm))
    if not math.isfinite(norm):
        raise FloatingPointError(f"the norm of the gradient is {norm}")
    if not is_deepspeed(accelerator):
        for optimizer in optimizers:
            optimizer.step()
    return norm

"""Functions for one update of the policy, whether it is a plain module or wrapped by FSDP2 or a
DeepSpeed engine.

accelerate's wrapper of DeepSpeed makes the optimizer step inside `backward`. It would then be
impossible to refuse a gradient that is not finite, or to accumulate the gradients of several
batches. Therefore these functions call DeepSpeed's engine directly. The same two functions
(`backward` and `step`) serve every wrapper.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from unmask.trainer.distributed.masters import master_of

if TYPE_CHECKING:
    from accelerate import Accelerator

EXCHANGED_AT_ONCE = 2**26
"""Number of gradient entries in one exchange, whose copy takes 256 MiB."""


def is_deepspeed(accelerator: Accelerator) -> bool:
    """Return True if DeepSpeed drives the policy."""
    return str(accelerator.distributed_type).endswith("DEEPSPEED")


def is_sharded(accelerator: Accelerator) -> bool:
    """Return True if each rank holds only a part of the weights. All ranks must then run each
    forward pass together."""
    if is_deepspeed(accelerator):
        return int(accelerator.deepspeed_plugin.zero_stage) == 3
    return str(accelerator.distributed_type).endswith("FSDP")


def unwrapped(model: Any) -> Any:
    """Return the policy without its wrapper. accelerate's own function would import DeepSpeed."""
    return getattr(model, "module", model)


def backward(accelerator: Accelerator, model: nn.Module, loss: torch.Tensor, is_last: bool) -> None:
    """Add the gradient of one batch's loss.

    If the weights are sharded, the ranks add their gradients now and each keeps its shard. Gradients
    that waited for the last batch would be whole on every rank, as large as the whole weights.
    """
    if is_deepspeed(accelerator):
        engine: Any = model
        engine.set_gradient_accumulation_boundary(is_boundary=is_last)
        engine.backward(loss)
    else:
        accelerator.backward(loss)


def step(accelerator: Accelerator, model: nn.Module, optimizers: list[Any], max_grad_norm: float) -> float:
    """Clip the accumulated gradient and update the weights.

    Returns:
        The norm of the gradient before clipping.

    Raises:
        FloatingPointError: the norm is not finite. All ranks raise the error, and the weights are
            unchanged.
    """
    if is_deepspeed(accelerator):
        engine: Any = model
        # Leaves the weights unchanged if the norm is not finite, and then reports an infinite norm.
        engine.step()
        norm = float(engine.get_global_grad_norm())
    elif is_sharded(accelerator):
        norm = float(accelerator.clip_grad_norm_(model.parameters(), max_grad_norm))
    else:
        updated = [master_of(parameter) for parameter in model.parameters() if parameter.requires_grad]
        average_gradients(updated)
        norm = float(nn.utils.clip_grad_norm_(updated, max_grad_norm))
    if not math.isfinite(norm):
        raise FloatingPointError(f"the norm of the gradient is {norm}")
    if not is_deepspeed(accelerator):
        for optimizer in optimizers:
            optimizer.step()
    return norm


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace the gradients by their means over all ranks, in the precision of the gradients.

    An update exchanges gradients once, after its last batch, which takes a small part of a training
    step. A wrapper that overlaps the exchange with the backward pass, such as DDP, is not needed.

    All ranks have gradients of the same parameters, because a rank without views back-propagates a
    zero.
    """
    if not torch.distributed.is_initialized() or (count := torch.distributed.get_world_size()) == 1:
        return
    for part in _parts([p.grad for p in parameters if p.grad is not None]):
        flat = torch.cat([gradient.flatten() for gradient in part]).div_(count)
        torch.distributed.all_reduce(flat)
        for gradient, mean in zip(part, flat.split([gradient.numel() for gradient in part]), strict=True):
            gradient.copy_(mean.view_as(gradient))


def _parts(tensors: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Divide tensors into lists of at most `EXCHANGED_AT_ONCE` numbers, or of one tensor."""
    part: list[torch.Tensor] = []
    for tensor in tensors:
        if part and sum(map(torch.Tensor.numel, part)) + tensor.numel() > EXCHANGED_AT_ONCE:
            yield part
            part = []
        part.append(tensor)
    if part:
        yield part

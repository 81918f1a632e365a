"""Access to the weights and the optimizer's state of a prepared model. Each parameter is read or
written as a whole tensor, one at a time, whether it is stored in one place, in the shards of FSDP2
or in the shards of ZeRO.

All functions that read or write are collective, because every rank owns a part of each shard.

`torch.distributed.checkpoint.state_dict` is not used. It gathers the state of all parameters at
once, so the main rank would need memory for all of it. It also creates missing optimizer state by
an update, so a checkpoint that is saved before the first update would already count one update.
This module uses the functions on which that module is built, `DTensor.full_tensor` and
`distribute_tensor`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from unmask.core.errors import ConfigError
from unmask.trainer.distributed import deepspeed_zero
from unmask.trainer.distributed.backend import is_deepspeed, is_sharded
from unmask.trainer.distributed.masters import add_masters, master_of

if TYPE_CHECKING:
    from accelerate import Accelerator


class Holder(Protocol):
    """Access to the weights and the optimizer's state, however they are stored."""

    def weight(self, parameter: nn.Parameter) -> Tensor:
        """Return the whole weight, in the precision that the optimizer updates."""
        ...

    def state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Return the optimizer's state of a parameter, each tensor whole; empty before the first
        update."""
        ...

    def set_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Write a weight; every rank passes the whole tensor."""
        ...

    def set_states(self, states: Mapping[nn.Parameter, Mapping[str, Tensor]]) -> None:
        """Write the optimizer's state of all parameters; every rank passes whole tensors."""
        ...


def prepare(
    accelerator: Accelerator, module: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> tuple[Any, list[Any]]:
    """Return the model and its optimizers as they are trained: with float32 master copies of
    bfloat16 weights, and in shards if the preset says so.

    Without shards the model is not wrapped. `backend.step` averages the gradients of the ranks.

    Raises:
        ConfigError: there are several optimizers, and DeepSpeed drives one.
    """
    if not is_sharded(accelerator) and not is_deepspeed(accelerator):
        module.to(accelerator.device)
        add_masters(module, optimizers)
        return module, list(optimizers)
    if not is_deepspeed(accelerator):
        for parameter in module.parameters():
            if parameter.requires_grad:
                # The shards are the master copies; FSDP2 gathers them in the precision of its
                # policy.
                parameter.data = parameter.data.float()
        model, *prepared = accelerator.prepare(module, *optimizers)
        return model, prepared
    if len(optimizers) > 1:
        raise ConfigError(
            "the zero presets drive one optimizer, and muon_learning_rate needs two. "
            "Set muon_learning_rate=0, or use another preset.",
            agreed=True,
        )
    model, optimizer = deepspeed_zero.prepare(accelerator, module, optimizers[0])
    return model, [optimizer]


def holder_of(accelerator: Accelerator, model: nn.Module, optimizers: Sequence[Any]) -> Holder:
    """Return the holder of a prepared model and its prepared optimizers."""
    if is_deepspeed(accelerator):
        engine: Any = model
        return deepspeed_zero.ZeroState(engine.optimizer, int(accelerator.deepspeed_plugin.zero_stage))
    return Native([getattr(optimizer, "optimizer", optimizer) for optimizer in optimizers])


class Native:
    """Weights and state in torch's own tensors: plain ones, or DTensors under FSDP2.

    Args:
        optimizers: torch's optimizers, without accelerate's wrappers.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self.optimizers = optimizers

    def weight(self, parameter: nn.Parameter) -> Tensor:
        """Return the whole weight; see `Holder`."""
        return _whole(master_of(parameter).detach())

    def state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Return the optimizer's state of a parameter; see `Holder`.

        Raises:
            ConfigError: the state holds something that is not a tensor.
        """
        master = master_of(parameter)
        state: dict[str, Any] = next((o.state[master] for o in self.optimizers if master in o.state), {})
        for key, value in state.items():
            if value is not None and not isinstance(value, Tensor):
                raise ConfigError(
                    f'the optimizer keeps "{key}" as {type(value).__name__}. A checkpoint holds only tensors, so a '
                    "resumed run would lose it. Keep it as a tensor in the optimizer's state."
                )
        return {key: _whole(value) for key, value in state.items() if isinstance(value, Tensor)}

    @torch.no_grad()
    def set_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Write a weight; see `Holder`."""
        for copy in {parameter, master_of(parameter)}:
            copy.copy_(_sharded_like(copy, value.to(copy.dtype)))

    def set_states(self, states: Mapping[nn.Parameter, Mapping[str, Tensor]]) -> None:
        """Write the optimizer's state of all parameters; see `Holder`."""
        by_master = {master_of(parameter): state for parameter, state in states.items()}
        for optimizer in self.optimizers:
            groups = optimizer.state_dict()["param_groups"]
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            by_index = {
                index: {
                    key: _sharded_like(parameter, value) if value.shape == parameter.shape else value
                    for key, value in by_master[parameter].items()
                }
                for index, parameter in enumerate(parameters)
                if by_master.get(parameter)
            }
            # torch moves each tensor to the device and the precision that its optimizer needs.
            optimizer.load_state_dict({"state": by_index, "param_groups": groups})


def _whole(value: Tensor) -> Tensor:
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def _sharded_like(parameter: Tensor, value: Tensor) -> Tensor:
    if not hasattr(parameter, "full_tensor"):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)

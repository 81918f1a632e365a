"""Access to the weights and the optimizer's state of a prepared model, one parameter at a time,
whether it is stored in one place, in the shards of FSDP2 or in the shards of ZeRO.

A rank reads and writes only its own part of a tensor that the ranks share, so no rank needs memory
for the whole state.

`torch.distributed.checkpoint` is not used. Its files are pickles, it reads only its own layout of
shards, and it creates missing optimizer state by an update, so a checkpoint that is saved before
the first update would already count one update.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from unmask.core.errors import ConfigError
from unmask.models.state_files import StoredTensor
from unmask.trainer.distributed import deepspeed_zero
from unmask.trainer.distributed.backend import is_deepspeed, is_sharded
from unmask.trainer.distributed.masters import add_masters, master_of
from unmask.trainer.distributed.part import Part

if TYPE_CHECKING:
    from accelerate import Accelerator


class Holder(Protocol):
    """Access to the weights and the optimizer's state, however they are stored."""

    def weight(self, parameter: nn.Parameter) -> Tensor:
        """Return the whole weight, in the precision that the optimizer updates. This is
        collective."""
        ...

    def own_weight(self, parameter: nn.Parameter) -> Part:
        """Return what this rank holds of a weight, in the precision that the optimizer updates. All
        ranks call this in the same order."""
        ...

    def own_state(self, parameter: nn.Parameter) -> dict[str, Part]:
        """Return what this rank holds of the optimizer's state of a parameter; empty before the
        first update. All ranks call this in the same order."""
        ...

    def set_weight(self, parameter: nn.Parameter, stored: StoredTensor) -> None:
        """Write a weight. This is collective."""
        ...

    def set_states(self, states: Mapping[nn.Parameter, Mapping[str, StoredTensor]]) -> None:
        """Write the optimizer's state of all parameters. This is collective."""
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
        value = master_of(parameter).detach()
        return value.full_tensor() if isinstance(value, DTensor) else value

    def own_weight(self, parameter: nn.Parameter) -> Part:
        """Return what this rank holds of a weight; see `Holder`."""
        return _own(master_of(parameter).detach())

    def own_state(self, parameter: nn.Parameter) -> dict[str, Part]:
        """Return what this rank holds of the optimizer's state; see `Holder`.

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
        return {key: _own(value) for key, value in state.items() if isinstance(value, Tensor)}

    @torch.no_grad()
    def set_weight(self, parameter: nn.Parameter, stored: StoredTensor) -> None:
        """Write a weight; see `Holder`."""
        for copy in {parameter, master_of(parameter)}:
            copy.copy_(_read_like(copy, stored).to(copy.dtype))

    def set_states(self, states: Mapping[nn.Parameter, Mapping[str, StoredTensor]]) -> None:
        """Write the optimizer's state of all parameters; see `Holder`."""
        by_master = {master_of(parameter): state for parameter, state in states.items()}
        for optimizer in self.optimizers:
            groups = optimizer.state_dict()["param_groups"]
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            by_index = {
                index: {key: _read_like(parameter, stored) for key, stored in by_master[parameter].items()}
                for index, parameter in enumerate(parameters)
                if by_master.get(parameter)
            }
            # torch moves each tensor to the device and the precision that its optimizer needs.
            optimizer.load_state_dict({"state": by_index, "param_groups": groups})


def _own(value: Tensor) -> Part:
    """Return what this rank holds of a tensor."""
    if not isinstance(value, DTensor):
        return Part(value)
    return Part(value.to_local().flatten(), _first_element(value))


def _read_like(parameter: Tensor, stored: StoredTensor) -> Tensor:
    """Read a tensor in the way in which a parameter is stored. A tensor of another shape than the
    parameter, such as a counter of updates, is read whole."""
    if not isinstance(parameter, DTensor) or stored.shape != list(parameter.shape):
        return stored.whole()
    local, start = parameter.to_local(), _first_element(parameter)
    values = stored.part(start, start + local.numel()).view(local.shape).to(local.device)
    return DTensor.from_local(
        values,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def _first_element(value: DTensor) -> int:
    """Return the index of the first element of this rank's rows in the flattened tensor.

    FSDP2 divides the rows of a tensor among the ranks, all but the last of which get the same
    number of rows.
    """
    (placement,), (position,), (count,) = (
        value.placements,
        value.device_mesh.get_coordinate() or (),
        value.device_mesh.shape,
    )
    if not placement.is_shard(0):
        raise ValueError(
            f"a tensor is placed as {placement}, but FSDP2 divides the rows of each tensor among the ranks."
        )
    rows = -(-value.shape[0] // count) * position
    return min(rows, value.shape[0]) * math.prod(value.shape[1:])

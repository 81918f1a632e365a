"""Weights and optimizer state, parameter by parameter and whole, wherever they lie: in one place, in FSDP2's shards or in ZeRO's.

All functions that read or write are collective: a shard's owner has to take part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from unmask.core.errors import ConfigError
from unmask.trainer.distributed.backend import is_deepspeed

if TYPE_CHECKING:
    from accelerate import Accelerator


class Holder(Protocol):
    """Where the weights and the optimizer's state are."""

    def weight(self, parameter: nn.Parameter) -> Tensor:
        """The whole weight, in the precision that the optimizer keeps it in."""
        ...

    def state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """The optimizer's state of it, each tensor whole; empty before the first update."""
        ...

    def set_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Write the weight; every process gives the whole."""
        ...

    def set_states(self, states: Mapping[nn.Parameter, Mapping[str, Tensor]]) -> None:
        """Write the optimizer's state of all parameters; every process gives the whole."""
        ...


def prepare(
    accelerator: Accelerator, module: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> tuple[Any, list[Any]]:
    """The model and its optimizers as accelerate wraps them.

    Raises:
        ConfigError: several optimizers under DeepSpeed, which drives one.
    """
    if not is_deepspeed(accelerator):
        model, *prepared = accelerator.prepare(module, *optimizers)
        return model, prepared
    if len(optimizers) > 1:
        fault = ConfigError(
            "the zero presets drive one optimizer, and muon_learning_rate asks for two. Set muon_learning_rate=0, or use another "
            "preset."
        )
        # Of the recipe and the preset, which all processes share.
        fault.is_agreed = True
        raise fault
    # Some versions make the optimizer's state by an update with gradients of zero; with a rate of zero that changes no weight.
    rates = [group["lr"] for group in optimizers[0].param_groups]
    for group in optimizers[0].param_groups:
        group["lr"] = 0.0
    model, optimizer = accelerator.prepare(module, optimizers[0])
    Zero(model.optimizer, int(accelerator.deepspeed_plugin.zero_stage)).forget_dry_run()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    return model, [optimizer]


def holder_of(accelerator: Accelerator, model: nn.Module, optimizers: Sequence[Any]) -> Holder:
    """The holder of a prepared model and its prepared optimizers."""
    if is_deepspeed(accelerator):
        engine: Any = model
        return Zero(engine.optimizer, int(accelerator.deepspeed_plugin.zero_stage))
    return Native([getattr(optimizer, "optimizer", optimizer) for optimizer in optimizers])


class Native:
    """torch's own: plain tensors, each process with all of them, or DTensors of FSDP2.

    Args:
        optimizers: torch's, without accelerate's wrapper.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self.optimizers = optimizers

    def weight(self, parameter: nn.Parameter) -> Tensor:
        """See `Holder`."""
        return _whole(parameter.detach())

    def state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """See `Holder`."""
        found: dict[str, Any] = next((o.state[parameter] for o in self.optimizers if parameter in o.state), {})
        for key, value in found.items():
            if value is not None and not isinstance(value, Tensor):
                raise ConfigError(
                    f'the optimizer keeps "{key}" as {type(value).__name__}, and a checkpoint holds tensors only, so a resumed '
                    "run would lose it. Keep it as a tensor in the optimizer's state."
                )
        return {key: _whole(value) for key, value in found.items() if isinstance(value, Tensor)}

    @torch.no_grad()
    def set_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        """See `Holder`."""
        parameter.copy_(_sharded_like(parameter, value.to(parameter.dtype)))

    def set_states(self, states: Mapping[nn.Parameter, Mapping[str, Tensor]]) -> None:
        """See `Holder`."""
        for optimizer in self.optimizers:
            groups = optimizer.state_dict()["param_groups"]
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            by_index = {
                index: {
                    key: _sharded_like(parameter, value) if value.shape == parameter.shape else value
                    for key, value in states[parameter].items()
                }
                for index, parameter in enumerate(parameters)
                if states.get(parameter)
            }
            # torch puts each tensor on the device and in the precision that its optimizer wants.
            optimizer.load_state_dict({"state": by_index, "param_groups": groups})


class Zero:
    """DeepSpeed's: float32 weights and state flattened and cut up among the processes.

    Args:
        optimizer: DeepSpeed's, which holds torch's.
        stage: 1, 2 or 3; only with 3 are the model's own weights in parts.
    """

    def __init__(self, optimizer: Any, stage: int) -> None:
        self.optimizer, self.stage = optimizer, stage

    def weight(self, parameter: nn.Parameter) -> Tensor:
        """See `Holder`."""
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_get_full_fp32_param

        if parameter.requires_grad:
            whole: Tensor = safe_get_full_fp32_param(parameter)
            return whole.view(_shape(parameter))
        if self.stage < 3:
            return parameter.detach()
        with GatheredParameters([parameter]):
            return parameter.detach().clone()

    def state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """See `Holder`."""
        from deepspeed.utils import safe_get_full_optimizer_state

        found: dict[str, Any] = next(iter(self.optimizer.optimizer.state.values()), {})
        if not parameter.requires_grad or not found:
            return {}
        return {
            # A flat tensor over many parameters, of which DeepSpeed picks out one; or one number for all of them.
            key: safe_get_full_optimizer_state(parameter, key).view(_shape(parameter)) if value.dim() else value.clone()
            for key, value in found.items()
            if isinstance(value, Tensor)
        }

    @torch.no_grad()
    def set_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        """See `Holder`."""
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        if self.stage < 3:
            parameter.copy_(value)
            if parameter.requires_grad:
                safe_set_full_fp32_param(parameter, value)
            return
        # What the forward reads, and what the optimizer keeps.
        with GatheredParameters([parameter], modifier_rank=0):
            parameter.data.copy_(value)
        if parameter.requires_grad:
            safe_set_local_fp32_param(parameter, self._own_part(parameter, value))

    @torch.no_grad()
    def set_states(self, states: Mapping[nn.Parameter, Mapping[str, Tensor]]) -> None:
        """See `Holder`."""
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        keys = {key: value for state in states.values() for key, value in state.items()}
        self._make_state({key for key, value in keys.items() if value.dim()})
        for flat in self.optimizer.optimizer.state.values():
            for key, value in keys.items():
                if not value.dim():
                    # All parameters have been updated equally often.
                    flat[key] = value.clone().to(flat[key].device if key in flat else "cpu")
        for parameter, state in states.items():
            for key, value in state.items():
                if value.dim() and self.stage < 3:
                    safe_set_full_optimizer_state(parameter, value, key)
                elif value.dim():
                    safe_set_local_optimizer_state(parameter, self._own_part(parameter, value), key)

    def forget_dry_run(self) -> None:
        """Undo what some versions do to the state when they make it: an update with gradients of zero, which counts."""
        for flat in self.optimizer.optimizer.state.values():
            for value in flat.values():
                if isinstance(value, Tensor):
                    value.zero_()

    def _make_state(self, keys: set[str]) -> None:
        """The state is made in the first update; a resumed run needs it before."""
        name = "single_partition_of_fp32_groups" if self.stage < 3 else "fp32_partitioned_groups_flat"
        for flat in getattr(self.optimizer, name):
            state = self.optimizer.optimizer.state[flat]
            for key in keys - set(state):
                state[key] = torch.zeros_like(flat)
        if self.stage < 3:
            # So that each parameter knows its place in them.
            self.optimizer._lazy_init_hp_params_optimizer_state()

    def _own_part(self, parameter: Any, value: Tensor) -> Tensor:
        """This process's part of a whole tensor, in stage 3; the last one is padded."""
        size = parameter.ds_tensor.numel()
        count = torch.distributed.get_world_size(parameter.ds_process_group)
        rank = torch.distributed.get_rank(parameter.ds_process_group)
        flat = torch.nn.functional.pad(value.flatten(), (0, size * count - value.numel()))
        return flat.narrow(0, size * rank, size)


def _shape(parameter: Any) -> torch.Size:
    """The shape of a parameter, of which stage 3 leaves an empty one in the model."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def _whole(value: Tensor) -> Tensor:
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def _sharded_like(parameter: Tensor, value: Tensor) -> Tensor:
    if not hasattr(parameter, "full_tensor"):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)

"""Functions that start DeepSpeed's ZeRO, and access to the weights and the optimizer's state in its
flat buffers.

This is the only module that uses DeepSpeed. DeepSpeed has no public functions to create the
optimizer's state before the first update, to write a local shard, or to keep it from compiling
collectives for CPUs, so this module uses the private names in `PRIVATE`. Private names can change,
so `pyproject.toml` bounds DeepSpeed's version.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import warnings
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from unmask.core.errors import ConfigError
from unmask.trainer.distributed.part import Part

if TYPE_CHECKING:
    from accelerate import Accelerator

    from unmask.models.state_files import StoredTensor

PRIVATE = {
    "deepspeed.ops": ("__compatible_ops__",),
    "deepspeed.runtime.zero.stage_1_and_2": (
        "single_partition_of_fp32_groups",
        "_lazy_init_hp_params_optimizer_state",
    ),
    "deepspeed.runtime.zero.stage3": ("fp32_partitioned_groups_flat",),
    "deepspeed.runtime.zero.partition_parameters": ("ds_tensor", "ds_process_group", "ds_numel", "ds_shape"),
}
"""Private names of DeepSpeed that this module uses, by the module that defines them."""


def missing_names() -> list[str]:
    """Return the names of `PRIVATE` that the installed DeepSpeed does not define, as
    module.name."""
    return [
        f"{module}.{name}"
        for module, names in PRIVATE.items()
        for name in names
        if not re.search(rf"\b{name}\b", inspect.getsource(importlib.import_module(module)))
    ]


def check_installed() -> None:
    """Refuse to start without a usable DeepSpeed.

    Raises:
        ConfigError: DeepSpeed is not installed, or its version lacks a name that this module uses.
    """
    try:
        import deepspeed
    except ImportError as error:
        raise ConfigError('the zero presets need DeepSpeed: pip install "unmask[zero]"') from error
    if missing := missing_names():
        raise ConfigError(
            f"DeepSpeed {deepspeed.__version__} lacks {', '.join(missing)}, which the zero presets use. "
            'Install a supported version: pip install "unmask[zero]"'
        )


def start_on_cpu(timeout: timedelta) -> None:
    """Start the process group of a run on CPUs, before accelerate starts DeepSpeed."""
    from accelerate import PartialState
    from deepspeed import ops

    # Otherwise DeepSpeed detects a GPU machine, and each rank believes that it is alone.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    PartialState(cpu=True, backend="gloo", timeout=timeout)
    # Compiling collectives for CPUs takes minutes at the first use. A rank that is killed meanwhile
    # leaves a lock in ~/.cache/torch_extensions that blocks every later run.
    ops.__compatible_ops__["deepspeed_shm_comm"] = False


def configure(accelerator: Accelerator, max_grad_norm: float, precision: Literal["bf16", "float32"]) -> None:
    """Set DeepSpeed's configuration to that of the run.

    Args:
        accelerator: accelerator of the run.
        max_grad_norm: norm at which gradients are clipped, whatever the launcher's config file
            says.
        precision: precision of the weights of the model. DeepSpeed keeps float32 master copies of
            those that are trained.
    """
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    # Otherwise transformers shards weights while it loads them, before they are checked and copied.
    unset_hf_deepspeed_config()
    # DeepSpeed calls a function that torch is about to rename, once per forward pass.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    config = accelerator.deepspeed_plugin.deepspeed_config
    # DeepSpeed requires a batch size and does not use it here.
    config["train_micro_batch_size_per_gpu"] = 1
    config["gradient_clipping"] = max_grad_norm
    config["zero_allow_untested_optimizer"] = True
    config["bf16"] = {"enabled": precision == "bf16"}
    # Gradients are summed over batches and over ranks in float32, also those of bfloat16 weights.
    config["data_types"] = {"grad_accum_dtype": "fp32"}
    config["communication_data_type"] = "fp32"


def prepare(accelerator: Accelerator, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
    """Return DeepSpeed's engine and its optimizer for a model and an optimizer."""
    # Some versions create the optimizer's state by an update with zero gradients. At a learning
    # rate of 0 that changes no weight.
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    engine, prepared = accelerator.prepare(module, optimizer)
    ZeroState(engine.optimizer, int(accelerator.deepspeed_plugin.zero_stage)).reset()
    for group, rate in zip(prepared.param_groups, rates, strict=True):
        group["lr"] = rate
    return engine, prepared


def whole_numel(parameter: Any) -> int:
    """Return the number of elements of a whole parameter, even if stage 3 leaves an empty tensor in
    the model."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


class ZeroState:
    """Weights and optimizer state in DeepSpeed's flat float32 buffers, which the ranks share.

    Args:
        optimizer: DeepSpeed's optimizer, which wraps torch's.
        stage: ZeRO stage 1, 2 or 3; only stage 3 shards the weights of the model itself.
    """

    def __init__(self, optimizer: Any, stage: int) -> None:
        self.optimizer, self.stage = optimizer, stage

    def weight(self, parameter: nn.Parameter) -> Tensor:
        """Return the whole weight; see `Holder`."""
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_get_full_fp32_param

        if parameter.requires_grad:
            whole: Tensor = safe_get_full_fp32_param(parameter)
            return whole.view(whole_shape(parameter))
        if self.stage < 3:
            return parameter.detach()
        with GatheredParameters([parameter]):
            return parameter.detach().clone()

    def own_weight(self, parameter: nn.Parameter) -> Part:
        """Return what this rank holds of a weight; see `Holder`. Below stage 3 the ranks gather the
        weight, because DeepSpeed does not say which part of it a rank holds."""
        from deepspeed.utils import safe_get_local_fp32_param

        if self.stage < 3 or not parameter.requires_grad:
            return Part(self.weight(parameter))
        return _own_part(parameter, safe_get_local_fp32_param(parameter))

    def own_state(self, parameter: nn.Parameter) -> dict[str, Part]:
        """Return what this rank holds of the optimizer's state of a parameter; see `Holder`."""
        from deepspeed.utils import safe_get_full_optimizer_state, safe_get_local_optimizer_state

        flat: dict[str, Any] = next(iter(self.optimizer.optimizer.state.values()), {})
        if not parameter.requires_grad:
            return {}
        own: dict[str, Part] = {}
        for key, value in flat.items():
            if not isinstance(value, Tensor):
                continue
            # A flat tensor over many parameters, from which DeepSpeed takes one, or one number for
            # all of them.
            if not value.dim():
                own[key] = Part(value)
            elif self.stage < 3:
                own[key] = Part(safe_get_full_optimizer_state(parameter, key).view(whole_shape(parameter)))
            else:
                own[key] = _own_part(parameter, safe_get_local_optimizer_state(parameter, key))
        return own

    @torch.no_grad()
    def set_weight(self, parameter: nn.Parameter, stored: StoredTensor) -> None:
        """Write a weight; see `Holder`."""
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        if self.stage < 3:
            value = stored.whole().to(parameter.device)
            parameter.copy_(value)
            if parameter.requires_grad:
                safe_set_full_fp32_param(parameter, value)
            return
        # These are the copy that forward passes read and the copy that the optimizer updates.
        with GatheredParameters([parameter], modifier_rank=0):
            if torch.distributed.get_rank() == 0:
                parameter.data.copy_(stored.whole())
        if parameter.requires_grad:
            safe_set_local_fp32_param(parameter, _read_part(parameter, stored))

    @torch.no_grad()
    def set_states(self, states: Mapping[nn.Parameter, Mapping[str, StoredTensor]]) -> None:
        """Write the optimizer's state of all parameters; see `Holder`."""
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        keys = {key: stored for state in states.values() for key, stored in state.items()}
        self._create({key for key, stored in keys.items() if stored.shape})
        for flat in self.optimizer.optimizer.state.values():
            for key, stored in keys.items():
                if not stored.shape:
                    # A counter of updates, which is the same for all parameters.
                    flat[key] = stored.whole().to(flat[key].device if key in flat else "cpu")
        for parameter, state in states.items():
            for key, stored in state.items():
                if stored.shape and self.stage < 3:
                    safe_set_full_optimizer_state(parameter, stored.whole().to(parameter.device), key)
                elif stored.shape:
                    safe_set_local_optimizer_state(parameter, _read_part(parameter, stored), key)

    def reset(self) -> None:
        """Set the optimizer's state to zero. Some versions of DeepSpeed create the state by an
        update, which this undoes."""
        for flat in self.optimizer.optimizer.state.values():
            for value in flat.values():
                if isinstance(value, Tensor):
                    value.zero_()

    def _create(self, keys: set[str]) -> None:
        """Create the optimizer's state under `keys`. DeepSpeed itself creates it only in the first
        update."""
        name = "single_partition_of_fp32_groups" if self.stage < 3 else "fp32_partitioned_groups_flat"
        for flat in getattr(self.optimizer, name):
            state = self.optimizer.optimizer.state[flat]
            for key in keys - set(state):
                state[key] = torch.zeros_like(flat)
        if self.stage < 3:
            # Links each parameter to its part of the flat state.
            self.optimizer._lazy_init_hp_params_optimizer_state()


def _range(parameter: Any) -> tuple[int, int]:
    """Return the index of the first element of this rank's shard in stage 3, and the size of a
    shard. The shards of the last ranks reach beyond the end of the parameter."""
    size = int(parameter.ds_tensor.numel())
    return size * torch.distributed.get_rank(parameter.ds_process_group), size


def _own_part(parameter: Any, shard: Tensor) -> Part:
    """Return this rank's shard of a tensor in stage 3, without what is beyond its end."""
    start, size = _range(parameter)
    held = min(max(whole_numel(parameter) - start, 0), size)
    return Part(shard.flatten()[:held], min(start, whole_numel(parameter)))


def _read_part(parameter: Any, stored: StoredTensor) -> Tensor:
    """Read this rank's shard of a tensor in stage 3, with zeros beyond its end."""
    start, size = _range(parameter)
    values = stored.part(start, start + size)
    return torch.nn.functional.pad(values, (0, size - len(values))).to(parameter.ds_tensor.device)


def whole_shape(parameter: Any) -> torch.Size:
    """Return the shape of a whole parameter, even if stage 3 leaves an empty tensor in the
    model."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))

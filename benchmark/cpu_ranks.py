"""Ranks on a CPU under the shipped presets, sharded as they are for a large model on GPUs."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

from unmask.recipes.load import shipped_recipes

PRELOADED = [
    "unmask.cli.training",
    "unmask.report.api.trainer",
    "unmask.report.build",
    "unmask.report.plot",
    "unmask.trainer.pretrain",
    "accelerate",
    "deepspeed",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.ops.op_builder.all_ops",
    "deepspeed.runtime.superoffload.superoffload_stage3",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "functorch.compile",
    "matplotlib.backends.backend_agg",
    "matplotlib.pyplot",
    "networkx",
    "peft",
    "rich._emoji_codes",
    "rich.progress",
    "scipy.stats",
    "torch._dynamo",
    "torch._inductor.graph",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.tokenization_utils_fast",
]
"""Modules that a run imports, including those that are imported only when they are needed. A process
that has imported them can be forked for each rank of each run."""


@cache
def preset_environment(preset: str) -> dict[str, str]:
    """Return the environment variables that `accelerate launch` sets for a shipped preset."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    words = ["--config_file", str(shipped_recipes("accelerate")[preset]), "--num_processes", "2"]
    words += ["--main_process_port", "0", "-m", "unmask"]
    args, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    found = prepare_deepspeed_cmd_env(args)[1] if args.use_deepspeed else prepare_multi_gpu_env(args)
    prefixes = ("ACCELERATE_", "FSDP_")
    return {name: value for name, value in found.items() if name.startswith(prefixes) and name not in os.environ}


def gather_in_every_forward(rank: int) -> None:
    """Make ZeRO-3 gather weights in each forward pass, as it does for a large model.

    By default it keeps tensors below 1e5 elements whole on every rank, which are all tensors of a tiny model.
    """
    from unmask.trainer.distributed import deepspeed_zero

    configure = deepspeed_zero.configure

    def configure_and_shard(accelerator: Any, *rest: Any) -> None:
        configure(accelerator, *rest)
        accelerator.deepspeed_plugin.deepspeed_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0

    deepspeed_zero.configure = configure_and_shard


def fsdp2_on_the_cpu(rank: int) -> None:
    """Make accelerate take its FSDP2 path for the preset fsdp2 on a CPU, where it would use DDP. Everything but the device is
    as on GPUs."""
    from accelerate import Accelerator, PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    start = Accelerator.__init__

    def start_fsdp2(self: Accelerator, *args: Any, **options: Any) -> None:
        os.environ["ACCELERATE_USE_FSDP"] = "false"
        start(self, *args, **options)
        os.environ["ACCELERATE_USE_FSDP"] = "true"
        plugin = FullyShardedDataParallelPlugin()
        for state in (self.state, PartialState()):
            state._shared_state["distributed_type"] = DistributedType.FSDP
        self.state._shared_state["fsdp_plugin"] = plugin
        assert self.is_fsdp2

    Accelerator.__init__ = start_fsdp2  # type: ignore[method-assign]

"""Set-up of a run's accelerator (its ranks, device and precision) and of its trackers (services
that receive the metrics)."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import torch

from unmask.core.errors import ConfigError, unknown_name
from unmask.core.settings import flat
from unmask.models.device import precision_on, use_expandable_segments
from unmask.recipes.schema import RunRecipe
from unmask.runs.folder import RunFolder
from unmask.trainer.distributed import deepspeed_zero

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.distributed.fsdp import MixedPrecisionPolicy

COLLECTIVE_PATIENCE = 24
"""Timeout of a collective, as a multiple of `stuck_timeout`. It is long because one rank may spend
minutes loading or writing a large model while the others wait. `Progress` normally ends the run
first."""


def make_accelerator(recipe: RunRecipe) -> Accelerator:
    """Return the accelerator of a run, among the ranks that a launcher started.

    Raises:
        ConfigError: a tracker is unknown or not installed, or a setting of the launcher would
            change the results.
    """
    from accelerate import Accelerator, InitProcessGroupKwargs

    _check_trackers(recipe)
    use_expandable_segments()
    set_deterministic_kernels(recipe.deterministic)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available():
        # Without this setting each rank that torchrun starts on a CPU believes that it is alone.
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    timeout = timedelta(seconds=COLLECTIVE_PATIENCE * recipe.stuck_timeout)
    use_deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    if use_deepspeed:
        deepspeed_zero.check_installed()
        # accelerate ignores DeepSpeed if the environment requests the CPU, so the request is
        # removed and only the process group is made for the CPU.
        if os.environ.pop("ACCELERATE_USE_CPU", "false").lower() == "true" or not torch.cuda.is_available():
            deepspeed_zero.start_on_cpu(timeout)
    accelerator = Accelerator(
        # Apple's GPUs lack float64, which the hashed draws need; their CPUs have it.
        cpu=torch.backends.mps.is_available(),
        # The weights themselves are bfloat16 with `precision` bf16, so nothing is cast.
        mixed_precision="no",
        log_with=list(recipe.report_to) or None,
        project_dir=recipe.output_dir,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timeout)],
    )
    if accelerator.gradient_accumulation_steps != 1:
        raise ConfigError(
            f"accelerate was started with gradient_accumulation_steps = {accelerator.gradient_accumulation_steps}, "
            "which would skip updates. Leave it at 1; views_per_forward limits the memory of an update."
        )
    precision = precision_on(accelerator.device, recipe.precision)
    if use_deepspeed:
        deepspeed_zero.configure(accelerator, recipe.optim.max_grad_norm, precision)
    if str(accelerator.distributed_type).endswith("FSDP"):
        accelerator.state.fsdp_plugin.mixed_precision_policy = fsdp_policy(precision)
    return accelerator


def set_deterministic_kernels(value: bool) -> None:
    """Let torch choose deterministic kernels from now on, or the fastest ones, whatever an earlier
    run of the same process chose. An operation without a deterministic kernel gives a warning.

    cuBLAS reads its environment variable when it first uses a GPU, so the variable stays.
    """
    if value:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # The call imports torch's compiler, which takes half a second, so it is made only for a change.
    if value or torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(value, warn_only=True)


def fsdp_policy(precision: Literal["bf16", "float32"]) -> MixedPrecisionPolicy:
    """Return the policy by which FSDP2 gathers the float32 shards of the trained weights.

    With bf16, weights are gathered in bfloat16 and gradients are reduced in float32. accelerate's
    own policy would also round the outputs of the model to bfloat16, which are log-probabilities if
    the head is read in chunks. The inputs of layers keep their precision, as in a model that is not
    wrapped.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy

    dtype = torch.bfloat16 if precision == "bf16" else None
    return MixedPrecisionPolicy(dtype, torch.float32, output_dtype=None, cast_forward_inputs=False)


def _check_trackers(recipe: RunRecipe) -> None:
    """Refuse unknown trackers and trackers that are not installed; accelerate would leave them out
    without an error."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    for tracker in recipe.report_to:
        if tracker not in LOGGER_TYPE_TO_CLASS:
            raise ConfigError(f"report_to: {unknown_name('tracker', tracker, LOGGER_TYPE_TO_CLASS)}")
        if tracker not in map(str, get_available_trackers()):
            raise ConfigError(f"report_to: {tracker} is not installed. Install it, or leave it out.")


def start_trackers(accelerator: Accelerator, recipe: RunRecipe, folder: RunFolder, logged: int) -> None:
    """Open the trackers of the recipe, and send them the settings.

    In a tracker, a run has the name of its folder. A resumed run continues the same tracker run, as
    far as the tracker can.

    Args:
        accelerator: accelerator of the run.
        recipe: settings of the run.
        folder: folder of the run. Its id is the run's id in trackers that accept one, and run.json
            keeps the id that MLflow assigns.
        logged: last step whose metrics are final; the metrics of later steps will be sent again.
    """
    if not recipe.report_to:
        return
    name, facts = folder.path.resolve().name, folder.facts if folder.is_main else {}
    settings: dict[str, dict[str, Any]] = {
        "wandb": {"name": name, "id": folder.id, "resume": "allow"},
        # Hides the points that an earlier process wrote after that step.
        "tensorboard": {"purge_step": logged + 1},
        "trackio": {"name": name, "resume": "allow"},
        "mlflow": {"run_name": name, "run_id": facts.get("mlflow_run_id")},
        "comet_ml": {"experiment_key": folder.id, "mode": "get_or_create"},
    }
    config = {key: str(value) for key, value in flat(recipe.model_dump(mode="json")).items()}
    accelerator.init_trackers(
        "unmask", config=config, init_kwargs={key: settings.get(key, {}) for key in recipe.report_to}
    )
    for tracker in accelerator.trackers:
        if tracker.name == "mlflow" and folder.is_main:
            folder.add_facts(mlflow_run_id=tracker.tracker.info.run_id)


def finish_trackers(accelerator: Accelerator) -> None:
    """Close the trackers.

    accelerate's `end_training` would also destroy the process group. The model's wrapper would then
    hold the last reference to the group and join its threads with Python's lock held, and the
    threads may wait for that lock. The group ends with the process instead.
    """
    for tracker in accelerator.trackers:
        tracker.finish()

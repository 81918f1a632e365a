"""What runs a recipe: processes, devices, precision and trackers, all through accelerate."""

from __future__ import annotations

import os
import warnings
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch

from unmask.core.config import flat
from unmask.core.errors import ConfigError, unknown_name
from unmask.recipes.schema import RunRecipe
from unmask.runs.folder import RunFolder

if TYPE_CHECKING:
    from accelerate import Accelerator

COLLECTIVE_PATIENCE = 24
"""Of `stuck_timeout`, after which a collective gives up by itself, should the watchdog not have ended the process before. Long:
one process may load or write a large model for as long as it gets on, while the others wait in one collective."""


def make_accelerator(recipe: RunRecipe) -> Accelerator:
    """The accelerator that a recipe asks for, among the processes that a launcher started.

    Raises:
        ConfigError: a precision that the device lacks, a tracker that is unknown or not installed, or a setting of the launcher
            that would change what is computed.
    """
    from accelerate import Accelerator, InitProcessGroupKwargs, PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    # accelerate leaves a tracker that is not installed out, with a warning at most.
    for tracker in recipe.report_to:
        if tracker not in LOGGER_TYPE_TO_CLASS:
            raise ConfigError(f"report_to: {unknown_name('tracker', tracker, LOGGER_TYPE_TO_CLASS)}")
        if tracker not in map(str, get_available_trackers()):
            raise ConfigError(f"report_to: {tracker} is not installed. Install it, or leave it out.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available():
        # Without being told to use the CPU, each process that torchrun starts would believe that it is alone.
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    patience = timedelta(seconds=COLLECTIVE_PATIENCE * recipe.stuck_timeout)
    use_deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    if use_deepspeed:
        _check_deepspeed()
        # Told to use the CPU, accelerate forgets DeepSpeed; so it is told only where it makes the process group.
        if os.environ.pop("ACCELERATE_USE_CPU", "false").lower() == "true" or not torch.cuda.is_available():
            # DeepSpeed would take the machine for a GPU's, and each process would believe that it is alone.
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
            PartialState(cpu=True, backend="gloo", timeout=patience)
            _without_compiled_collectives()
    try:
        accelerator = Accelerator(
            # Apple's GPUs have no float64, which the hashed draws need; their CPUs do.
            cpu=torch.backends.mps.is_available(),
            mixed_precision=recipe.mixed_precision,
            log_with=list(recipe.report_to) or None,
            project_dir=recipe.output_dir,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=patience)],
        )
    except ValueError as error:
        raise ConfigError(f"mixed_precision = {recipe.mixed_precision} cannot be had here: {error}") from error
    if accelerator.gradient_accumulation_steps != 1:
        raise ConfigError(
            f"accelerate was started with gradient_accumulation_steps = {accelerator.gradient_accumulation_steps}, which would "
            "skip updates. Leave it at 1: views_per_forward accumulates gradients as far as memory asks for it."
        )
    if use_deepspeed:
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        # Otherwise transformers would share weights out while it loads them, before they can be tested and copied.
        unset_hf_deepspeed_config()
        # DeepSpeed calls what torch is about to rename, once a forward; nobody here can mend that.
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
        config = accelerator.deepspeed_plugin.deepspeed_config
        # A name only: batches are the recipe's. And clipping is the recipe's, whatever the launcher says.
        config["train_micro_batch_size_per_gpu"] = 1
        config["gradient_clipping"] = recipe.optim.max_grad_norm
        config["zero_allow_untested_optimizer"] = True
    return accelerator


def start_trackers(accelerator: Accelerator, recipe: RunRecipe, folder: RunFolder, logged: int) -> None:
    """Open the trackers that the recipe names, and show them the recipe.

    The run's name there is the folder's, and a run that is resumed goes on as the same run, as far as a tracker can.

    Args:
        accelerator: of the run.
        recipe: of the run.
        folder: of the run; its id is the run's id where a tracker takes one, and run.json keeps the id that MLflow gives.
        logged: the last step whose metrics are final; those of later steps come again.
    """
    if not recipe.report_to:
        return
    name, facts = folder.path.resolve().name, folder.facts if folder.is_main else {}
    settings: dict[str, dict[str, Any]] = {
        "wandb": {"name": name, "id": folder.id, "resume": "allow"},
        # Points that an earlier process wrote after that step are hidden.
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

    accelerate's `end_training` destroys the process group as well; the model's wrapper then holds the last reference to it, and
    joins its threads with Python's lock held, for which they may wait. The group ends with the process.
    """
    for tracker in accelerator.trackers:
        tracker.finish()


def _without_compiled_collectives() -> None:
    """Keep DeepSpeed from compiling collectives for CPUs.

    That takes minutes at the first use, and a process that is killed meanwhile leaves a lock in ~/.cache/torch_extensions that
    holds up every later run for ever.
    """
    from deepspeed import ops

    ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _check_deepspeed() -> None:
    try:
        import deepspeed  # noqa: F401
    except ImportError as error:
        raise ConfigError('the zero presets need DeepSpeed: pip install "unmask[zero]"') from error

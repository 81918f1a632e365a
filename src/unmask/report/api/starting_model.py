"""The model that a training run in Python starts from: a folder, a hub id, or an object that is
written to a folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.core.errors import ConfigError
from unmask.models import Denoiser, Policy, save_model
from unmask.runs.atomic import INCOMPLETE, disk_faults_explained, folder_replaced_whole
from unmask.runs.checkpoints import checkpoints_in
from unmask.runs.metrics import FILE as METRICS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ModelSource = str | os.PathLike[str] | Policy | Denoiser
"""A folder, a hub id, the result of `load_model`, or a denoiser whose tokenizer is given
separately."""


def model_of(source: ModelSource | None, tokenizer: PreTrainedTokenizerBase | None = None) -> str | Policy | None:
    """Return a model argument as a path or as a policy; None if there is none.

    Raises:
        ConfigError: the argument has another type, or is a denoiser without its tokenizer.
    """
    match source:
        case None:
            return None
        case Policy():
            return source
        case Denoiser() if tokenizer is not None:
            return Policy(source, tokenizer)
        case Denoiser():
            raise ConfigError(
                "model is a Denoiser without its tokenizer. Give Policy(denoiser, tokenizer), or add processing_class=tokenizer."
            )
        case str() | os.PathLike():
            if tokenizer is not None:
                raise ConfigError(
                    f"processing_class is given beside the model {source}, which has its own tokenizer. Leave it out."
                )
            return os.fspath(source)
    raise ConfigError(
        f"model has the type {type(source).__name__}. Give a folder, a hub id, or what load_model returns. For a "
        "transformers model that is loaded already, give Policy(Denoiser(model, mask_id, eos_id, pad_id), tokenizer)."
    )


def write_starting_model(policy: Policy, run: Path) -> str:
    """Write a policy to the folder RUN-start, which the run then reads, and return its path.

    A run that is resumed keeps the model that it started from.

    Raises:
        ConfigError: the run has several processes, each of which has its own object.
        RunError: the folder cannot be written.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "A model object cannot be shared by several processes. Write it once with save_model, and give its folder."
        )
    target = run.with_name(f"{run.name}-start")
    metrics = run / METRICS
    if checkpoints_in(run) or (metrics.is_file() and metrics.stat().st_size):
        # The run is resumed, or is about to be refused. Either way its model must not change.
        return str(target)
    with (
        disk_faults_explained(target),
        folder_replaced_whole(target, target.with_name(INCOMPLETE + target.name)) as aside,
    ):
        save_model(policy.denoiser, policy.tokenizer, aside)
    return str(target)

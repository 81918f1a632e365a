"""The error of a run whose device has no memory left: what the run was doing, and the settings that
lower its memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from unmask.core.errors import RunError
from unmask.recipes.schema import PretrainRecipe, TrainRecipe
from unmask.trainer.distributed.progress import Progress

_CPU_ALLOCATOR = "DefaultCPUAllocator"
"""Word in the RuntimeError that torch raises when the host has no memory left; on a device it
raises `torch.OutOfMemoryError`."""

_REMEDIES = {
    "update": {
        "views_per_forward": "lower views_per_forward",
        "max_tokens_per_forward": "lower max_tokens_per_forward",
        "gradient_checkpointing": "set gradient_checkpointing = true",
    },
    "rollout": {
        "rollout_batch_size": "lower rollout_batch_size",
        "max_tokens_per_forward": "set max_tokens_per_forward = auto",
    },
    "evaluation": {"evaluation": "lower evaluation.batch_size"},
}
"""Advice for each phase of a training step, by the first word of the phase's name and by the
setting that the recipe must have."""


class MemoryFullError(RunError):
    """The device or the host has no memory left for a step of a run.

    A scheduler must not restart the run, because the same step would fail again.
    """


@contextmanager
def memory_explained(
    progress: Progress, recipe: TrainRecipe | PretrainRecipe, saved: Callable[[], str]
) -> Iterator[None]:
    """Turn the error of torch that no memory is left into a `MemoryFullError` that names the
    settings to change.

    Args:
        progress: progress of this rank, which knows the step and the phase.
        recipe: settings of the run.
        saved: function that returns a clause about the newest checkpoint.
    """
    try:
        yield
    except RuntimeError as error:
        # torch.OutOfMemoryError derives from RuntimeError.
        if not isinstance(error, torch.OutOfMemoryError) and _CPU_ALLOCATOR not in str(error):
            raise
        step, phase = progress.position.step, progress.position.phase
        known = _REMEDIES.get(phase.split()[0], {})
        advice = [text for setting, text in known.items() if setting in type(recipe).model_fields]
        remedy = " or ".join(advice) or "use a smaller model or a device with more memory"
        rank = f" on rank {progress.rank} of {progress.count}" if progress.count > 1 else ""
        raise MemoryFullError(
            f"step {step}, {phase}: no memory is left{rank} ({str(error).splitlines()[0][:200]}). "
            f"To use less memory, {remedy}, then add --resume; {saved()}."
        ) from error

"""The error of a run whose device has no memory left: what the run was doing, and the settings that
lower its memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from unmask.core.errors import RunError
from unmask.recipes.schema import PretrainRecipe, TrainRecipe
from unmask.trainer.distributed.backend import is_deepspeed, is_sharded
from unmask.trainer.distributed.progress import SET_UP, Progress

if TYPE_CHECKING:
    from accelerate import Accelerator

_CPU_ALLOCATOR = "DefaultCPUAllocator"
"""Word in the RuntimeError that torch raises when the host has no memory left; on a device it
raises `torch.OutOfMemoryError`."""


class MemoryFullError(RunError):
    """The device or the host has no memory left for a step of a run.

    A scheduler must not restart the run, because the same step would fail again.
    """


@contextmanager
def memory_explained(
    progress: Progress, recipe: TrainRecipe | PretrainRecipe, accelerator: Accelerator, saved: Callable[[], str]
) -> Iterator[None]:
    """Turn the error of torch that no memory is left into a `MemoryFullError` that names the
    settings to change.

    Args:
        progress: progress of this rank, which knows the step and the phase.
        recipe: settings of the run.
        accelerator: accelerator of the run, which knows how the ranks share the weights.
        saved: function that returns a clause about what the run folder holds.
    """
    try:
        yield
    except RuntimeError as error:
        # torch.OutOfMemoryError derives from RuntimeError.
        if not isinstance(error, torch.OutOfMemoryError) and _CPU_ALLOCATOR not in str(error):
            raise
        step, phase = progress.position.step, progress.position.phase
        remedy = (
            " or ".join(_remedies(phase, recipe, accelerator)) or "use a smaller model or a device with more memory"
        )
        fixed = _fixed_remedies(recipe, accelerator) if phase in (SET_UP, "start") else []
        rank = f" on rank {progress.rank} of {progress.count}" if progress.count > 1 else ""
        raise MemoryFullError(
            f"{f'step {step}, ' if step else ''}{phase}: no memory is left{rank} ({str(error).splitlines()[0][:200]}). "
            f"To use less memory, {remedy}, then add --resume; {saved()}."
            + (f" A new run in another output_dir can also set {' or '.join(fixed)}." if fixed else "")
        ) from error


def _remedies(phase: str, recipe: TrainRecipe | PretrainRecipe, accelerator: Accelerator) -> list[str]:
    """Return the changes that lower the memory of a phase, and that a resumed run may make. A
    change that the recipe has made already is left out."""
    kind = phase.split()[0]
    if kind == "rollout":
        return _smaller_passes(recipe, accelerator, "rollout_batch_size") + _other_rollout_weights(recipe, accelerator)
    if kind == "evaluation":
        return _smaller_passes(recipe, accelerator, "evaluation.batch_size") + _other_rollout_weights(
            recipe, accelerator
        )
    found = []
    if kind == "update":
        found += _smaller_passes(recipe, accelerator, "views_per_forward")
        found += [] if recipe.gradient_checkpointing else ["set gradient_checkpointing = true"]
    if kind in ("update", SET_UP, "start") and _has_reference_on_device(recipe):
        found.append("set reference_offload = true")
    if kind in (SET_UP, "start") and not is_sharded(accelerator) and not _is_quantized(recipe):
        found.append("divide the weights among several GPUs with the preset fsdp2 or zero3")
    return found


def _smaller_passes(recipe: TrainRecipe | PretrainRecipe, accelerator: Accelerator, rows: str) -> list[str]:
    """Return the changes that make a forward pass smaller: of the number of tokens, if the recipe
    limits it, because the setting `rows` then has no effect."""
    limit = recipe.max_tokens_per_forward
    if limit == "auto":
        return ["set max_tokens_per_forward to a number below those in max_tokens.json"]
    if limit is not None:
        return ["lower max_tokens_per_forward"]
    if isinstance(recipe, PretrainRecipe):
        return ["set max_tokens_per_forward below the tokens of a batch"]
    # The trials of `auto` are collective in these two cases, and a rank that fails blocks the others.
    is_refused = is_sharded(accelerator) or is_deepspeed(accelerator)
    return [f"lower {rows}"] + ([] if is_refused else ["set max_tokens_per_forward = auto"])


def _other_rollout_weights(recipe: TrainRecipe | PretrainRecipe, accelerator: Accelerator) -> list[str]:
    """Return the choice of `rollout_weights` that needs less memory than that of the recipe."""
    if not isinstance(recipe, TrainRecipe) or _is_quantized(recipe):
        return []
    if is_sharded(accelerator):
        return [] if recipe.rollout_weights == "sharded" else ["set rollout_weights = sharded"]
    return ["set rollout_weights = whole"] if recipe.lora and recipe.rollout_weights == "merged" else []


def _fixed_remedies(recipe: TrainRecipe | PretrainRecipe, accelerator: Accelerator) -> list[str]:
    """Return the settings that lower the memory of the weights and that a resumed run cannot
    change."""
    found = ["precision = bf16"] if recipe.precision == "float32" else []
    if recipe.lora is None:
        return found + (["lora, which trains adapters only"] if recipe.model else [])
    # Shards and 4 bits are two ways to save the same memory.
    return found + ([] if _is_quantized(recipe) or is_sharded(accelerator) else ["lora.quantize = 4bit"])


def _is_quantized(recipe: TrainRecipe | PretrainRecipe) -> bool:
    return recipe.lora is not None and recipe.lora.quantize == "4bit"


def _has_reference_on_device(recipe: TrainRecipe | PretrainRecipe) -> bool:
    """Return True if a copy of the policy lies in the device's memory for the whole run."""
    if not isinstance(recipe, TrainRecipe) or recipe.lora or recipe.reference_offload:
        return False
    return recipe.method.needs().reference != "none"

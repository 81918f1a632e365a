"""Completions of prompts in one call: the function `generate` of the public API."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError, DataError
from unmask.core.records import Needs, Trajectory
from unmask.functional.noise import named_generator
from unmask.models import Policy
from unmask.sampling import Snapshot
from unmask.sampling.encoding import Prompt, row_seeds
from unmask.sampling.engine import BatchLimits, LocalEngine


def generate(
    policy: Policy,
    prompts: Prompt | Sequence[Prompt],
    sampler: SamplerConfig | None = None,
    *,
    num_generations: int = 1,
    seed: int | Tensor = 0,
    needs: Needs | None = None,
    batch_size: int | None = None,
    observe: Callable[[Snapshot], None] | None = None,
) -> Trajectory:
    """Denoise completions of prompts and return their trajectory.

    `decode(policy.tokenizer, trajectory.tokens)` gives the texts. A completion depends on its own
    prompt and seed, not on the rest of the batch.

    Args:
        policy: the model and its tokenizer, as `load_model` returns them.
        prompts: texts, or lists of chat messages for the tokenizer's template. A single prompt need
            not be in a list.
        sampler: sampler settings; default `SamplerConfig()`.
        num_generations: number of completions of each prompt, which are next to each other in the
            trajectory.
        seed: seed of all completions, or a [B] int64 tensor with one seed for each completion.
        needs: quantities to record besides the completions, such as one-step completions.
        batch_size: maximum number of completions that are denoised together; by default 256, on a
            CPU 64, and fewer if the tokens or the logits would take much memory.
        observe: function that is called after each denoising step of a batch.

    Returns:
        The trajectory of B completions, in the order of the prompts, on the device of the model.

    Raises:
        ConfigError: `policy` or `sampler` has another type, or there are not as many seeds as
            completions.
        DataError: there is no prompt, a prompt cannot be encoded, or it is too long for the model.
    """
    check_policy(policy)
    check_sampler(sampler)
    repeated = [prompt for prompt in _listed(prompts) for _ in range(num_generations)]
    if not repeated:
        raise DataError("There is no prompt to complete. Give at least one prompt, and num_generations of at least 1.")
    seeds = seed if isinstance(seed, Tensor) else row_seeds(len(repeated), named_generator(seed, "sample"))
    if seeds.shape != (len(repeated),):
        raise ConfigError(
            f"seed has the shape {list(seeds.shape)} for {len(repeated)} completions. Give one number, or a seed for each."
        )
    with torch.no_grad():
        engine = LocalEngine(policy, BatchLimits(batch_size))
        return engine.rollout(repeated, sampler or SamplerConfig(), seeds.cpu(), needs=needs, observe=observe)


def check_policy(policy: object) -> None:
    """Check that the argument `policy` is a `Policy`.

    Raises:
        ConfigError: the argument has another type.
    """
    if not isinstance(policy, Policy):
        raise ConfigError(
            f"policy has the type {type(policy).__name__}. Give what load_model returns, or Policy(denoiser, tokenizer)."
        )


def check_sampler(sampler: object) -> None:
    """Check that an argument holds sampler settings or is None.

    Raises:
        ConfigError: the argument has another type.
    """
    if not isinstance(sampler, SamplerConfig | None):
        raise ConfigError(
            f"sampler has the type {type(sampler).__name__}. Give SamplerConfig(...), such as SamplerConfig(num_steps=8)."
        )


def _listed(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """Return a list of prompts; a text, or the messages of one chat, are one prompt."""
    if isinstance(prompts, str):
        return [prompts]
    listed: list[Prompt] = [] if isinstance(prompts, Mapping) else list(prompts)  # type: ignore[arg-type]
    if isinstance(prompts, Mapping) or any(isinstance(prompt, Mapping) and "prompt" in prompt for prompt in listed):
        raise DataError('prompts holds rows. Give their prompts: [row["prompt"] for row in rows].')
    return [listed] if listed and isinstance(listed[0], Mapping) else listed  # type: ignore[list-item]

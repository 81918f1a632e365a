"""How many tokens one forward may hold: as the recipe says, or as a probe of a few rows finds before the first step.

Memory grows in proportion to rows times tokens, bytes = fixed + slope * tokens. The probe runs the first forward of a rollout
and a forward and backward of an update, at two small sizes each, and solves for the tokens that fill what is free. On a GPU the
answer is then tried, and made smaller until it fits.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from unmask.core.errors import ConfigError, RunError
from unmask.core.files import read_json_object
from unmask.core.records import Rollout, Row, Trajectory, Views
from unmask.models import Policy
from unmask.recipes.schema import TrainRecipe
from unmask.runs.atomic import write_atomically
from unmask.sampling import LogprobSettings, view_logprobs
from unmask.sampling.engine import BatchLimits, LocalEngine
from unmask.sampling.generation import encode_batch
from unmask.trainer.distributed.ranks import Ranks
from unmask.trainer.learn import positions_at_once
from unmask.trainer.optimizer import state_bytes, trainable
from unmask.trainer.peak import free_bytes, peak_bytes
from unmask.trainer.policy import TrainedPolicy

if TYPE_CHECKING:
    from accelerate import Accelerator

FILE = "max_tokens.json"
"""In the run folder: what the probe found, so that a resumed run makes the same batches."""

SHARE = 0.8
"""Of the free memory that is planned with; the rest is for what allocators lose between blocks."""

SIZES = (2, 4)
"""Rows of the two measurements."""

SMALLER = 0.75
"""By how much a try that ran out of memory is made smaller."""

logger = logging.getLogger("unmask")


@dataclass(frozen=True, slots=True)
class TokenBudget:
    """Rows times (prompt + completion) tokens in one forward; None where batches are counted in rows."""

    rollout: int | None = None
    """Without graph, with as many logits as sampling looks at."""
    update: int | None = None
    """With graph."""


def given_room(recipe: TrainRecipe) -> TokenBudget | None:
    """What the recipe says; None if it is to be found."""
    given = recipe.max_tokens_per_forward
    return None if given == "auto" else TokenBudget(given, given)


def find_token_budget(
    recipe: TrainRecipe,
    policy: TrainedPolicy,
    accelerator: Accelerator,
    rows: list[Row],
    folder: Path,
) -> TokenBudget:
    """What the recipe says, what was found when the run began, or what a probe finds now; the same on all processes.

    Args:
        recipe: the run's settings.
        policy: as it was made.
        accelerator: of the run.
        rows: that are trained on; the longest prompt among them counts.
        folder: of the run.

    Raises:
        ConfigError: no row fits, or the weights lie in shards, where a try that failed on one process would hold up the others.
    """
    if (room := given_room(recipe)) is not None:
        return room
    if str(accelerator.distributed_type).endswith(("DEEPSPEED", "FSDP")):
        raise ConfigError(
            "max_tokens_per_forward = auto cannot be found under FSDP or DeepSpeed, where a try that fails on one process would "
            "hold up the others. Give a number; unmask estimate RECIPE helps to choose it."
        )
    ranks = Ranks(accelerator)
    with ranks.agreed():
        kept = _kept(folder / FILE) if accelerator.is_main_process else None
    if kept := ranks.from_main(kept):
        return kept
    with ranks.agreed():
        probe = _Probe(recipe, policy, accelerator, rows)
        found = [probe.find(probe.rollout), probe.find(probe.update)]
    room = TokenBudget(*(min(ranks.counts(tokens)) for tokens in found))
    if accelerator.is_main_process:
        write_atomically(folder / FILE, json.dumps(asdict(room)) + "\n")
        logger.warning(
            f"max_tokens_per_forward = auto: {room.rollout} tokens in the rollout, {room.update} in the update "
            f"(rows of {probe.width} tokens). Kept in {folder / FILE}; remove that to find it anew on other hardware."
        )
    return room


def _kept(path: Path) -> TokenBudget | None:
    """What was found when the run began; None if nothing was yet."""
    if not path.exists():
        return None
    facts = read_json_object(path)
    if facts.keys() != {"rollout", "update"} or not all(
        isinstance(value, int) and value > 0 for value in facts.values()
    ):
        raise RunError(f"{path} does not hold the tokens that fit into memory. Remove it, and they are found anew.")
    return TokenBudget(**facts)


def tokens_that_fit(measured: list[tuple[int, int]], free: float) -> int:
    """Tokens whose memory is `free` bytes, on the line through two measurements of (tokens, bytes).

    Example:
        >>> tokens_that_fit([(100, 1500), (200, 2500)], free=10_500)
        1000
    """
    (small, low), (large, high) = measured
    slope = max((high - low) / (large - small), 1e-9)
    return int((free - (low - slope * small)) / slope)


def first_that_fits(attempt: Callable[[int], object], tokens: int, width: int) -> int:
    """`tokens`, made smaller until `attempt(rows)` no longer runs out of memory.

    Raises:
        torch.OutOfMemoryError: one row of `width` tokens does not fit.
    """
    while True:
        try:
            attempt(max(1, tokens // width))
            return tokens
        except torch.OutOfMemoryError:
            if tokens <= width:
                raise
            tokens = max(width, int(tokens * SMALLER))
            torch.cuda.empty_cache()


class _Probe:
    """What is measured: the widest rows that the run can have, by the run's own sampler and method.

    The bare policy is run, not the wrapped one: processes may try different sizes, and must not wait for each other's backward.
    """

    def __init__(
        self,
        recipe: TrainRecipe,
        policy: TrainedPolicy,
        accelerator: Accelerator,
        rows: list[Row],
    ) -> None:
        self.recipe, self.policy, self.accelerator = recipe, policy, accelerator
        # The longest text is the longest prompt, near enough; encoding thousands of rows would take longer than the probe.
        longest = sorted((row["prompt"] for row in rows), key=lambda prompt: len(str(prompt)))[-8:]
        ids, mask = encode_batch(policy.tokenizer, longest, policy.denoiser.pad_id)
        self.prompt = longest[int(mask.sum(-1).argmax())]
        self.width = ids.shape[1] + recipe.sampler.max_completion_length
        self.needed = recipe.num_prompts * recipe.num_generations * self.width // accelerator.num_processes

    def find(self, run: Callable[[int], object]) -> int:
        """Tokens that one call of `run` can hold, and no more than a step has."""
        device = self.accelerator.device
        try:
            # Before it is measured: what the first call of all allocates for good belongs to no size.
            run(1)
            measured = [(rows * self.width, self._peak(run, rows)) for rows in SIZES]
            tokens = tokens_that_fit(measured, self._plannable())
            if tokens < self.width:
                raise torch.OutOfMemoryError
            tokens = min(tokens, max(self.width, self.needed))
            return first_that_fits(run, tokens, self.width) if device.type == "cuda" else tokens
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"max_tokens_per_forward = auto: rows of {self.width} tokens need more memory than the "
                f"{self._plannable() / 2**30:.1f} GiB that can be planned with. Shorten max_completion_length, or set "
                "gradient_checkpointing, lora or dtype = bfloat16."
            ) from error

    def rollout(self, rows: int) -> Trajectory:
        """Equal prompts, denoised in as few steps as the blocks allow: the first forward of a block asks for most logits."""
        sampler = self.recipe.sampler
        return self._denoised(rows, sampler.max_completion_length // sampler.block)

    def update(self, rows: int) -> None:
        """Forward and backward of the method's own views, all with as many targets as the one that has most."""
        path, views = self._planned
        most = views.target.sum(-1).argmax()
        needs = self.recipe.method.needs()
        scoring = LogprobSettings.of(path, self.recipe.logprob_temperature)
        with self.accelerator.autocast():
            scores = view_logprobs(
                self.policy.denoiser,
                path,
                views.take(most.expand(rows)),
                scoring,
                choice=needs.choice,
                distribution=needs.reference == "distribution",
                trim=True,
                positions_at_once=positions_at_once(self.policy.denoiser),
            )
        self.accelerator.backward(scores.logprob.sum() * 0.0)
        self.policy.denoiser.zero_grad(set_to_none=True)

    @cached_property
    def _planned(self) -> tuple[Trajectory, Views]:
        """A pair of completions by the run's own sampler, and what the method would train on of them."""
        path = self._denoised(2, self.recipe.sampler.steps)
        kept = {
            "one_step_reward": None if path.one_step_tokens is None else path.one_step_tokens[:, :, 0].float() * 0,
            "branch_reward": None if path.branch_tokens is None else path.branch_tokens[..., 0].float() * 0,
        }
        rollout = Rollout(path, 2, torch.arange(2.0, device=path.tokens.device), **kept)
        return path, self.recipe.method.plan(rollout, torch.Generator().manual_seed(0))

    def _denoised(self, rows: int, steps: int) -> Trajectory:
        engine = LocalEngine(Policy(self.policy.denoiser, self.policy.tokenizer), BatchLimits(rows))
        sampler = self.recipe.sampler.model_copy(update={"num_steps": steps})
        return engine.rollout([self.prompt] * rows, sampler, torch.arange(rows), needs=self.recipe.method.needs())

    def _peak(self, run: Callable[[int], object], rows: int) -> int:
        return peak_bytes(lambda: run(rows), self.policy.denoiser, device=self.accelerator.device)

    def _plannable(self) -> float:
        # The optimizer has no state before the first update.
        weight_bytes = sum(p.numel() * p.element_size() for p in trainable(self.policy.denoiser))
        return SHARE * free_bytes(self.accelerator.device) - state_bytes(weight_bytes, self.recipe.optim)

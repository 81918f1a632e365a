"""The maximum number of tokens in one forward pass. The recipe sets it, or a probe (a short
measurement on a few rows) finds it before the first step.

Memory grows in proportion to rows times tokens: bytes = fixed + slope * tokens. The probe runs the
first forward pass of a rollout and a forward and backward pass of an update, each at two small
sizes, and solves for the number of tokens that fill the free memory. On a GPU, the probe then tries
this number, and reduces it until the passes fit.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unmask.core.errors import ConfigError, RunError
from unmask.core.files import read_json_object
from unmask.core.records import Rollout, Row, Trajectory, Views
from unmask.models import Denoiser, Policy
from unmask.recipes.schema import TrainRecipe
from unmask.runs.atomic import disk_faults_explained, write_atomically
from unmask.sampling import LogprobSettings, view_logprobs
from unmask.sampling.encoding import encode_batch
from unmask.sampling.engine import BatchLimits, LocalEngine
from unmask.trainer.distributed.masters import master_of
from unmask.trainer.distributed.ranks import Ranks
from unmask.trainer.model_limits import packing_of, positions_at_once
from unmask.trainer.optimizer import state_bytes, trainable
from unmask.trainer.passes import UpdatePasses
from unmask.trainer.peak import free_bytes, peak_bytes
from unmask.trainer.policy import TrainedPolicy

if TYPE_CHECKING:
    from accelerate import Accelerator

FILE = "max_tokens.json"
"""File in the run folder with the result of the probe, so that a resumed run makes the same
batches."""

SHARE = 0.8
"""Share of the free memory to use. The rest is a reserve, because allocators lose memory between
blocks."""

SIZES = (2, 4)
"""Number of rows in each of the two measurements."""

SMALLER = 0.75
"""Factor by which the number of tokens is multiplied after a trial has run out of memory."""

logger = logging.getLogger("unmask")


@dataclass(frozen=True, slots=True)
class TokenBudget:
    """Maximum number of tokens in one forward pass: rows times the tokens of prompt and completion.
    None if the recipe limits the rows instead."""

    rollout: int | None = None
    """Limit of a forward pass of the sampler."""
    update: int | None = None
    """Limit of a forward pass of the update, which keeps activations for the backward pass."""


def budget_of(recipe: TrainRecipe) -> TokenBudget | None:
    """Return the budget that the recipe sets; None if the recipe sets `auto`."""
    limit = recipe.max_tokens_per_forward
    return None if limit == "auto" else TokenBudget(limit, limit)


def find_token_budget(
    recipe: TrainRecipe,
    policy: TrainedPolicy,
    accelerator: Accelerator,
    rows: list[Row],
    folder: Path,
    ranks: Ranks,
    weights: Callable[[], AbstractContextManager[Denoiser]] | None = None,
) -> TokenBudget:
    """Return the budget, which is the same on all ranks. It is the budget that the recipe sets, or
    that an earlier probe saved, or that a probe finds now.

    Args:
        recipe: settings of the run.
        policy: the policy, not wrapped for distributed training.
        accelerator: accelerator of the run.
        rows: examples to train on; the longest prompt among them decides.
        folder: run folder.
        ranks: ranks of the run.
        weights: function that opens the weights of rollouts; see `LocalEngine`.

    Raises:
        ConfigError: no row fits; or the preset shards the weights, and a trial that fails on one
            rank would block the others.
    """
    if (budget := budget_of(recipe)) is not None:
        return budget
    if str(accelerator.distributed_type).endswith(("DEEPSPEED", "FSDP")):
        raise ConfigError(
            "max_tokens_per_forward = auto does not work with FSDP or DeepSpeed, because a trial that fails on one rank blocks "
            "the others. Set a number; unmask estimate RECIPE helps to choose it.",
            agreed=True,
        )
    with ranks.agreed():
        saved = _saved(folder / FILE) if accelerator.is_main_process else None
    if saved := ranks.from_main(saved):
        return saved
    with ranks.agreed():
        probe = _Probe(recipe, policy, accelerator, rows, weights)
        limits = [probe.find(probe.rollout, probe.width), probe.find(probe.update, probe.update_width)]
    budget = TokenBudget(*(min(ranks.counts(tokens)) for tokens in limits))
    with ranks.agreed(), disk_faults_explained(folder):
        if accelerator.is_main_process:
            write_atomically(folder / FILE, json.dumps(asdict(budget)) + "\n")
    if accelerator.is_main_process:
        logger.warning(
            f"max_tokens_per_forward = auto: {budget.rollout} tokens in the rollout, {budget.update} in the update "
            f"(rows of {probe.width} tokens). {folder / FILE} keeps these numbers; remove it to measure again on other hardware."
        )
    return budget


def _saved(path: Path) -> TokenBudget | None:
    """Return the budget that an earlier probe saved; None if there is none."""
    if not path.exists():
        return None
    facts = read_json_object(path)
    if facts.keys() != {"rollout", "update"} or not all(
        isinstance(value, int) and value > 0 for value in facts.values()
    ):
        raise RunError(f"{path} is damaged: it must hold two numbers of tokens. Remove it to measure them again.")
    return TokenBudget(**facts)


def tokens_that_fit(measured: list[tuple[int, int]], free: float) -> int:
    """Return the number of tokens that need `free` bytes, extrapolated along the line through two
    measurements of (tokens, bytes).

    Example:
        >>> tokens_that_fit([(100, 1500), (200, 2500)], free=10_500)
        1000
    """
    (small, low), (large, high) = measured
    slope = max((high - low) / (large - small), 1e-9)
    return int((free - (low - slope * small)) / slope)


def first_that_fits(attempt: Callable[[int], object], tokens: int, width: int) -> int:
    """Return the number of tokens with which `attempt(rows)` does not run out of memory. This is
    `tokens`, or the first number that fits among ever smaller ones.

    Raises:
        torch.OutOfMemoryError: a single row of `width` tokens does not fit.
    """
    while True:
        try:
            attempt(max(1, tokens // width))
            return tokens
        except torch.OutOfMemoryError:
            if tokens <= width:
                raise
        # Only now is the error gone, whose traceback holds the tensors of the attempt.
        torch.cuda.empty_cache()
        tokens = max(width, int(tokens * SMALLER))


class _Probe:
    """Measures the memory of the widest rows of a run, with the sampler and the method of the run.

    The probe runs the policy without its wrapper, because ranks may try different sizes and must
    not wait for each other's backward pass.
    """

    def __init__(
        self,
        recipe: TrainRecipe,
        policy: TrainedPolicy,
        accelerator: Accelerator,
        rows: list[Row],
        weights: Callable[[], AbstractContextManager[Denoiser]] | None = None,
    ) -> None:
        self.recipe, self.policy, self.accelerator, self.weights = recipe, policy, accelerator, weights
        # The longest texts stand for the longest prompts: encoding thousands of rows would take
        # longer than the probe.
        longest = sorted((row["prompt"] for row in rows), key=lambda prompt: len(str(prompt)))[-8:]
        ids, mask = encode_batch(policy.tokenizer, longest, policy.denoiser.pad_id)
        self.prompt = longest[int(mask.sum(-1).argmax())]
        self.width = ids.shape[1] + recipe.sampler.max_completion_length
        self.completions = -(-recipe.num_prompts * recipe.num_generations // accelerator.num_processes)

    def find(self, run: Callable[[int], object], width: int) -> int:
        """Return the number of tokens that fit into one call of `run` with rows of `width` tokens, but
        at most one row for each completion of a training step."""
        device = self.accelerator.device
        try:
            # The first call allocates memory that stays, whatever its size, so it is not measured.
            run(1)
            measured = [(rows * width, self._peak(run, rows)) for rows in SIZES]
            tokens = tokens_that_fit(measured, self._usable_bytes())
            if tokens < width:
                raise torch.OutOfMemoryError
            tokens = min(tokens, self.completions * width)
            return first_that_fits(run, tokens, width) if device.type == "cuda" else tokens
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"max_tokens_per_forward = auto: rows of {width} tokens need more memory than the "
                f"{self._usable_bytes() / 2**30:.1f} GiB that are free. Shorten max_completion_length, or set "
                "gradient_checkpointing, lora or precision = bf16."
            ) from error

    def rollout(self, rows: int) -> Trajectory:
        """Denoise equal prompts in as few steps as the blocks allow; the first pass of a block
        computes the most logits."""
        sampler, denoiser = self.recipe.sampler, self.policy.denoiser
        # Neighbours in equal states would share their first pass, so they differ in one token.
        state = torch.full((rows, sampler.max_completion_length), denoiser.mask_id)
        special = {denoiser.mask_id, denoiser.eos_id, denoiser.pad_id}
        tokens = [token for token in range(len(special) + 2) if token not in special][:2]
        state[:, -1] = torch.tensor(tokens)[torch.arange(rows) % 2]
        return self._denoised(rows, sampler.max_completion_length // sampler.block, state.to(self.accelerator.device))

    @property
    def update_width(self) -> int:
        """Number of tokens of a row of the update."""
        return self._widest[1]

    def update(self, rows: int) -> None:
        """Run a forward and backward pass on copies of the widest row: the view that has the most
        targets or, in a block-causal model, the longest pack of views."""
        path, _ = self._planned
        row = self._widest[0]
        views = replace(row.take(torch.arange(len(row)).repeat(rows)), pack=None)
        if len(row) > 1:
            pack = torch.arange(rows, device=row.row.device).repeat_interleave(len(row))
            views = replace(views, pack=pack)
        passes = UpdatePasses(self.recipe)
        scoring = LogprobSettings.of(path, self.recipe.logprob_temperature)
        scores = view_logprobs(
            self.policy.denoiser,
            path,
            views,
            scoring,
            choice=self.recipe.method.needs().choice,
            distribution=passes.keeps_old or passes.keeps_reference,
            entropy=self.recipe.method.reads().entropy,
            trim=True,
            positions_at_once=positions_at_once(self.policy.denoiser),
        )
        self.accelerator.backward(scores.logprob.sum() * 0.0)
        for parameter in trainable(self.policy.denoiser):
            parameter.grad = master_of(parameter).grad = None

    @cached_property
    def _widest(self) -> tuple[Views, int]:
        """Return the views of the widest row of an update, and the number of its tokens."""
        path, views = self._planned
        if (packing := packing_of(self.policy.denoiser)) is None:
            return views.take(views.target.sum(-1).argmax().unsqueeze(0)), self.width
        pack, sizes = packing.packs(views, path, len(views))
        longest = max(range(len(sizes)), key=lambda i: sum(sizes[i]))
        return views.take((pack == longest).nonzero().squeeze(-1)), sum(sizes[longest])

    @cached_property
    def _planned(self) -> tuple[Trajectory, Views]:
        """Return two completions of the run's sampler, and the views that the method plans for
        them."""
        sampler = self.recipe.sampler
        # A step of an adaptive schedule may commit a whole block.
        num_blocks = sampler.max_completion_length // sampler.block
        path = self._denoised(2, num_blocks if sampler.is_adaptive else sampler.steps)
        rewards = {
            "one_step_reward": None if path.one_step_tokens is None else path.one_step_tokens[:, :, 0].float() * 0,
            "branch_reward": None if path.branch_tokens is None else path.branch_tokens[..., 0].float() * 0,
        }
        rollout = Rollout(path, 2, torch.arange(2.0, device=path.tokens.device), **rewards)
        return path, self.recipe.method.plan(rollout, torch.Generator().manual_seed(0))

    def _denoised(self, rows: int, steps: int, completion: Tensor | None = None) -> Trajectory:
        policy = Policy(self.policy.denoiser, self.policy.tokenizer)
        engine = LocalEngine(policy, BatchLimits(rows), self.weights)
        sampler = self.recipe.sampler.model_copy(update={"num_steps": steps, "schedule": "fixed"})
        with engine.session():
            return engine.rollout(
                [self.prompt] * rows,
                sampler,
                torch.arange(rows),
                needs=self.recipe.method.needs(),
                completion=completion,
            )

    def _peak(self, run: Callable[[int], object], rows: int) -> int:
        return peak_bytes(lambda: run(rows), self.policy.denoiser, device=self.accelerator.device)

    def _usable_bytes(self) -> float:
        # The optimizer has no state before the first update.
        weight_bytes = sum(master_of(p).nbytes for p in trainable(self.policy.denoiser))
        device = self.accelerator.device
        return SHARE * free_bytes(device) - state_bytes(weight_bytes, self.recipe.optim, device)

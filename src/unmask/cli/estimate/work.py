"""What a step of a recipe makes one process compute: how many forwards, of how many tokens, with the head at how many positions.

Nothing is tabulated by method: a rollout of the right shape is made up, and the method itself plans its views of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError
from unmask.core.records import Rollout, Trajectory, Views
from unmask.functional.noise import named_generator
from unmask.functional.schedule import tokens_at_step
from unmask.functional.selection import selected_path_steps
from unmask.recipes.schema import TrainRecipe
from unmask.sampling.orders import POSITION_LOGITS


@dataclass(frozen=True, slots=True)
class Pass:
    """One kind of forward in a step, on one process."""

    name: str
    forwards: int
    rows: int
    """Of the largest forward."""
    tokens: int
    """Through the trunk, in all."""
    head: int
    """Positions at which the head is applied, in all."""
    width: int
    """Positions of a row in the largest forward."""
    words: str
    """How the numbers come about."""
    backward: bool = False


@dataclass(frozen=True, slots=True)
class Work:
    """A step of one process."""

    completions: int
    prompt: int
    """P."""
    passes: tuple[Pass, ...]
    updates: int
    """Of the optimizer."""
    chunks: int
    """Forwards with backward of one update."""
    rewards: int
    """Completions that reward functions see, at most: equal texts of a row are scored once."""
    rollout: Rollout
    """The one that was made up."""
    views: Views
    """Of one plan."""

    def of(self, name: str) -> list[Pass]:
        """The passes whose name begins so."""
        return [p for p in self.passes if p.name.startswith(name)]


def work_of(recipe: TrainRecipe, prompt: int, processes: int = 1) -> Work:
    """The work of one process in a step, if no row ends before its last step.

    Args:
        recipe: the run's settings.
        prompt: P, tokens of a prompt.
        processes: that share the step's prompts.

    Raises:
        ConfigError: processes that cannot share the prompts.
    """
    if recipe.num_prompts % processes:
        raise ConfigError(
            f"num_prompts = {recipe.num_prompts} cannot be shared by {processes} processes: each owns whole groups. "
            f"Use a multiple of {processes}."
        )
    method, sampler = recipe.method, recipe.sampler
    count = recipe.num_prompts // processes * recipe.num_generations
    rollout = synthetic_rollout(recipe, count, prompt)
    views = method.plan(rollout, named_generator(0, "estimate"))
    needs = method.needs()
    length = prompt + sampler.max_completion_length
    passes = [_rollout_pass(recipe, rollout.trajectory, length)]
    if needs.branches and needs.branches.finish == "rollout":
        passes.append(_branch_pass(recipe, rollout.trajectory, length))
    single = recipe.num_iterations * recipe.num_minibatches == 1
    plans = recipe.num_iterations if method.fresh_views else 1
    wanted = views.hidden if needs.choice and sampler.order in POSITION_LOGITS else views.target
    size = rows_per_forward(recipe, length, recipe.views_per_forward)
    if not single:
        passes.append(_scores_pass("old policy", wanted, size, length, plans))
    if needs.reference != "none":
        passes.append(_scores_pass("reference", wanted, size, length, plans))
    updates = recipe.num_iterations * recipe.num_minibatches
    chunks = -(-max(1, len(views) // recipe.num_minibatches) // size)
    if not method.separable and chunks > 1:
        passes.append(_scores_pass("update, first of two passes", wanted, size, length, recipe.num_iterations))
    update = _scores_pass(
        "update", wanted, min(size, -(-len(views) // recipe.num_minibatches)), length, recipe.num_iterations
    )
    passes.append(
        Pass(
            "update",
            updates * chunks,
            update.rows,
            update.tokens,
            update.head,
            update.width,
            update.words,
            backward=True,
        )
    )
    path = rollout.trajectory
    extra = sum(
        t.numel() // t.shape[-1]
        for t in (path.one_step_tokens if needs.greedy else None, path.branch_tokens)
        if t is not None
    )
    return Work(count, prompt, tuple(passes), updates, chunks, count + extra, rollout, views)


def rows_per_forward(recipe: TrainRecipe, length: int, otherwise: int) -> int:
    """Rows of `length` tokens that one forward takes."""
    room = recipe.max_tokens_per_forward
    return max(1, room // length) if isinstance(room, int) else otherwise


def synthetic_rollout(recipe: TrainRecipe, count: int, prompt: int, sampler: SamplerConfig | None = None) -> Rollout:
    """A scored rollout of the recipe's shape: full completions, positions of each block in a random order."""
    sampler, needs = sampler or recipe.sampler, recipe.method.needs()
    generator = named_generator(0, "synthetic")
    length, steps = sampler.max_completion_length, sampler.steps
    when = torch.cat([_schedule(sampler, block, count, generator) for block in range(length // sampler.block)], dim=1)
    tokens = torch.full((count, length), 3)
    entropy = torch.rand(count, length, generator=generator)
    seed = torch.arange(count)
    kept = None
    if needs.greedy or needs.branches:
        kept = selected_path_steps(
            needs.selection, when, entropy, torch.zeros_like(tokens, dtype=torch.bool), seed, steps
        )
    num_slots, num_fills = 0 if kept is None else kept.shape[1], needs.branches.count if needs.branches else 0
    has_choice = sampler.order in POSITION_LOGITS
    path = Trajectory(
        prompt_ids=torch.full((count, prompt), 3),
        prompt_mask=torch.ones(count, prompt, dtype=torch.bool),
        tokens=tokens,
        unmask_step=when,
        logprob=-entropy,
        entropy=entropy,
        seed=seed,
        sampler=sampler,
        mask_id=0,
        eos_id=0,
        choice_rank=torch.zeros_like(when) if has_choice else None,
        choice_logprob=-entropy if has_choice else None,
        selected_step=None if kept is None else kept.int(),
        one_step_tokens=None if kept is None else torch.full((count, num_slots, length), 3, dtype=torch.int32),
        branch_tokens=torch.full((count, num_slots, num_fills, length), 3, dtype=torch.int32) if num_fills else None,
    )

    def rewards(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    return Rollout(
        path,
        recipe.num_generations,
        rewards(count),
        rewards(count, num_slots) if needs.greedy else None,
        rewards(count, num_slots, num_fills) if num_fills else None,
    )


def _schedule(sampler: SamplerConfig, block: int, count: int, generator: torch.Generator) -> Tensor:
    """Return the step at which each position of a block is committed, [count, block] int32."""
    steps = sampler.steps * sampler.block // sampler.max_completion_length
    edges = [block * steps + step for step, share in enumerate(_shares(sampler.block, steps)) for _ in range(share)]
    order = torch.rand(count, sampler.block, generator=generator).argsort(dim=1)
    return torch.tensor(edges, dtype=torch.int32)[order]


def _rollout_pass(recipe: TrainRecipe, path: Trajectory, length: int) -> Pass:
    sampler, needs = recipe.sampler, recipe.method.needs()
    count, steps = len(path), sampler.steps
    size = min(count, rows_per_forward(recipe, length, recipe.rollout_batch_size))
    batches, twice = -(-count // size), 2 if sampler.guidance else 1
    keeps = bool(needs.greedy or needs.branches)
    head = sum(asked_at(sampler, step, keeps) for step in range(steps))
    where = "still masked" if keeps else "still masked in the active block"
    words = f"{count} completions x {steps} steps x {length} tokens" + (" x 2 (guidance)" if twice == 2 else "")
    return Pass(
        "rollout",
        batches * steps * twice,
        size,
        count * steps * length * twice,
        count * head * twice,
        asked_at(sampler, 0, keeps),
        f"{words}; head where {where}: {head / steps:.0f} positions a row on average",
    )


def asked_at(sampler: SamplerConfig, step: int, keeps: bool) -> int:
    """Positions of a row whose logits are asked for at a step: masked ones, of the active block or, for completions in one step,
    of those after it too."""
    per_block = sampler.steps * sampler.block // sampler.max_completion_length
    block, within = divmod(step, per_block)
    hidden = sampler.block - sum(_shares(sampler.block, per_block)[:within])
    later = sampler.max_completion_length - (block + 1) * sampler.block if keeps else 0
    return hidden + later


@cache
def _shares(positions: int, steps: int) -> tuple[int, ...]:
    """Return the number of positions that each denoising step of a block commits."""
    shares: list[int] = []
    for step in range(steps):
        shares.append(int(tokens_at_step(torch.tensor([positions - sum(shares)]), steps - step)))
    return tuple(shares)


def _branch_pass(recipe: TrainRecipe, path: Trajectory, length: int) -> Pass:
    """Fills that are denoised on: each from its step to the last."""
    assert path.selected_step is not None
    assert recipe.method.needs().branches
    num = recipe.method.needs().branches.count  # type: ignore[union-attr]
    left = [recipe.sampler.steps - 1 - int(k) for k in path.selected_step.flatten() if k >= 0]
    steps, rows = sum(left) * num, len(left) * num
    size = min(rows, rows_per_forward(recipe, length, recipe.rollout_batch_size))
    return Pass(
        "rollout, branches",
        -(-rows // max(1, size)) * recipe.sampler.steps,
        size,
        steps * length,
        steps * recipe.sampler.block // 2,
        recipe.sampler.block,
        f"{rows} branches x {steps / max(1, rows):.0f} steps left on average x {length} tokens",
    )


def _scores_pass(name: str, wanted: Tensor, size: int, length: int, times: int) -> Pass:
    counts = wanted.sum(-1).tolist()
    chunks = [counts[start : start + size] for start in range(0, len(counts), size)]
    # Rows of a forward are as wide as the fullest.
    head = sum(len(chunk) * max(1, *chunk) if len(chunk) > 1 else max(1, chunk[0]) for chunk in chunks)
    return Pass(
        name,
        times * len(chunks),
        min(size, len(counts)),
        times * len(counts) * length,
        times * head,
        max([1, *counts]),
        f"{len(counts)} views x {length} tokens" + (f" x {times} iterations" if times > 1 else ""),
    )

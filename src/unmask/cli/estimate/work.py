"""Work of one training step: the number of forward passes, the number of their tokens, and the
number of positions that get logits.

The run's own code makes the counts. The rollout engine and the collector run with a stand-in
denoiser, which draws random logits and records the size of every forward pass. The method plans its
views (masked versions of completions) of that rollout, and `UpdatePasses` divides them as an update
does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch

from unmask.cli.estimate.length import num_evaluations, num_steps
from unmask.cli.estimate.limits import Limiting, cost_of_limits, limited_in_rollout, limited_share
from unmask.cli.estimate.stand_in import Forward, recording_engine, stand_in_reward
from unmask.core.config import SamplerConfig
from unmask.core.records import Rollout, Trajectory, Views
from unmask.functional.noise import named_generator
from unmask.recipes.schema import TrainRecipe
from unmask.rewards.scorer import Scorer
from unmask.sampling.engine import BatchLimits, default_batch_size
from unmask.sampling.noisy_copies import PackedViews, Packing
from unmask.sampling.orders import POSITION_LOGITS
from unmask.trainer.behaviour import path_views
from unmask.trainer.collect import Collector, check_sharing
from unmask.trainer.critic import state_views
from unmask.trainer.metrics import Tally
from unmask.trainer.model_limits import logits_at_once
from unmask.trainer.passes import UpdatePasses
from unmask.trainer.view_batches import ViewBatches


@dataclass(frozen=True, slots=True)
class Pass:
    """All forward passes of one kind in a training step, on one rank."""

    name: str
    """Name of the kind, such as "rollout" or "reference"."""
    forwards: int
    """Number of forward passes."""
    rows: int
    """Number of sequences in the largest forward pass."""
    tokens: int
    """Number of tokens in all forward passes."""
    columns: int
    """Number of columns that run through the whole last layer in all forward passes."""
    head: int
    """Number of positions that get logits in all forward passes."""
    width: int
    """Largest number of positions of a sequence that get logits in one forward pass."""
    read: int
    """Largest number of positions of all sequences that get logits in one forward pass."""
    attended: float
    """Mean number of positions that a token attends to."""
    words: str
    """Explanation of the numbers for a reader."""
    backward: bool = False
    """True if each forward pass has a backward pass."""
    has_adapters: bool = False
    """True if adapters run beside the weights that they adapt."""
    is_wide: bool = False
    """True if the forward passes return the logits of as many positions of every sequence as the
    fullest one needs, and not only what is read of them."""
    length: int = 0
    """Number of tokens of a sequence that run in the largest forward pass."""
    read_again: int = 0
    """Number of positions whose logits the backward passes compute again, because they are too many
    to keep."""
    limited: int = 0
    """Number of positions whose logits top-k and top-p limit."""

    @classmethod
    def of(
        cls,
        name: str,
        forwards: list[Forward],
        words: str,
        *,
        backward: bool = False,
        has_adapters: bool = False,
        is_wide: bool = False,
        at_once: int | None = None,
    ) -> Pass:
        """Add up forward passes, in which at most `at_once` positions keep their logits."""
        tokens = sum(f.rows * f.length for f in forwards)
        largest = max(forwards, key=lambda f: f.rows * f.attended)
        return cls(
            name=name,
            forwards=len(forwards),
            rows=largest.rows,
            tokens=tokens,
            columns=sum(f.rows * min(f.width, f.length) for f in forwards),
            head=sum(f.read for f in forwards),
            width=max(f.width for f in forwards),
            read=max(f.read for f in forwards),
            length=largest.length,
            attended=sum(f.rows * f.length * f.attended for f in forwards) / tokens,
            words=words,
            backward=backward,
            has_adapters=has_adapters,
            is_wide=is_wide,
            read_again=sum(f.read for f in forwards if at_once is not None and f.read > at_once),
        )


@dataclass(frozen=True, slots=True)
class Work:
    """Work of one training step on one rank."""

    completions: int
    """Number of completions that the rank samples."""
    prompt: int
    """P, the number of tokens in a prompt."""
    passes: tuple[Pass, ...]
    """Every kind of forward pass of a training step."""
    evaluation: Pass
    """Forward passes of one evaluation at all temperatures."""
    steps: int
    """Number of training steps of the run."""
    evaluations: int
    """Number of evaluations in the run."""
    updates: int
    """Number of optimizer steps."""
    chunks: int
    """Largest number of forward passes with a backward pass that one update makes."""
    limiting: Limiting
    """Cost of limiting the logits of one position by top-k and top-p."""
    rewards: int
    """Maximum number of completions that the reward functions score. The actual number is smaller
    if texts repeat, because equal texts are scored once."""
    rollout: Rollout
    """The rollout of the stand-in denoiser."""
    views: Views
    """The views of one plan."""

    def of(self, name: str) -> list[Pass]:
        """Return the passes whose name begins with `name`."""
        return [p for p in self.passes if p.name.startswith(name)]


@dataclass(frozen=True, slots=True)
class Setup:
    """Facts about the model and the device that change how work is divided into forward passes."""

    vocab_size: int = 2**15
    """Size V of the vocabulary."""
    width: int = 64
    """Size of the hidden states."""
    block_length: int | None = None
    """Block length of a block-causal model, which caches finished blocks."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Type of the device."""


def work_of(recipe: TrainRecipe, prompt: int, processes: int = 1, setup: Setup | None = None) -> Work:
    """Count the work of one rank in a training step in which no completion ends early and no view
    is left out for its advantage of 0.

    Args:
        recipe: settings of the run.
        prompt: P, the number of tokens in a prompt.
        processes: number of ranks that share the completions of a step; the work is that of the
            rank with the most completions.
        setup: model and device; default a small model on a CPU.

    Raises:
        ConfigError: the ranks cannot share the completions.
    """
    check_sharing(recipe, Scorer({"stand-in": stand_in_reward}), processes)
    setup = setup or Setup()
    rollout, rollout_passes = _rollout(recipe, prompt, processes, setup.block_length)
    views = recipe.method.plan(rollout, named_generator(0, "estimate"))
    max_tokens = recipe.max_tokens_per_forward
    passes = UpdatePasses(
        recipe,
        max_tokens if isinstance(max_tokens, int) else None,
        setup.width if setup.device == "cpu" else None,
        None if setup.block_length is None else Packing(setup.block_length, setup.width),
    )
    by_completion = passes.by_completion(views, rollout)
    updates = [
        passes.batches(views.take(torch.isin(views.row, rows)), rollout, by_completion=by_completion)
        for _ in range(recipe.num_iterations)
        for rows in passes.minibatches(rollout, named_generator(0, "minibatches"))
    ]
    at_once = max(1, logits_at_once(setup.device) // setup.vocab_size)
    rollout_passes += _critic_passes(passes, rollout)
    of_views = _view_passes(passes, views, rollout, updates, at_once)
    share = limited_share(views, rollout.trajectory, recipe.logprob_temperature)
    all_passes = (*rollout_passes, *(replace(each, limited=round(share * each.head)) for each in of_views))
    cost = processes * sum(each.tokens * (3 if each.backward else 1) for each in all_passes)
    return Work(
        completions=len(rollout.trajectory),
        prompt=prompt,
        passes=all_passes,
        evaluation=_evaluation(recipe, prompt, processes, setup),
        steps=num_steps(recipe, cost),
        evaluations=num_evaluations(recipe, cost),
        updates=len(updates),
        chunks=max(len(batches) for batches in updates),
        limiting=cost_of_limits(recipe.sampler, setup.vocab_size, setup.device),
        rewards=sum(reward.numel() for reward in rollout.rewards().values()),
        rollout=rollout,
        views=views,
    )


def _rollout(recipe: TrainRecipe, prompt: int, processes: int, block_length: int | None) -> tuple[Rollout, list[Pass]]:
    """Collect the largest rollout of one rank from the stand-in, and return it with its forward
    passes."""
    max_tokens = recipe.max_tokens_per_forward
    limits = BatchLimits(recipe.rollout_batch_size, max_tokens if isinstance(max_tokens, int) else None)
    engine, denoiser = recording_engine(limits, block_length)
    # Completions of equal prompts may share forward passes, so the prompts differ.
    rows = [{"prompt": f"{i:0{prompt}d}"[-prompt:]} for i in range(recipe.num_prompts)]
    own = slice(-(-len(rows) * recipe.num_generations // processes))
    scorer = Scorer({"stand-in": stand_in_reward})
    rollout = Collector(engine, scorer, recipe).collect(rows, 0, own, Tally())
    if len(rollout.trajectory) % rollout.group_size:
        # The rank owns a part of a group, and what is counted here does not depend on groups.
        rollout = replace(rollout, group_size=1)
    path, sampler, needs = rollout.trajectory, recipe.sampler, recipe.method.needs()
    masked = "masked" if needs.greedy or needs.branches else "masked in the active block"
    words = f"{len(path)} completions x {_per_completion(denoiser.calls[0], len(path), sampler)}; "
    num_sequences = sum(f.rows for f in denoiser.calls[0])
    mean_head = sum(f.read for f in denoiser.calls[0]) / num_sequences
    words += f"head at the positions still {masked}: {mean_head:.0f} of a completion on average"
    has_adapters = recipe.lora is not None and not merges(recipe)
    sampled = Pass.of("rollout", denoiser.calls[0], words, has_adapters=has_adapters)
    passes = [replace(sampled, limited=limited_in_rollout(path))]
    if path.branch_tokens is not None and len(denoiser.calls) > 1:
        branches = int((path.selected_steps >= 0).sum()) * path.branch_tokens.shape[2]
        steps = sum(f.rows for f in denoiser.calls[1]) / branches
        words = f"{branches} branches x {steps:.0f} steps on average"
        passes.append(Pass.of("rollout, branches", denoiser.calls[1], words, has_adapters=has_adapters))
    if needs.greedy and needs.value_steps:
        states = int((path.selected_steps >= 0).sum())
        words = f"{states} states x {sum(f.rows for f in denoiser.calls[1]) / states:.4g} steps on average"
        passes.append(Pass.of("rollout, values", denoiser.calls[1], words, has_adapters=has_adapters))
    return rollout, passes


def _per_completion(forwards: list[Forward], num: int, sampler: SamplerConfig) -> str:
    """Return the tokens of the forward passes of one completion, as a product."""
    guided = " x 2 (guidance)" if sampler.guidance else ""
    sequences = num * sampler.steps * (2 if sampler.guidance else 1)
    tokens = sum(f.rows * f.length for f in forwards) / sequences
    on_average = "" if tokens == forwards[0].length else " on average"
    return f"{sampler.steps} steps x {tokens:.4g} tokens{on_average}{guided}"


def _evaluation(recipe: TrainRecipe, prompt: int, processes: int, setup: Setup) -> Pass:
    """Count the forward passes of one rank in an evaluation at all temperatures."""
    setting, max_tokens = recipe.evaluation, recipe.max_tokens_per_forward
    sampler = recipe.evaluation_sampler(0.0)
    num_rows, width = -(-setting.num_rows // processes), prompt + sampler.max_completion_length
    batch = setting.batch_size or default_batch_size(width, sampler.block, setup.vocab_size, setup.device)
    if isinstance(max_tokens, int):
        batch = max(1, max_tokens // width)
    engine, denoiser = recording_engine(BatchLimits(1), setup.block_length)
    # Every completion takes the same forward passes, since none ends early.
    engine.rollout(["0" * prompt], sampler, torch.zeros(1, dtype=torch.long))
    one = denoiser.calls[0]
    sizes = [min(batch, num_rows - start) for start in range(0, num_rows, batch)]
    forwards = [f._replace(rows=size, read=size * f.read) for _ in setting.temperatures for size in sizes for f in one]
    times = f" x {len(setting.temperatures)} temperatures" if len(setting.temperatures) > 1 else ""
    words = f"{num_rows} completions x {_per_completion(one, 1, sampler)}{times}"
    return Pass.of("evaluation", forwards, words, has_adapters=recipe.lora is not None and not merges(recipe))


def merges(recipe: TrainRecipe) -> bool:
    """Return True if rollouts and evaluations run weights with the adapters added, as
    `RolloutWeights` does."""
    return recipe.lora is not None and recipe.rollout_weights == "merged" and recipe.lora.quantize == "none"


def scores_choice(recipe: TrainRecipe) -> bool:
    """Return True if the updates compute the probability of the position choice, which needs the
    logits of all masked positions."""
    return recipe.method.needs().choice and recipe.sampler.order in POSITION_LOGITS


def _critic_passes(passes: UpdatePasses, rollout: Rollout) -> list[Pass]:
    """Return the passes over the states that a critic values, which read no logits; empty without a
    critic."""
    recipe, path = passes.recipe, rollout.trajectory
    if not recipe.method.needs().critic:
        return []
    views = state_views(recipe.method, rollout)
    size, length = path.tokens.shape[1], path.prompt_ids.shape[1] + path.tokens.shape[1]
    batches = replace(passes, packing=None).batches(views, rollout)
    forwards = [Forward(len(index), length, size, 0, length) for index in batches.indices]
    words = f"{len(views)} states x {length} tokens"
    return [Pass.of("critic", forwards, words, has_adapters=recipe.lora is not None)]


def _view_passes(
    passes: UpdatePasses, views: Views, rollout: Rollout, updates: list[ViewBatches], at_once: int
) -> Iterator[Pass]:
    """Yield the passes over the views of all plans and updates.

    The head runs at the targets alone. With guidance, and for whole distributions, it runs at as
    many positions of each row as the fullest row has. A row shows one view or, in a block-causal
    model, a pack of them.
    """
    recipe, path = passes.recipe, rollout.trajectory
    is_guided = bool(recipe.sampler.guidance)

    def forwards(batches: ViewBatches, *, is_wide: bool = is_guided) -> list[Forward]:
        return [_forward_of(passes, part, path, is_wide=is_wide) for _, part in batches]

    def words(views: Views, scored: list[Forward], times: int, unit: str, name: str = "views") -> str:
        rows, tokens = sum(f.rows for f in scored), sum(f.rows * f.length for f in scored)
        packs = f" in {rows // times} rows" if rows != times * len(views) else ""
        told = f"{len(views)} {name}{packs} x {tokens / rows:.4g} tokens"
        return told + (f" x {times} {unit}" if times > 1 else "")

    has_adapters = recipe.lora is not None
    if passes.scores_old:
        is_wide = is_guided or passes.keeps_old
        plan = passes.num_plans * forwards(passes.batches(views, rollout), is_wide=is_wide)
        told = words(views, plan, passes.num_plans, "plans")
        yield Pass.of("old policy", plan, told, has_adapters=has_adapters, is_wide=is_wide)
    plan = passes.num_plans * forwards(passes.batches(views, rollout))
    told = words(views, plan, passes.num_plans, "plans")
    if passes.rescored == "views":
        yield Pass.of("behaviour ratio", plan, told, has_adapters=has_adapters)
    if passes.rescored == "path":
        states = path_views(path, torch.arange(len(path)))
        scored = forwards(passes.batches(states, rollout))
        of_path = words(states, scored, 1, "", "states of the path")
        yield Pass.of("behaviour ratio", scored, of_path, has_adapters=has_adapters)
    if passes.scores_reference:
        # The reference policy is the model without adapters, unless it moves.
        is_second = has_adapters and recipe.sync_ref_model
        is_wide = is_guided or passes.keeps_reference
        plan = passes.num_plans * forwards(passes.batches(views, rollout), is_wide=is_wide)
        yield Pass.of("reference", plan, told, has_adapters=is_second, is_wide=is_wide)
    is_wide = is_guided or passes.keeps_old or passes.keeps_reference
    every = [f for batches in updates for f in forwards(batches, is_wide=is_wide)]
    of_updates = words(views, every, recipe.num_iterations, "iterations")
    first = [f for batches in updates if passes.has_first_pass(len(batches), views, rollout) for f in forwards(batches)]
    if first:
        yield Pass.of("update, first of two passes", first, of_updates, has_adapters=has_adapters)
    kept = None if is_wide else at_once
    options = {"backward": True, "has_adapters": has_adapters, "is_wide": is_wide}
    yield Pass.of("update", every, of_updates, **options, at_once=kept)


def _forward_of(passes: UpdatePasses, views: Views, path: Trajectory, *, is_wide: bool) -> Forward:
    """Return the size of a forward pass over one batch of views; with `is_wide`, every row gets the
    logits of as many positions as the fullest row."""
    is_read = views.hidden if scores_choice(passes.recipe) else views.target
    prompt = path.prompt_ids.shape[1]
    if passes.packing is None:
        count, length = is_read.sum(-1), prompt + path.tokens.shape[1]
    else:
        packed = PackedViews.of(views, path, passes.packing.block_length)
        of_view = (is_read & (packed.column >= 0)).sum(-1)
        count = torch.zeros_like(packed.first).scatter_add(0, packed.row, of_view)
        length = prompt + packed.tokens.shape[1]
    width = max(1, int(count.max()))
    return Forward(len(count), length, width, len(count) * width if is_wide else int(count.sum()), length)

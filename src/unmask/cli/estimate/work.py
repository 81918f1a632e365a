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
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from unmask.core.errors import ConfigError
from unmask.core.records import Rollout, Trajectory, Views
from unmask.functional.noise import named_generator
from unmask.models import Policy, char_tokenizer
from unmask.recipes.schema import TrainRecipe
from unmask.rewards import per_completion
from unmask.rewards.scorer import Scorer
from unmask.sampling.engine import BatchLimits, LocalEngine
from unmask.sampling.orders import POSITION_LOGITS
from unmask.trainer.behaviour import path_views
from unmask.trainer.collect import Collector
from unmask.trainer.metrics import Tally
from unmask.trainer.passes import UpdatePasses
from unmask.trainer.view_batches import ViewBatches


class Forward(NamedTuple):
    """Size of one forward pass."""

    rows: int
    """Number of sequences in the forward pass."""
    length: int
    """Number of tokens in each sequence."""
    width: int
    """Number of positions of each sequence that get logits."""


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
    head: int
    """Number of positions that get logits in all forward passes."""
    width: int
    """Largest number of positions of a sequence that get logits in one forward pass."""
    words: str
    """Explanation of the numbers for a reader."""
    backward: bool = False
    """True if each forward pass has a backward pass."""

    @classmethod
    def of(cls, name: str, forwards: list[Forward], words: str, *, backward: bool = False) -> Pass:
        """Add up forward passes."""
        return cls(
            name=name,
            forwards=len(forwards),
            rows=max(f.rows for f in forwards),
            tokens=sum(f.rows * f.length for f in forwards),
            head=sum(f.rows * f.width for f in forwards),
            width=max(f.width for f in forwards),
            words=words,
            backward=backward,
        )


@dataclass(frozen=True, slots=True)
class Work:
    """Work of one training step on one rank."""

    completions: int
    """Number of completions that the rank samples."""
    prompt: int
    """P, the number of tokens in a prompt."""
    passes: tuple[Pass, ...]
    """Every kind of forward pass."""
    updates: int
    """Number of optimizer steps."""
    chunks: int
    """Largest number of forward passes with a backward pass that one update makes."""
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


def work_of(recipe: TrainRecipe, prompt: int, processes: int = 1, width: int | None = None) -> Work:
    """Count the work of one rank in a training step in which no completion ends early and no view
    is left out for its advantage of 0.

    Args:
        recipe: settings of the run.
        prompt: P, the number of tokens in a prompt.
        processes: number of ranks that share the prompts of a step.
        width: size of the hidden states of a model on a CPU; None on other devices.

    Raises:
        ConfigError: the ranks cannot share the prompts equally.
    """
    if recipe.num_prompts % processes:
        raise ConfigError(
            f"num_prompts = {recipe.num_prompts} cannot be shared by {processes} processes: each owns whole groups. "
            f"Use a multiple of {processes}."
        )
    rollout, rollout_passes = _rollout(recipe, prompt, recipe.num_prompts // processes)
    views = recipe.method.plan(rollout, named_generator(0, "estimate"))
    max_tokens = recipe.max_tokens_per_forward
    passes = UpdatePasses(recipe, max_tokens if isinstance(max_tokens, int) else None, width)
    by_completion = passes.by_completion(views, rollout)
    updates = [
        passes.batches(views.take(torch.isin(views.row, rows)), rollout, by_completion=by_completion)
        for _ in range(recipe.num_iterations)
        for rows in passes.minibatches(rollout, named_generator(0, "minibatches"))
    ]
    return Work(
        completions=len(rollout.trajectory),
        prompt=prompt,
        passes=(*rollout_passes, *_view_passes(passes, views, rollout, updates)),
        updates=len(updates),
        chunks=max(len(batches) for batches in updates),
        rewards=sum(reward.numel() for reward in rollout.rewards().values()),
        rollout=rollout,
        views=views,
    )


class _StandIn(nn.Module):
    """A denoiser that draws random logits, never predicts EOS, and records its forward passes."""

    pad_id, mask_id, eos_id = 0, 1, 2

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size, self.generator = vocab_size, named_generator(0, "stand-in")
        self.device_of_inputs = nn.Parameter(torch.zeros(1))
        self.backbone = SimpleNamespace(config=None)
        self.calls: list[list[Forward]] = []

    def forward(self, ids: Tensor, _attention_mask: Tensor | None, positions: Tensor) -> Tensor:
        """Return random logits; see `DenoiserLike`."""
        self.calls[-1].append(Forward(ids.shape[0], ids.shape[1], positions.shape[1]))
        logits = torch.rand(*positions.shape, self.vocab_size, generator=self.generator)
        logits[..., [self.pad_id, self.eos_id]] = -torch.inf
        return logits


class _RecordingEngine(LocalEngine):
    """An engine that keeps the forward passes of each of its calls separately."""

    def rollout(self, *args: Any, **options: Any) -> Trajectory:
        """Denoise with the stand-in; see `RolloutEngine.rollout`."""
        cast("_StandIn", self.policy.denoiser).calls.append([])
        return super().rollout(*args, **options)


@per_completion
def _stand_in_reward(completions: list[str], **_: Any) -> list[float]:
    return [float(text.count("1")) for text in completions]


def _rollout(recipe: TrainRecipe, prompt: int, num_prompts: int) -> tuple[Rollout, list[Pass]]:
    """Collect a rollout of one rank from the stand-in, and return it with its forward passes."""
    tokenizer, max_tokens = char_tokenizer("0123456789"), recipe.max_tokens_per_forward
    denoiser = _StandIn(len(tokenizer))
    limits = BatchLimits(recipe.rollout_batch_size, max_tokens if isinstance(max_tokens, int) else None)
    engine = _RecordingEngine(Policy(denoiser, tokenizer), limits)  # type: ignore[arg-type]
    rows = [{"prompt": "0" * prompt}] * num_prompts
    scorer = Scorer({"stand-in": _stand_in_reward})
    rollout = Collector(engine, scorer, recipe).collect(rows, 0, slice(None), Tally())
    path, sampler, needs = rollout.trajectory, recipe.sampler, recipe.method.needs()
    length, steps = prompt + sampler.max_completion_length, sampler.steps
    main = Pass.of("rollout", denoiser.calls[0], "")
    guided = " x 2 (guidance)" if sampler.guidance else ""
    masked = "masked" if needs.greedy or needs.branches else "masked in the active block"
    mean_head = main.head * length / main.tokens
    words = f"{len(path)} completions x {steps} steps x {length} tokens{guided}; "
    words += f"head at the positions still {masked}: {mean_head:.0f} of a completion on average"
    passes = [replace(main, words=words)]
    if path.branch_tokens is not None and len(denoiser.calls) > 1:
        branches = int((path.selected_steps >= 0).sum()) * path.branch_tokens.shape[2]
        branched = Pass.of("rollout, branches", denoiser.calls[1], "")
        words = f"{branches} branches x {branched.tokens / length / branches:.0f} steps on average"
        passes.append(replace(branched, words=words))
    return rollout, passes


def _view_passes(passes: UpdatePasses, views: Views, rollout: Rollout, updates: list[ViewBatches]) -> Iterator[Pass]:
    """Yield the passes over the views of all plans and updates."""
    recipe, path = passes.recipe, rollout.trajectory
    length = path.prompt_ids.shape[1] + path.tokens.shape[1]
    scores_choice = recipe.method.needs().choice and recipe.sampler.order in POSITION_LOGITS

    def forwards(batches: ViewBatches) -> list[Forward]:
        parts = [part for _, part in batches]
        widths = [int((part.hidden if scores_choice else part.target).sum(-1).max()) for part in parts]
        return [Forward(len(part), length, max(1, width)) for part, width in zip(parts, widths, strict=True)]

    def words(times: int, unit: str) -> str:
        return f"{len(views)} views x {length} tokens" + (f" x {times} {unit}" if times > 1 else "")

    plan = passes.num_plans * forwards(passes.batches(views, rollout))
    if passes.scores_old:
        yield Pass.of("old policy", plan, words(passes.num_plans, "plans"))
    if passes.rescored == "views":
        yield Pass.of("behaviour ratio", plan, words(passes.num_plans, "plans"))
    if passes.rescored == "path":
        states = path_views(path, torch.arange(len(path)))
        scored = forwards(passes.batches(states, rollout))
        yield Pass.of("behaviour ratio", scored, f"{len(states)} states of the path x {length} tokens")
    if passes.scores_reference:
        yield Pass.of("reference", plan, words(passes.num_plans, "plans"))
    of_updates = words(recipe.num_iterations, "iterations")
    first = [f for batches in updates if passes.has_first_pass(len(batches), views, rollout) for f in forwards(batches)]
    if first:
        yield Pass.of("update, first of two passes", first, of_updates)
    yield Pass.of("update", [f for batches in updates for f in forwards(batches)], of_updates, backward=True)

"""Floating-point operations a second, as the engine reaches them here: a few of a recipe's own forwards, timed.

The model has random weights and, where all of them do not fit into memory, fewer layers; rows, lengths, vocabulary and precision
are the recipe's. So the rate holds what a formula leaves out: sampling, softmaxes, memory traffic, Python.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from unmask.cli.estimate.flops import Costs, costs_of
from unmask.cli.estimate.shapes import build
from unmask.cli.estimate.work import Pass, Work, asked_at, synthetic_rollout
from unmask.recipes.schema import TrainRecipe
from unmask.sampling import LogprobSettings, denoise, view_logprobs
from unmask.trainer.optimizer import make_optimizer, trainable
from unmask.trainer.peak import free_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True, slots=True)
class Rates:
    """Operations a second of each kind of work, and seconds of an optimizer step."""

    rollout: float
    scores: float
    update: float
    optimizer: float
    words: str


def measure(
    recipe: TrainRecipe,
    config: PreTrainedConfig,
    work: Work,
    *,
    clock: Callable[[], float] = time.perf_counter,
    repeats: int = 2,
) -> Rates:
    """Time a rollout of one step a block, a pass and a backward of one forward each, and an optimizer step.

    Args:
        recipe: the run's settings.
        config: of its model.
        work: of one process.
        clock: seconds; `time.process_time` on a machine that others use.
        repeats: of which the fastest counts.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    layers = config.num_hidden_layers
    size = 2 if recipe.dtype == "bfloat16" else 4
    embeddings = 2 * config.vocab_size * config.hidden_size
    per_layer = 12 * config.hidden_size**2
    # Weights, gradients and two moments, in half of what is free.
    room = int((free_bytes(device) / 8 / size - embeddings) // per_layer)
    built = max(1, min(layers, room))
    denoiser = build(config, recipe, built).to(device)
    length = work.prompt + recipe.sampler.max_completion_length
    costs = costs_of(denoiser, _shallow(config, built), length, built, recipe.gradient_checkpointing)
    by_name = {p.name: p for p in work.passes}
    update = by_name["update"]
    path = work.rollout.trajectory.to(device)
    part = work.views.take(slice(0, update.rows))
    scoring = LogprobSettings.of(path, recipe.logprob_temperature)
    optimizer = make_optimizer(trainable(denoiser), recipe.optim)

    def score() -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.mixed_precision == "bf16"):
            return view_logprobs(denoiser, path, part, scoring).logprob

    def pass_only() -> None:
        with torch.no_grad():
            score()

    def learn() -> None:
        score().sum().backward()

    def timed(function: Callable[[], object]) -> float:
        function()
        return min(_seconds(function, clock, device) for _ in range(repeats))

    sample, flops = _sample(recipe, work, denoiser, by_name["rollout"].rows, costs, device)
    one = Pass(
        "one",
        1,
        len(part),
        len(part) * length,
        len(part) * max(1, int(part.target.sum(-1).max())),
        0,
        "",
        backward=True,
    )
    return Rates(
        rollout=flops / timed(sample),
        scores=costs.forward(one) / timed(pass_only),
        update=costs.total(one) / timed(learn),
        optimizer=timed(optimizer.step) * layers / built,
        words=f"measured on {_name(device)}, {built} of {layers} layers, {torch.get_num_threads()} threads",
    )


def _sample(
    recipe: TrainRecipe, work: Work, denoiser: torch.nn.Module, rows: int, costs: Costs, device: torch.device
) -> tuple[Callable[[], object], int]:
    """A rollout of half-masked completions in one step a block, which asks for as many logits as a step does on average."""
    sampler = recipe.sampler
    blocks = sampler.max_completion_length // sampler.block
    short = sampler.model_copy(update={"num_steps": blocks})
    needs = recipe.method.needs()
    path = synthetic_rollout(recipe, rows, work.prompt).trajectory.to(device)
    completion = path.tokens.clone()
    completion[:, ::2] = 0
    keeps = bool(needs.greedy or needs.branches)
    head = sum(asked_at(short, block, keeps) for block in range(blocks)) // 2
    length = work.prompt + sampler.max_completion_length
    twice = 2 if sampler.guidance else 1
    made = Pass("rollout", blocks, rows, twice * rows * blocks * length, twice * rows * head, 0, "")
    temperature = None if recipe.logprob_temperature == "sampling" else recipe.logprob_temperature

    def run() -> object:
        return denoise(
            denoiser,  # type: ignore[arg-type]
            path.prompt_ids,
            path.prompt_mask,
            short,
            path.seed,
            completion=completion,
            needs=needs,
            entropy_temperature=temperature,
        )

    return run, costs.forward(made)


def _seconds(function: Callable[[], object], clock: Callable[[], float], device: torch.device) -> float:
    started = clock()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - started


def _shallow(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    import copy

    shallow = copy.deepcopy(config)
    shallow.num_hidden_layers = layers
    if getattr(shallow, "layer_types", None):
        shallow.layer_types = shallow.layer_types[:layers]
    return shallow


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "this CPU"

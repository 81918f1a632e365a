"""Estimate of a recipe's cost before a run: number of parameters, memory by part, time of a
training step, and GPU-hours and price of the whole run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from unmask.cli.estimate.flops import Costs, costs_of
from unmask.cli.estimate.memory import PRESETS, Memory, memory_of
from unmask.cli.estimate.shapes import build_fake, config_of, prompt_tokens
from unmask.cli.estimate.time import Durations, Rates, durations_of
from unmask.cli.estimate.work import Setup, Work, work_of
from unmask.core.errors import ConfigError, unknown_name
from unmask.recipes.schema import TrainRecipe

__all__ = ["StepEstimate", "estimate"]


@dataclass(frozen=True, slots=True)
class StepEstimate:
    """Estimated cost of a training step and of a run, made without running it. All numbers are for
    one rank, except `gpu_hours`."""

    model: str
    """Source of the model's shape."""
    prompt: str
    """Source of the prompt length."""
    processes: int
    """Number of ranks."""
    preset: str
    """Name of the way in which the ranks share the model."""
    work: Work
    """Forward passes of the training step."""
    costs: Costs
    """Floating-point operations of the model."""
    memory: Memory
    """Memory by part."""
    durations: Durations | None
    """Time of the run; None if the rates are unknown."""
    rates: Rates | None
    """What a rank sustains; None if unknown."""
    price: float | None
    """Price of an hour of one GPU; None if unknown."""
    schedule: str
    """Schedule of the rollouts. An adaptive one is priced at its upper limit."""

    @property
    def gpu_hours(self) -> float | None:
        """Hours of all ranks together in the whole run; None if the rates are unknown."""
        return self.durations.run * self.processes / 3600 if self.durations else None

    def summary(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        times, hours = self.durations, self.gpu_hours
        return {
            "model": self.model,
            "processes": self.processes,
            "preset": self.preset,
            "parameters": self.memory.parameters,
            "trained": self.memory.trained,
            "used_by_a_token": self.costs.used,
            "completions": self.work.completions,
            "schedule": self.schedule,
            "prompt_tokens": self.work.prompt,
            "memory": {line.name: line.bytes for line in self.memory.resident},
            "peaks": {line.name: line.bytes for line in self.memory.peaks},
            "total_bytes": self.memory.total,
            "flops": {p.name: self.costs.total(p) for p in self.work.passes},
            "passes": [asdict(p) for p in self.work.passes],
            "evaluation": asdict(self.work.evaluation) | {"times": self.work.evaluations},
            "seconds": times.passes | {"step": times.step, "evaluation": times.evaluation, "run": times.run}
            if times
            else None,
            "gpu_hours": hours,
            "cost": hours * self.price if hours is not None and self.price is not None else None,
        }


def estimate(
    recipe: TrainRecipe,
    *,
    shape: str = "",
    prompt_length: int | None = None,
    processes: int = 1,
    preset: str = "none",
    flops: float | None = None,
    rollout_flops: float | None = None,
    bandwidth: float | None = None,
    price: float | None = None,
    on_gpu: bool = False,
) -> StepEstimate:
    """Estimate a training step of a recipe on one of `processes` ranks.

    Args:
        recipe: settings of the run.
        shape: shape of the model, if it cannot be looked up; see `config_of`.
        prompt_length: P; default the longest of the task's prompts, or 200.
        processes: number of ranks that share the prompts of a step.
        preset: how the ranks share the model: none, ddp, zero2, zero3 or fsdp2.
        flops: floating-point operations per second that a rank sustains.
        rollout_flops: the same in rollouts and evaluations, if it differs.
        bandwidth: bytes per second that a rank moves to and from its memory; default `flops` /
            `BALANCE`.
        price: price of an hour of one GPU.
        on_gpu: True if the memory is that of a GPU.

    Raises:
        UnmaskError: the model is unknown and not on this machine, or the settings contradict each
            other.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    if recipe.precision == "auto":
        recipe = recipe.model_copy(update={"precision": "bf16" if on_gpu else "float32"})
    schedule, recipe = recipe.sampler.schedule, at_limit(recipe)
    if preset not in PRESETS:
        raise ConfigError(unknown_name("preset", preset, PRESETS))
    config, model = config_of(recipe, shape)
    prompt, source = (prompt_length, "--prompt-length") if prompt_length else prompt_tokens(recipe)
    rates = Rates.of(flops, rollout_flops, bandwidth)
    block_length = getattr(config, "block_length", None)
    setup = Setup(config.vocab_size, config.hidden_size, block_length, "cuda" if on_gpu else "cpu")
    work = work_of(recipe, prompt, processes, setup)
    with FakeTensorMode():
        num_layers = min(config.num_hidden_layers, 3)
        denoiser = build_fake(config, recipe, num_layers)
        costs = costs_of(denoiser, config, num_layers, recipe.gradient_checkpointing)
    memory = memory_of(recipe, config, work, processes=processes, preset=preset, on_gpu=on_gpu)
    durations = durations_of(work, costs, rates, recipe) if rates else None
    return StepEstimate(model, source, processes, preset, work, costs, memory, durations, rates, price, schedule)


def at_limit(recipe: TrainRecipe) -> TrainRecipe:
    """Return a recipe whose rollouts and evaluations take as many forward passes as their schedules
    allow at most."""
    own, decoded = recipe.sampler, recipe.evaluation_sampler(0.0)
    evaluation = recipe.evaluation.model_copy(update={"num_steps": decoded.steps, "schedule": "fixed"})
    sampler = own.model_copy(update={"num_steps": own.steps, "schedule": "fixed"})
    return recipe.model_copy(update={"sampler": sampler, "evaluation": evaluation})

"""What a recipe would cost, before anything is rented: parameters, memory by part, and the time of a step."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from unmask.cli.estimate.flops import Costs, costs_of
from unmask.cli.estimate.measure import Rates, measure
from unmask.cli.estimate.memory import PRESETS, Memory, memory_of
from unmask.cli.estimate.shapes import build_fake, config_of, prompt_tokens
from unmask.cli.estimate.work import Work, work_of
from unmask.core.errors import ConfigError
from unmask.recipes.schema import TrainRecipe

__all__ = ["StepEstimate", "Times", "estimate"]


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of a step's parts, on one process."""

    by_pass: dict[str, float]
    optimizer: float
    words: str
    """Where the rate is from."""

    @property
    def rollout(self) -> float:
        """Of the rollout, its branches included."""
        return sum(seconds for name, seconds in self.by_pass.items() if name.startswith("rollout"))

    @property
    def update(self) -> float:
        """Of everything after it."""
        return sum(self.by_pass.values()) - self.rollout + self.optimizer

    @property
    def step(self) -> float:
        """Of both."""
        return self.rollout + self.update


@dataclass(frozen=True, slots=True)
class StepEstimate:
    """All that is known of a recipe without running it."""

    model: str
    """Where its shape is from."""
    prompt: str
    """Where P is from."""
    processes: int
    preset: str
    parameters: float
    trained: float
    work: Work
    costs: Costs
    memory: Memory
    times: Times | None

    def summary(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        times = self.times
        return {
            "model": self.model,
            "processes": self.processes,
            "preset": self.preset,
            "parameters": self.parameters,
            "trained": self.trained,
            "completions": self.work.completions,
            "prompt_tokens": self.work.prompt,
            "memory": {line.name: line.bytes for line in self.memory.resident},
            "peaks": {line.name: line.bytes for line in self.memory.peaks},
            "total_bytes": self.memory.total,
            "flops": {p.name: self.costs.total(p) for p in self.work.passes},
            "passes": [asdict(p) for p in self.work.passes],
            "seconds": None if times is None else times.by_pass | {"optimizer": times.optimizer, "step": times.step},
        }


def estimate(
    recipe: TrainRecipe,
    *,
    shape: str = "",
    prompt_length: int | None = None,
    processes: int = 1,
    preset: str = "none",
    flops: float | None = None,
    rates: Rates | None = None,
    on_gpu: bool = False,
) -> StepEstimate:
    """Estimate a step of a recipe on one of `processes`.

    Args:
        recipe: the run's settings.
        shape: of the model, where it is not to be looked up; see `config_of`.
        prompt_length: P; default what the task's rows have, or 200.
        processes: that share the step's prompts.
        preset: how they share the model: none, ddp, zero2, zero3, fsdp2.
        flops: operations a second that a process sustains.
        rates: measured ones instead, of `measured_rates`.
        on_gpu: whether the memory is a GPU's.

    Raises:
        UnmaskError: a model that is not here and not known, or settings that do not go together.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    if preset not in PRESETS:
        raise ConfigError(f'unknown preset "{preset}". Available: {", ".join(PRESETS)}.')
    config, model = config_of(recipe, shape)
    prompt, source = (prompt_length, "--prompt-length") if prompt_length else prompt_tokens(recipe)
    work = work_of(recipe, prompt, processes)
    length = prompt + recipe.sampler.max_completion_length
    with FakeTensorMode():
        few = min(config.num_hidden_layers, 3)
        denoiser = build_fake(config, recipe, few)
        costs = costs_of(denoiser, config, length, few, recipe.gradient_checkpointing)
    memory = memory_of(recipe, config, work, processes=processes, preset=preset, on_gpu=on_gpu)
    times = None
    if rates:
        rate = {"rollout": rates.rollout, "update": rates.update}
        by_pass = {
            p.name: costs.total(p)
            / (rate[p.name] if p.name in rate else rates.rollout if p.name.startswith("rollout") else rates.scores)
            for p in work.passes
        }
        times = Times(by_pass, work.updates * rates.optimizer, rates.words)
    elif flops:
        times = Times({p.name: costs.total(p) / flops for p in work.passes}, 0.0, f"{flops:.3g} FLOP/s as given")
    return StepEstimate(model, source, processes, preset, memory.parameters, memory.trained, work, costs, memory, times)


def measured_rates(
    recipe: TrainRecipe, *, shape: str = "", prompt_length: int | None = None, processes: int = 1, **options: Any
) -> Rates:
    """The rates that the engine reaches here with a recipe's shapes; see `measure`."""
    config, _ = config_of(recipe, shape)
    work = work_of(recipe, prompt_length or prompt_tokens(recipe)[0], processes)
    return measure(recipe, config, work, **options)

"""Settings of an evaluation. They are the keys of a training recipe that concern a finished
model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field, SerializeAsAny

from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError
from unmask.core.schedules import Schedule
from unmask.core.settings import Config, flat
from unmask.recipes.load import make_sampler, override, validate
from unmask.recipes.schema import AnyTask


class EvalRows(Config):
    """Examples to evaluate on, and temperatures to sample with."""

    section: ClassVar[str] = "evaluation"

    split: str = "test"
    """Split of the task: train, validation or test."""
    num_rows: int = Field(256, ge=1)
    """Number of examples."""
    temperatures: tuple[Annotated[float, Field(ge=0)], ...] = (0.0,)
    """Sampling temperatures at which the model is evaluated; 0 means greedy decoding."""
    batch_size: int | None = Field(None, ge=1)
    """Maximum number of completions that are denoised together; by default 256, on a CPU 64, and fewer
    if the tokens or the logits would take much memory."""


class EvalRecipe(Config):
    """Settings to measure the accuracy of a model on held-out examples of a task."""

    task: SerializeAsAny[AnyTask]
    """Task to evaluate on: the name or path of the task under `type`, and the options of the
    task."""
    sampler: SamplerConfig = SamplerConfig()
    """Settings of the denoising loop."""
    evaluation: EvalRows = EvalRows()
    """Examples and temperatures."""
    samples: int = Field(1, ge=1)
    """Number of completions for each example, for pass@k."""
    seed: int = 0
    """Seed of the examples and the sampling."""
    reward_funcs: tuple[str, ...] = ()
    """Paths of reward functions to use instead of the task's own."""
    reward_weights: tuple[float, ...] = ()
    """Weight of each reward function; default 1."""
    reward_timeout: float = Field(60.0, gt=0)
    """Time limit in seconds for one call of the reward functions; a call gets at most 64
    completions."""
    reward_workers: int = Field(1, ge=0)
    """Number of worker processes for each function of `reward_funcs`. 0 calls functions in the
    evaluating process, where a function that hangs ends the evaluation."""
    reward_item_timeout: float = Field(5.0, gt=0)
    """Time limit in seconds for one completion in a worker process, if the function scores
    completions independently."""


def load_evaluation(
    settings: Mapping[str, Any],
    overrides: Sequence[str] = (),
    lengths: Sequence[int] = (),
    steps: Sequence[int] = (),
    schedules: Sequence[Schedule] = (),
) -> tuple[EvalRecipe, list[SamplerConfig]]:
    """Return the settings of an evaluation, and a sampler for each combination of completion
    length, number of denoising steps, schedule and temperature.

    Args:
        settings: values by dotted key.
        overrides: `key=value` texts that override `settings`; sampler.max_completion_length and
            sampler.num_steps also override `lengths` and `steps`.
        lengths: completion lengths; default the task's own.
        steps: numbers of denoising steps; default half the length. If there are `schedules`, these
            are the numbers of steps of the fixed one, which they add to the list.
        schedules: schedules, whose adaptive ones have no other upper limit than the length; default
            the schedule of the settings.

    Raises:
        ConfigError: if a key is unknown or a value is not valid.
    """
    typed: dict[str, Any] = {}
    override(typed, overrides)
    _check_temperatures(typed)
    tree: dict[str, Any] = {}
    override(tree, settings)
    override(tree, overrides)
    sampler = tree.pop("sampler", None) or {}
    # The sampler's values can be validated only once a length is known, but unknown keys are
    # reported immediately.
    unknown = {key: value for key, value in sampler.items() if key not in SamplerConfig.model_fields}
    recipe = validate(EvalRecipe, tree | ({"sampler": unknown} if unknown else {}))
    own_length, own_steps = sampler.pop("max_completion_length", None), sampler.pop("num_steps", None)
    temperatures = [sampler.pop("temperature")] if "temperature" in sampler else recipe.evaluation.temperatures
    counts: list[int | None] = [own_steps] if own_steps is not None else [*steps] or [None]
    if "schedule" in sampler or not schedules:
        own = sampler.pop("schedule", "fixed")
        decodings = [(own, count) for count in counts]
    else:
        adaptive = [str(schedule) for schedule in schedules if schedule.is_adaptive]
        has_fixed = bool(steps) or len(adaptive) < len(schedules)
        decodings = [("fixed", count) for count in counts if has_fixed]
        decodings += [(schedule, own_steps) for schedule in adaptive]
    samplers = [
        make_sampler(
            **sampler, max_completion_length=length, schedule=schedule, num_steps=count, temperature=temperature
        )
        for length in ([own_length] if own_length is not None else lengths or recipe.task.evaluation_lengths)
        for schedule, count in decodings
        for temperature in temperatures or (0.0,)
    ]
    return recipe, samplers


def _check_temperatures(tree: Mapping[str, Any]) -> None:
    """Raise ConfigError if temperatures are set under both of their keys."""
    keys = flat(tree)
    if "sampler.temperature" in keys and "evaluation.temperatures" in keys:
        raise ConfigError(
            "both sampler.temperature and evaluation.temperatures are set, but they mean the same in an evaluation. Set one of "
            "them; evaluation.temperatures takes several values, as in evaluation.temperatures=[0, 0.9]."
        )

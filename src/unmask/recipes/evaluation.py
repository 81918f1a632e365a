"""What an evaluation measures: the same keys as in a training recipe, as far as they concern a model that is finished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field, SerializeAsAny

from unmask.core.config import Config, SamplerConfig, flat
from unmask.core.errors import ConfigError
from unmask.recipes.schema import AnyTask, make_sampler, override, validate


class EvalRows(Config):
    """The rows that are evaluated, and how they are sampled."""

    section: ClassVar[str] = "evaluation"

    split: str = "test"
    """train, validation or test."""
    num_rows: int = Field(256, ge=1)
    """How many rows."""
    temperatures: tuple[Annotated[float, Field(ge=0)], ...] = (0.0,)
    """One result for each: 0 is greedy."""
    batch_size: int = Field(256, ge=1)
    """Completions denoised together."""


class EvalRecipe(Config):
    """Accuracy of a model on held-out rows of a task."""

    task: SerializeAsAny[AnyTask]
    """What is evaluated: a name under `type`, and its options."""
    sampler: SamplerConfig = SamplerConfig()
    """How completions are denoised."""
    evaluation: EvalRows = EvalRows()
    """Which rows, and at which temperatures."""
    samples: int = Field(1, ge=1)
    """Completions of each row, for pass@k."""
    seed: int = 0
    """Of rows and sampling."""
    reward_funcs: tuple[str, ...] = ()
    """Reward functions instead of the task's own, by path."""
    reward_weights: tuple[float, ...] = ()
    """One for each reward function; default 1."""
    reward_timeout: float = Field(60.0, gt=0)
    """Seconds for the rewards of 64 completions."""
    reward_workers: int = Field(1, ge=0)
    """Processes for each function of `reward_funcs`; 0: in the process that evaluates, where a function that hangs ends the
    evaluation."""
    reward_item_timeout: float = Field(5.0, gt=0)
    """Seconds for each completion in a worker process, where a function judges each by itself."""


def load_evaluation(
    settings: Mapping[str, Any],
    overrides: Sequence[str] = (),
    lengths: Sequence[int] = (),
    steps: Sequence[int] = (),
) -> tuple[EvalRecipe, list[SamplerConfig]]:
    """An evaluation and the samplers whose results it compares: each length with each number of steps and each temperature.

    Args:
        settings: by dotted key.
        overrides: `key=value` texts, which win over `settings`; sampler.max_completion_length and sampler.num_steps take the
            place of `lengths` and `steps`.
        lengths: completion lengths; default the task's own.
        steps: numbers of denoising steps; default half the length.

    Raises:
        ConfigError: an unknown key or a value that cannot be used.
    """
    typed: dict[str, Any] = {}
    override(typed, overrides)
    _check_temperatures(typed)
    tree: dict[str, Any] = {}
    override(tree, settings)
    override(tree, overrides)
    given = tree.pop("sampler", None) or {}
    # The sampler's values only fit together once its length is known, so its keys are checked first.
    unknown = {key: value for key, value in given.items() if key not in SamplerConfig.model_fields}
    recipe = validate(EvalRecipe, tree | ({"sampler": unknown} if unknown else {}))
    own_length, own_steps = given.pop("max_completion_length", None), given.pop("num_steps", None)
    temperatures = [given.pop("temperature")] if "temperature" in given else recipe.evaluation.temperatures
    counts: Sequence[int | None] = [own_steps] if own_steps is not None else steps or [None]
    samplers = [
        make_sampler(**given, max_completion_length=length, num_steps=count, temperature=temperature)
        for length in ([own_length] if own_length is not None else lengths or recipe.task.evaluation_lengths)
        for count in counts
        for temperature in temperatures or (0.0,)
    ]
    return recipe, samplers


def _check_temperatures(tree: Mapping[str, Any]) -> None:
    """Refuse two answers to one question, of which one would be ignored."""
    keys = flat(tree)
    if "sampler.temperature" in keys and "evaluation.temperatures" in keys:
        raise ConfigError(
            "both sampler.temperature and evaluation.temperatures are set, and they mean the same here. Set one of them; "
            "evaluation.temperatures takes several, as in evaluation.temperatures=[0, 0.9]."
        )

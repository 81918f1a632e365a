"""Settings of a reward for speed, beside the reward of the task."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError
from unmask.core.settings import Config
from unmask.methods import Method


class SpeedConfig(Config):
    """Reward for tokens per forward pass, after LightningRL (arXiv:2603.13319)."""

    section: ClassVar[str] = "speed"

    weight: float = Field(0.0, ge=0)
    """Weight of the speed relative to the reward of the task; 0 rewards no speed. It needs an
    adaptive `sampler.schedule`, under which completions differ in their number of steps."""
    scale: Literal["z_score", "minmax", "none"] = "z_score"
    """Normalisation in each group. `z_score`: both rewards in standard deviations, as in the paper.
    `minmax`: the speed as its place between the slowest and the fastest completion, and the reward
    of the task as it is, which is the default of the released code. `none`: both as they are."""

    def check(self, method: Method, sampler: SamplerConfig, num_generations: int) -> None:
        """Raise ConfigError if a reward for speed has no effect or no meaning.

        Raises:
            ConfigError: all completions take the same number of steps, a prompt has a single
                completion, or the method compares rewards of finished and unfinished completions.
        """
        if not self.weight:
            return
        if not sampler.is_adaptive:
            raise ConfigError(
                f"speed.weight = {self.weight:g} rewards few steps, but sampler.schedule = fixed gives all completions the same "
                "number. Set an adaptive schedule, such as entropy_bound=0.3, or speed.weight = 0."
            )
        if num_generations < 2:
            raise ConfigError(
                "speed.weight compares the completions of a prompt, but num_generations = 1. Set it to 2 or more."
            )
        needs = method.needs()
        if needs.greedy or needs.branches:
            raise ConfigError(
                f"speed.weight is for finished completions, but with these settings {method.type} compares their rewards with "
                "those of unfinished ones. Set speed.weight to 0, or use another method."
            )

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
    nll_weight: float = Field(0.0, ge=0)
    """Weight λ of the negative log-likelihood of right completions, which is added to the loss so that
    the model does not drift to fast but wrong answers. 0 leaves it out. The settings of the released
    code have 0.1."""
    min_range: float = Field(0.0, ge=0)
    """Smallest difference between the tokens per forward pass of the fastest and the slowest
    completion of a group. Groups below it are not learned from. The settings of the released code
    have 0.01; 0 keeps all groups."""
    needs_right: bool = False
    """True to learn from no group without a right completion, as in the settings of the released
    code."""
    right_reward: float = 1.0
    """Reward of the task from which a completion counts as right."""

    def check(self, method: Method, sampler: SamplerConfig, num_generations: int) -> None:
        """Raise ConfigError if a reward for speed has no effect or no meaning.

        Raises:
            ConfigError: all completions take the same number of steps, a prompt has a single
                completion, or the method compares rewards of finished and unfinished completions.
        """
        if not self.weight:
            self._refuse_without_weight()
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
        if (self.min_range or self.needs_right) and not needs.group:
            raise ConfigError(
                f"speed.min_range and speed.needs_right leave out groups, but with these settings {method.type} compares the "
                "completions of a whole training step. Set them to 0 and false, or use a baseline of the group."
            )
        if self.nll_weight and not (method.separable and "step" in method.behaviour_levels(sampler)):
            raise ConfigError(
                f"speed.nll_weight needs a loss that is a sum over denoising steps, which that of {method.type} is not with "
                "these settings. Set it to 0, or use egspo, agrpo or cj_grpo."
            )

    def _refuse_without_weight(self) -> None:
        """Raise ConfigError if an option is set that has no effect without a reward for speed."""
        for name in ("nll_weight", "min_range", "needs_right"):
            if getattr(self, name):
                raise ConfigError(
                    f"speed.{name} has no effect without a reward for speed. Set speed.weight above 0, or leave it out."
                )

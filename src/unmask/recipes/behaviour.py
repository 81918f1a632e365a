"""Settings of the correction for rollouts that another policy than the old one sampled, and the
level at which a recipe is corrected."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError
from unmask.core.settings import Config
from unmask.functional.behaviour import Level, LevelOrOff
from unmask.methods import Method


class BehaviourConfig(Config):
    """Weights of samples by the ratio of the old policy to the behaviour policy, which sampled the
    rollout."""

    section: ClassVar[str] = "behaviour"

    level: Literal["auto", "off", "token", "step", "sequence"] = "auto"
    """Unit whose ratio is the weight: one token, all tokens of a denoising step, or the whole
    completion, which takes a forward pass for each denoising step. `auto` looks only at the cache
    of the sampler and at `rollout_engine.max_staleness`: without stale keys and values, and with
    the weights of the step, it is `off`, even if rounding differs between rollouts and updates;
    otherwise it is the unit of the method's own ratio."""
    cap: float = Field(2.0, ge=0)
    """Upper bound of a weight, at least 1; 0 sets no bound. Truncation lowers the variance and
    biases the gradient. The default is that of verl."""
    band: tuple[float, float] | None = None
    """Range of ratios outside of which a sample gets weight 0, as in [0.5, 5]. For units of several
    tokens it bounds the geometric mean of their ratios. By default nothing is masked."""
    normalise: bool = False
    """True to divide the weights of a training step by their mean. This lowers the variance, and
    the bias that it adds decreases as the number of samples grows."""
    max_ratio: float = Field(0.0, ge=0)
    """Largest ratio of a token, in either direction, above which the run stops with an error before
    the update; 0 sets no limit. The tokens of the views that the update scores are compared, or,
    with level `sequence`, all tokens of the completions; completions of advantage 0 are left
    out unless `normalise` needs them."""

    @field_validator("cap", "max_ratio")
    @classmethod
    def _check_bound(cls, value: float) -> float:
        if 0 < value < 1:
            raise ValueError(f"{value} is below 1, the ratio of equal policies. Use 1 or more, or 0 for no bound.")
        return value

    @field_validator("band")
    @classmethod
    def _check_band(cls, band: tuple[float, float] | None) -> tuple[float, float] | None:
        if band is not None and not 0 <= band[0] <= 1 <= band[1]:
            raise ValueError(
                f"[{band[0]:g}, {band[1]:g}] must contain 1, the ratio of equal policies, and start at 0 or more. "
                "An example is [0.5, 5]."
            )
        return band

    def weighted(self, method: Method, sampler: SamplerConfig, is_exact: bool) -> Level | None:
        """Return the level of the weights; None for no weights.

        Args:
            method: method of the recipe.
            sampler: settings of the rollouts.
            is_exact: True if rollouts are sampled exactly from the old policy.

        Raises:
            ConfigError: the method cannot be weighted at this level, or the level has to be chosen
                because the only one is expensive.
        """
        levels = method.behaviour_levels(sampler)
        if self.level == "off" or (self.level == "auto" and is_exact):
            return None
        if method.reads().anchor == "rollout":
            if self.level == "auto":
                return None
            raise ConfigError(
                f"behaviour.level = {self.level} would correct the ratio twice, because method.anchor = rollout already measures "
                "it from the policy that sampled. Set behaviour.level = off, or method.anchor = old."
            )
        if self.level == "auto":
            if levels[0] == "sequence":
                raise ConfigError(
                    f"rollouts with these settings are approximate, and {method.type} can be corrected only by whole "
                    f"completions, which takes {sampler.steps} more forward passes for each. Set behaviour.level = sequence "
                    "for that, or behaviour.level = off to train without a correction."
                )
            return None if levels[0] == "off" else levels[0]
        if self.level not in levels:
            raise ConfigError(f"behaviour.level = {self.level} is not possible for {method.type}: {_possible(levels)}")
        return self.level

    def measured(self, method: Method, sampler: SamplerConfig, is_exact: bool) -> Level | None:
        """Return the level at which the ratios are measured: that of the weights, or without
        weights that of the method's own ratio. Return None if nothing has to be measured, or if it
        would take forward passes that the method does not make. The arguments are those of
        `weighted`.

        Raises:
            ConfigError: `max_ratio` is set, but nothing is measured.
        """
        level = self.weighted(method, sampler, is_exact)
        if level is None and (self.max_ratio or not is_exact):
            own = method.behaviour_levels(sampler)[0]
            level = own if own in ("token", "step") else None
        if self.max_ratio and level is None:
            raise ConfigError(
                f"behaviour.max_ratio = {self.max_ratio:g} needs the probabilities of the sampled tokens, which {method.type} "
                "does not compute with these settings. Set behaviour.level = sequence, or behaviour.max_ratio = 0."
            )
        return level


def _possible(levels: tuple[LevelOrOff, ...]) -> str:
    allowed = [level for level in levels if level != "off"]
    if not allowed:
        return "its loss is not proportional to an advantage. Set behaviour.level = off."
    if allowed == ["sequence"]:
        return "its loss has no ratio of the tokens that the rollout drew in a state. Set behaviour.level to sequence or off."
    return f"its ratio is that of a {allowed[0]}. Set behaviour.level to {', '.join(allowed)} or off."

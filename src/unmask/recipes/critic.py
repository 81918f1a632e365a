"""Settings of the critic, which estimates the values of states."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from unmask.core.errors import ConfigError
from unmask.core.settings import Config
from unmask.methods import Method


class CriticConfig(Config):
    """Linear critic on the hidden states of the policy; only for methods that need one."""

    section: ClassVar[str] = "critic"

    decay: float = Field(0.97, ge=0, le=1)
    """Weight of a training step in the regression, relative to the next one: the hidden states change
    with the policy, so old ones lose their meaning. 1 forgets nothing, 0 remembers one step."""
    ridge: float = Field(128.0, ge=0, allow_inf_nan=False)
    """Strength of the penalty of the slopes, as a number of completions. A larger ridge keeps the
    values nearer to the mean return."""

    def check(self, method: Method, refill_rounds: int) -> None:
        """Raise ConfigError if settings have no effect.

        Raises:
            ConfigError: there are settings of a critic but no critic, or extra rollouts would replace
                groups without signal, which a critic leaves none of.
        """
        has_critic = method.needs().critic
        changed = [name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default]
        if changed and not has_critic:
            raise ConfigError(
                f"critic.{changed[0]} = {getattr(self, changed[0]):g} is a setting of the critic, but {method.type} has none "
                "with these settings. Leave it out, or use a method with a critic, such as egspo with baseline: critic."
            )
        if refill_rounds and has_critic:
            raise ConfigError(
                f"refill_rounds = {refill_rounds} replaces groups whose advantages are all 0, but with a critic no group counts "
                "as one, because equal rewards still differ from its values. Set refill_rounds to 0."
            )

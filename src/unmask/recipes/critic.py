"""Settings of the critic, which estimates the values of states."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from unmask.core.settings import Config


class CriticConfig(Config):
    """Linear critic on the hidden states of the policy; used only by methods that need one."""

    section: ClassVar[str] = "critic"

    decay: float = Field(0.97, ge=0, le=1)
    """Weight of a training step in the regression, relative to the next one: the hidden states change
    with the policy, so old ones lose their meaning. 1 forgets nothing, 0 remembers one step."""
    ridge: float = Field(128.0, ge=0, allow_inf_nan=False)
    """Strength of the penalty of the slopes, as a number of completions. A larger ridge keeps the
    values nearer to the mean return."""

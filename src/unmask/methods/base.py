"""What a method is: its options, what it needs of a rollout, a plan, an advantage and a loss.

The trainer samples, scores, shards, steps and writes; it never asks which method it runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from unmask.config import Config, SamplerConfig
from unmask.errors import ConfigError
from unmask.records import LossInputs, LossOutput, Needs, Rollout, Views


class Method(Config, ABC):
    """A policy-optimisation method; its options are the fields of the subclass."""

    type: str
    """Name in `METHODS`."""

    paper: ClassVar[str]
    """Where it is from."""
    summary: ClassVar[str]
    """One line for `unmask methods`."""
    estimates: ClassVar[str]
    """What its gradient is an estimate of, and how exactly."""

    @abstractmethod
    def needs(self) -> Needs:
        """What the engine has to provide."""

    @abstractmethod
    def plan(self, rollout: Rollout, generator: torch.Generator) -> Views:
        """The corrupted readings that are scored, made once and evaluated under old, reference and new policy."""

    @abstractmethod
    def advantage(self, rollout: Rollout) -> Tensor:
        """[B], or [B, K] where each slot of a completion has its own."""

    @abstractmethod
    def loss(self, inputs: LossInputs) -> LossOutput:
        """The loss of each view."""

    def check(self, sampler: SamplerConfig, num_generations: int) -> None:
        """Refuse settings that do not go together.

        Raises:
            ConfigError: a group-relative baseline over groups of one.
        """
        if self.needs().group and num_generations < 2:
            raise ConfigError(
                f"num_generations = {num_generations}, but {self.type} compares the completions of a prompt with each other. "
                "Set num_generations to 2 or more."
            )

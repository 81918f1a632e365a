"""Branches: which other completions of its states a method asks for."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Branches:
    """Settings of the branches, which are alternative completions of the state before each selected
    step. Branches are drawn from logits that the rollout has already computed."""

    num: int
    """Number of new draws for each state."""
    scope: Literal["step", "all"] = "step"
    """Positions that are drawn again: the positions that the step committed, or all masked
    positions."""
    finish: Literal["greedy", "sampled", "rollout"] = "greedy"
    """Rule that fills the other positions under scope `step`: with the most likely tokens (greedy),
    with one sample that all draws share (sampled), or by further denoising (rollout). Only
    `rollout` costs forward passes."""
    with_taken: bool = False
    """True to add one branch before the draws: the branch with the tokens that the rollout itself
    committed."""

    @property
    def count(self) -> int:
        """Number of branches of each state, M."""
        return self.num + self.with_taken

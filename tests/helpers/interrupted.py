"""A reward function that gives up once, for runs that are cut off and resumed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Interrupted:
    """A reward of single completions, but for one call, at which it gives up.

    Args:
        reward: the reward at all other calls, whose name it has in metrics.
        call: number of the call that fails, from 1.
    """

    per_completion = True

    def __init__(self, reward: Callable[..., list[float]], call: int) -> None:
        self.__name__ = reward.__name__
        self.reward, self.left = reward, call

    def __call__(self, completions: list[str], **columns: Any) -> list[float]:
        self.left -= 1
        if not self.left:
            raise OSError("the disk with the answers is gone")
        return self.reward(completions, **columns)

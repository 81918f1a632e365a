"""Reward functions that run in this process, under a time limit that ends the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from unmask.core.errors import RewardError
from unmask.core.timeouts import TimeLimitError, time_limit, within
from unmask.rewards.isolated import Part, with_timeout
from unmask.rewards.protocol import RewardFunc, call_reward, judges_each, parameters_of, reasons_of


class Local:
    """A reward function that runs in this process.

    Args:
        name: name under which its mean reward is logged.
        function: sync or async reward function.
        timeout: seconds that one call may take; a longer call ends the run.
    """

    def __init__(self, name: str, function: RewardFunc, timeout: float) -> None:
        self.name, self.function, self.timeout = name, function, timeout
        self.parameters = parameters_of(function)
        self.judges_each, self.reasons = judges_each(function), reasons_of(function)
        if not is_built_in(getattr(function, "__module__", None) or ""):
            # The same metrics are logged as for a function in a worker process.
            self.reasons = with_timeout(self.reasons)

    def __call__(
        self, arguments: Mapping[str, Sequence[Any]], parts: Sequence[Part], calling: Callable[[], None]
    ) -> list[float | None]:
        """Return one reward for each completion; the arguments are those of `Isolated`.

        Raises:
            RewardError: the function raised, took too long, or returned something other than
                rewards.
        """
        calling()
        try:
            with time_limit(self.timeout):
                rewards: list[float | None] = within(
                    self.timeout, lambda: call_reward(self.name, self.function, arguments)
                )
        except TimeLimitError:
            raise RewardError(
                f'reward function "{self.name}" did not return within {self.timeout:g} s for {sum(map(len, parts))} '
                "completions. Make it faster, or raise reward_timeout."
            ) from None
        return rewards

    def close(self) -> None:
        """Do nothing, because there is no process to end."""


def is_built_in(path: str) -> bool:
    """Return True if a module, or the path of a function, belongs to this package."""
    return f"{path}:".startswith(("unmask.", "unmask:"))

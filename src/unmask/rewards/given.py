"""Forms in which a Python caller can pass reward functions: a function, the path of a function, or
a list of functions and paths."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from unmask.core.errors import ConfigError
from unmask.rewards.protocol import RewardFunc

RewardFuncs = RewardFunc | str | Sequence[RewardFunc | str]
"""A reward function, its path as `file.py:function`, or a list of them."""


def reward_list(given: RewardFuncs) -> list[RewardFunc | str]:
    """Return one or several reward functions as a list of functions and paths.

    Raises:
        ConfigError: an entry is neither a function nor a path.
    """
    if isinstance(given, Mapping):
        raise ConfigError(
            "reward_funcs is a dict. Give a function, its path, or a list of them; their weights are reward_weights."
        )
    entries: list[Any] = list(given) if isinstance(given, list | tuple) else [given]
    for entry in entries:
        if not isinstance(entry, str | os.PathLike) and not callable(entry):
            raise ConfigError(
                f"reward_funcs holds {entry!r}, which is neither a function nor the path of one, such as rewards.py:mine."
            )
    return [os.path.expanduser(entry) if isinstance(entry, str | os.PathLike) else entry for entry in entries]

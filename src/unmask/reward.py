"""What a reward function is: TRL's signature, how one is found by its path, and how it says why a completion got nothing."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from unmask.errors import ConfigError, no_file

RewardFunc = Callable[..., Any]
"""f(prompts, completions, **columns) -> list[float | None], sync or async; None where the function does not apply. One that
takes no `**columns` is given what it names."""

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


class Score(float):
    """A reward that comes with the reason for it, such as "unparsed"; a float to everyone who does not ask.

    The share of completions with each reason that a function says it `reports` is logged as `rewards/{name}/{reason}`.

    Example:
        >>> score = Score(0.0, "unparsed")
        >>> score + 1, score.reason
        (1.0, 'unparsed')
    """

    reason: str

    def __new__(cls, value: float, reason: str) -> Score:
        score = super().__new__(cls, value)
        score.reason = reason
        return score


def reports(*reasons: str) -> Callable[[FunctionT], FunctionT]:
    """Decorator of a reward function: the reasons that its `Score`s may have, each logged in every step.

    Example:
        >>> @reports("unparsed")
        ... def right(completions, answer, **_):
        ...     return [Score(0.0, "unparsed") if not text else float(text == a) for text, a in zip(completions, answer)]
        >>> reasons_of(right)
        ('unparsed',)
    """

    def mark(function: FunctionT) -> FunctionT:
        function.__dict__["reasons"] = reasons
        return function

    return mark


def reasons_of(function: RewardFunc) -> tuple[str, ...]:
    """The reasons that a function says it reports; none for a function that says nothing."""
    return tuple(getattr(function, "reasons", ()))


def load_reward(path: str) -> tuple[str, RewardFunc]:
    """The function at `package.module:function` or `file.py:function`, with its name.

    Raises:
        ConfigError: nothing callable there.
    """
    where, colon, attribute = path.rpartition(":")
    if not colon:
        raise ConfigError(f'reward function "{path}" must be given as package.module:function or file.py:function.')
    where = os.path.expanduser(where)
    if where.endswith(".py") and not Path(where).is_file():
        raise ConfigError(f'reward function "{path}" cannot be loaded: {no_file(where)}')
    # As Python itself would: the function's neighbours can be imported.
    folder = str(Path(where).resolve().parent if where.endswith(".py") else Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        if where.endswith(".py"):
            module_name = f"unmask_reward_{Path(where).stem}"
            spec = importlib.util.spec_from_file_location(module_name, where)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[module_name] = module
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(where)
        function = getattr(module, attribute)
    except Exception as error:  # the file is the user's, and may raise anything
        raise ConfigError(f'reward function "{path}" cannot be loaded: {type(error).__name__}: {error}') from error
    if not callable(function):
        raise ConfigError(f'reward function "{path}" is a {type(function).__name__}, not a function.')
    return attribute, function

"""Preparation of reward functions: how they are loaded, and in which process each one runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence

from unmask.core.by_path import FILE_MODULE
from unmask.core.errors import ConfigError
from unmask.rewards.isolated import Isolated
from unmask.rewards.local import is_built_in
from unmask.rewards.protocol import RewardFunc, load_reward, name_of
from unmask.rewards.scorer import Scorer


def make_scorer(
    functions: Sequence[str | RewardFunc],
    default: Mapping[str, RewardFunc],
    weights: Sequence[float] = (),
    *,
    timeout: float = 60.0,
    workers: int = 1,
    item_timeout: float = 5.0,
    group_size: int = 1,
    calling: Callable[[], None] = lambda: None,
) -> Scorer:
    """Return a scorer that calls the user's functions in worker processes and the built-in
    functions in this process.

    Args:
        functions: reward functions, as objects or paths.
        default: functions of the task by name, used if `functions` is empty.
        weights: one weight for each function; default 1.
        timeout: seconds that one call may take.
        workers: number of processes for each function; 0 runs every function in this process.
        item_timeout: seconds for one completion in a worker process.
        group_size: number of completions of a prompt that a function sees together in training.
        calling: function called before each call of a reward function, so that the caller can
            report that it is alive.

    Raises:
        ConfigError: a function cannot be loaded, two functions have the same name, or there is no
            function.
    """

    def prepare(function: str | RewardFunc) -> tuple[str, RewardFunc | Isolated]:
        path = function if isinstance(function, str) else _path_of(function)
        # The package's own functions are fast and never raise, so they need no process.
        if path and workers and not is_built_in(path):
            isolated = Isolated(path, workers, timeout, item_timeout)
            return isolated.name, isolated
        return load_reward(function) if isinstance(function, str) else (name_of(function), function)

    return Scorer(by_name(map(prepare, functions)) if functions else default, weights, timeout, group_size, calling)


def by_name(functions: Iterable[tuple[str, RewardFunc | Isolated]]) -> dict[str, RewardFunc | Isolated]:
    """Return the functions by name.

    Raises:
        ConfigError: two functions have the same name.
    """
    named: dict[str, RewardFunc | Isolated] = {}
    for name, function in functions:
        if name in named:
            raise ConfigError(f'two reward functions are called "{name}", under which its mean is logged. Rename one.')
        named[name] = function
    return named


def _path_of(function: RewardFunc) -> str | None:
    """Return the path from which a worker can load a function object.

    The result is None for closures, lambdas and functions of a notebook, because another process
    cannot import them.
    """
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not (module and name) or module == "__main__" or getattr(sys.modules.get(module), "__file__", None) is None:
        return None
    if getattr(sys.modules[module], name, None) is not function:
        return None
    # Another process cannot import a module that was loaded from a file by path. It loads the file
    # instead.
    is_from_file = module.startswith(FILE_MODULE)
    return f"{sys.modules[module].__file__ if is_from_file else module}:{name}"

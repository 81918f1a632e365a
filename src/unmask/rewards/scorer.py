"""Completions in, rewards out: which completions a reward function sees in one call, weights, and the sum.

A function is called with whole groups of finished completions, in order and with repeated texts, as TRL calls it. A function
that declares that it judges each completion by itself is called once for equal texts of a row, and also with unfinished
completions: EGSPO-SA scores K + 1 completions of every rollout, and late in training most of them are equal.
"""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from unmask.core.by_path import FILE_MODULE
from unmask.core.errors import ConfigError, DataError, RewardError
from unmask.core.records import Row
from unmask.core.timeouts import TimeLimitError, time_limit, within
from unmask.rewards.isolated import Isolated, Part, with_timeout
from unmask.rewards.protocol import (
    RewardFunc,
    call_reward,
    completion_for,
    judges_each,
    load_reward,
    name_of,
    parameters_of,
    reasons_of,
)

if TYPE_CHECKING:
    pass

OWN = ("unmask.", "unmask:")
"""Begin the paths of the package's own reward functions."""

logger = logging.getLogger("unmask")


@dataclass(frozen=True, slots=True)
class Scores:
    """Rewards of B completions."""

    total: list[float]
    """Weighted sum over the functions, None counting as 0."""
    by_function: dict[str, list[float | None]]
    """What each function gave."""
    reasons: dict[str, dict[str, list[bool]]] = field(default_factory=dict)
    """For each function and each reason that it reports: which completions had it."""


class Local:
    """A reward function that runs in this process, with a time limit that ends the run.

    Args:
        name: under which it is logged.
        function: sync or async.
        timeout: seconds that one call may take.
    """

    def __init__(self, name: str, function: RewardFunc, timeout: float) -> None:
        self.name, self.function, self.timeout = name, function, timeout
        self.parameters = parameters_of(function)
        self.judges_each, self.reasons = judges_each(function), reasons_of(function)
        if not _is_own(function):
            # What is logged does not depend on where a function runs.
            self.reasons = with_timeout(self.reasons)

    def __call__(
        self, arguments: Mapping[str, Sequence[Any]], parts: Sequence[Part], calling: Callable[[], None]
    ) -> list[float | None]:
        """One reward for each completion; see `Isolated`.

        Raises:
            RewardError: the function raised, took too long, or returned something else than rewards.
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
        """Nothing to end."""


class Scorer:
    """Reward functions, called safely.

    Args:
        functions: by the name under which their mean is logged.
        weights: one for each; default 1.
        timeout: seconds that one call of a function in this process may take.
        group_size: completions of a prompt that a function sees together in training.
        calling: called before each call of a function.

    Raises:
        ConfigError: no function, or weights that do not match.
    """

    def __init__(
        self,
        functions: Mapping[str, RewardFunc | Isolated],
        weights: Sequence[float] = (),
        timeout: float = 60.0,
        group_size: int = 1,
        calling: Callable[[], None] = lambda: None,
    ) -> None:
        if not functions:
            raise ConfigError("no reward function: the task brings none, so set reward_funcs.")
        if weights and len(weights) != len(functions):
            raise ConfigError(
                f"{len(weights)} reward_weights for {len(functions)} reward functions; give one for each."
            )
        self.functions: dict[str, Isolated | Local] = {
            name: function if isinstance(function, Isolated) else Local(name, function, timeout)
            for name, function in functions.items()
        }
        self.weights = tuple(weights) or (1.0,) * len(functions)
        self.group_size, self.calling = group_size, calling
        self.count = 0
        """Completions scored since the last `take`; equal texts of a row count once where all functions judge each by itself."""
        self._known: dict[tuple[str, int, str], float | None] = {}
        self._known_rows: list[Row] = []
        self._has_warned = False

    @property
    def judges_each(self) -> bool:
        """Whether every function declares that it judges each completion by itself."""
        return all(function.judges_each for function in self.functions.values())

    def take(self) -> int:
        """The count since the last call."""
        count, self.count = self.count, 0
        return count

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out of the count what is scored in this block."""
        count = self.count
        try:
            yield
        finally:
            self.count = count

    def close(self) -> None:
        """End the worker processes; a further call starts them again."""
        for function in self.functions.values():
            function.close()

    def check_columns(self, row: Row) -> None:
        """Refuse rows that lack a column which a reward function names as a required argument, or that hide an argument.

        Raises:
            DataError: names the function, the column and the columns that there are.
        """
        for taken in ("prompts", "completions"):
            if taken in row:
                raise DataError(f'the rows have a column "{taken}", an argument of every reward function. Rename it.')
        for name, function in self.functions.items():
            for parameter in function.parameters.values():
                is_variadic = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
                is_required = parameter.default is parameter.empty and not is_variadic
                if is_required and parameter.name not in {"prompts", "completions", *row}:
                    raise DataError(
                        f'reward function "{name}" needs the column "{parameter.name}", which the rows do not have. '
                        f"They have: {', '.join(sorted(row))}."
                    )

    def check_unfinished(self, method: str) -> None:
        """Refuse functions that cannot score the unfinished completions of a method.

        Args:
            method: its name, for the message.

        Raises:
            ConfigError: names the function, and says what to do.
        """
        for name, function in self.functions.items():
            if not function.judges_each:
                how = (
                    f"@per_completion\n      def {name}(...):"
                    if name.isidentifier()
                    else "reward_funcs=per_completion(...)"
                )
                raise ConfigError(_UNDECLARED.format(name=name, method=method, how=how))

    def __call__(self, rows: Sequence[Row], completions: Sequence[str]) -> Scores:
        """Score finished completions, one for each row; those of a group stand side by side.

        Raises:
            RewardError: a function raised, took too long, or gave something other than one number or None for each.
        """
        self._known, self._known_rows = {}, list(rows)
        return self._scores(rows, completions)

    def unfinished(self, rows: Sequence[Row], completions: Sequence[str]) -> Scores:
        """Score one-step completions, fills or branches of the rows that were scored last; texts scored then are not again.

        Raises:
            RewardError: as for finished completions.
        """
        self.check_unfinished("this method")
        self._known_rows += rows
        return self._scores(rows, completions)

    def single(self, rows: Sequence[Row], completions: Sequence[str]) -> Scores:
        """Score one finished completion for each of several rows, as an evaluation samples them.

        A function that compares the completions of a group sees a group of `group_size` equal ones.

        Raises:
            RewardError: as for groups.
        """
        copies = 1 if self.judges_each else self.group_size
        scores = self(
            [row for row in rows for _ in range(copies)], [text for text in completions for _ in range(copies)]
        )
        return Scores(
            scores.total[::copies],
            {name: values[::copies] for name, values in scores.by_function.items()},
            {name: {r: h[::copies] for r, h in reasons.items()} for name, reasons in scores.reasons.items()},
        )

    def _scores(self, rows: Sequence[Row], completions: Sequence[str]) -> Scores:
        places = _distinct(rows, completions)
        is_known = [all((name, *key) in self._known for name in self.functions) for key in places]
        self.count += (len(places) - sum(is_known)) if self.judges_each else len(completions)
        by_function, reasons = {}, {}
        for name, function in self.functions.items():
            if function.judges_each:
                given = self._each(name, function, places, rows, completions)
            else:
                given = self._call(function, rows, completions, _groups(rows))
            by_function[name] = given
            reasons[name] = {
                reason: [getattr(value, "reason", None) == reason for value in given] for reason in function.reasons
            }
        if completions:
            self._warn_of_none(by_function, completions)
        total = [
            sum(w * (value or 0.0) for w, value in zip(self.weights, values, strict=True))
            for values in zip(*by_function.values(), strict=True)
        ]
        return Scores(total, by_function, reasons)

    def _each(
        self,
        name: str,
        function: Isolated | Local,
        places: Mapping[tuple[int, str], int],
        rows: Sequence[Row],
        completions: Sequence[str],
    ) -> list[float | None]:
        """Rewards of a function that judges each completion by itself: it sees what it has not seen yet, once."""
        new = {key: place for key, place in places.items() if (name, *key) not in self._known}
        found = self._call(
            function,
            [rows[place] for place in new.values()],
            [completions[place] for place in new.values()],
            [range(i, i + 1) for i in range(len(new))],
        )
        self._known |= {(name, *key): value for key, value in zip(new, found, strict=True)}
        return [self._known[name, id(row), text] for row, text in zip(rows, completions, strict=True)]

    def _call(
        self, function: Isolated | Local, rows: Sequence[Row], completions: Sequence[str], parts: Sequence[Part]
    ) -> list[float | None]:
        if not completions:
            return []
        # Copies for each completion: what a function does to its arguments stays its own affair.
        arguments: dict[str, list[Any]] = {
            "prompts": [_copied(row["prompt"]) for row in rows],
            "completions": [completion_for(row["prompt"], text) for row, text in zip(rows, completions, strict=True)],
        }
        parameters = function.parameters.values()
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
        for key in (key for key in rows[0] if key != "prompt" and (takes_all or key in function.parameters)):
            arguments[key] = [_copied(row.get(key)) for row in rows]
        if not takes_all:
            arguments = {key: values for key, values in arguments.items() if key in function.parameters}
        return function(arguments, parts, self.calling)

    def _warn_of_none(self, by_function: Mapping[str, Sequence[float | None]], completions: Sequence[str]) -> None:
        is_none = [all(value is None for value in values) for values in zip(*by_function.values(), strict=True)]
        if any(is_none) and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "every reward function (%s) returned None for %d of %d completions. None means that a function does not apply; "
                "where none applies, the reward is 0. The first: %r",
                ", ".join(by_function),
                sum(is_none),
                len(is_none),
                completions[is_none.index(True)][:80],
            )


_UNDECLARED = """reward function "{name}" does not say that it judges each completion by itself, and {method} also scores \
unfinished completions, outside of their groups.
  If it judges each completion by itself, say so:

      from unmask.rewards import per_completion

      {how}

  If it compares the completions of a prompt, use a method that scores finished completions only, such as \
method.type=diffu_grpo."""


def _distinct(rows: Sequence[Row], completions: Sequence[str]) -> dict[tuple[int, str], int]:
    """The first place of each text of each row."""
    places: dict[tuple[int, str], int] = {}
    for place, (row, text) in enumerate(zip(rows, completions, strict=True)):
        places.setdefault((id(row), text), place)
    return places


def _groups(rows: Sequence[Row]) -> list[Part]:
    """The stretches of completions that answer the same row."""
    starts = [i for i, row in enumerate(rows) if i == 0 or row is not rows[i - 1]]
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True)]


def _copied(value: Any) -> Any:
    """A deep copy; of values that cannot be changed, themselves."""
    return value if isinstance(value, str | int | float | None) else copy.deepcopy(value)


def by_name(functions: Iterable[tuple[str, RewardFunc | Isolated]]) -> dict[str, RewardFunc | Isolated]:
    """Reward functions by name.

    Raises:
        ConfigError: two of one name.
    """
    named: dict[str, RewardFunc | Isolated] = {}
    for name, function in functions:
        if name in named:
            raise ConfigError(f'two reward functions are called "{name}", under which its mean is logged. Rename one.')
        named[name] = function
    return named


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
    """A scorer of reward functions: those of other people in worker processes, our own in this one.

    Args:
        functions: as objects or paths.
        default: the functions to use where there are none, a task's own.
        weights: one for each; default 1.
        timeout: seconds that one call may take.
        workers: processes for each function; 0 runs all in this process.
        item_timeout: seconds for one completion in a worker process.
        group_size: see `Scorer`.
        calling: see `Scorer`.

    Raises:
        ConfigError: a function that cannot be loaded, two of one name, or none at all.
    """

    def made(function: str | RewardFunc) -> tuple[str, RewardFunc | Isolated]:
        path = function if isinstance(function, str) else _path_of(function)
        # The package's own are fast and raise on no text, so they need no process.
        if path and workers and not path.startswith(OWN):
            isolated = Isolated(path, workers, timeout, item_timeout)
            return isolated.name, isolated
        return load_reward(function) if isinstance(function, str) else (name_of(function), function)

    return Scorer(by_name(map(made, functions)) if functions else default, weights, timeout, group_size, calling)


def _is_own(function: RewardFunc) -> bool:
    """Whether a function, or the class of a callable object, is the package's own."""
    return f"{getattr(function, '__module__', None)}:".startswith(OWN)


def _path_of(function: RewardFunc) -> str | None:
    """The path under which a worker finds a function that is given as an object, or None: closures, lambdas, notebooks' own."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not (module and name) or module == "__main__" or getattr(sys.modules.get(module), "__file__", None) is None:
        return None
    if getattr(sys.modules[module], name, None) is not function:
        return None
    # Another process cannot import a module that was read from a file by path; it reads the file.
    is_read = module.startswith(FILE_MODULE)
    return f"{sys.modules[module].__file__ if is_read else module}:{name}"

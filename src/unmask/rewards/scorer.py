"""Rewards of completions: which completions a function sees in one call, and the weighted sum.

As in TRL, a function receives whole groups of finished completions, in order and with repeated
texts. (A group is all completions of a prompt.) A function that judges each completion
independently receives equal texts of a row only once. If the method needs it, this function
receives unfinished completions, too. For example, EGSPO-SA needs the rewards of a completion and of
its K one-step completions, and late in training most of these texts are equal.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from unmask.core.counter import Counter
from unmask.core.errors import ConfigError, DataError
from unmask.core.records import Row
from unmask.rewards.isolated import Isolated, Part
from unmask.rewards.local import Local
from unmask.rewards.protocol import RewardFunc, completion_for

logger = logging.getLogger("unmask")


@dataclass(frozen=True, slots=True)
class Rewards:
    """Rewards of B completions."""

    total: list[float]
    """Weighted sum over the functions for each completion; None counts as 0."""
    by_function: dict[str, list[float | None]]
    """Rewards of the completions by the name of the function."""
    reasons: dict[str, dict[str, list[bool]]] = field(default_factory=dict)
    """For each function and each of its declared reasons: True for the completions with that
    reason."""


class Scorer(Counter):
    """Reward functions and their weights, called on groups of completions.

    `count` is the number of completions judged. Equal texts of a row count once if all functions
    judge completions independently.

    Args:
        functions: reward functions by the name under which their mean is logged.
        weights: one weight for each function; default 1.
        timeout: seconds that one call of a function in this process may take.
        group_size: number of completions of a prompt that a function sees together in training.
        calling: function called before each call of a reward function, so that the caller can
            report that it is alive.

    Raises:
        ConfigError: there is no function, or the number of weights differs from the number of
            functions.
    """

    def __init__(
        self,
        functions: Mapping[str, RewardFunc | Isolated],
        weights: Sequence[float] = (),
        timeout: float = 60.0,
        group_size: int = 1,
        calling: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        if not functions:
            raise ConfigError("there is no reward function, because the task has none. Set reward_funcs.")
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
        self._known: dict[tuple[str, int, str], float | None] = {}
        self._known_rows: list[Row] = []
        self._has_warned = False

    @property
    def judges_each(self) -> bool:
        """Return True if every function declares that it judges each completion independently."""
        return all(function.judges_each for function in self.functions.values())

    def close(self) -> None:
        """End the worker processes; another call starts them again."""
        for function in self.functions.values():
            function.close()

    def check_columns(self, row: Row) -> None:
        """Reject rows that lack a required column, or that have a column named like an argument.

        Raises:
            DataError: names the function, the missing column and the available columns.
        """
        for reserved in ("prompts", "completions"):
            if reserved in row:
                raise DataError(
                    f'the rows have a column "{reserved}", but reward functions already have an argument of that name. '
                    "Rename the column."
                )
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
        """Reject functions that cannot judge the unfinished completions of a method.

        Args:
            method: name of the method in the error message.

        Raises:
            ConfigError: names the function and the remedy.
        """
        for name, function in self.functions.items():
            if not function.judges_each:
                how = f"@per_completion\n      def {name}(...):"
                if not name.isidentifier():
                    how = "reward_funcs=per_completion(...)"
                raise ConfigError(_UNDECLARED.format(name=name, method=method, how=how))

    def __call__(self, rows: Sequence[Row], completions: Sequence[str]) -> Rewards:
        """Return the rewards of finished completions, one for each row.

        Completions of a group are adjacent.

        Raises:
            RewardError: a function raised, took too long, or did not return a number or None for
                each completion.
        """
        self._known, self._known_rows = {}, list(rows)
        return self._rewards(rows, completions)

    def unfinished(self, rows: Sequence[Row], completions: Sequence[str]) -> Rewards:
        """Return the rewards of one-step completions or branches of the rows in the last call.

        A one-step completion is a state with all masked positions filled at once, and a branch is
        another completion of a state. Texts that already have a reward from the last call are not
        judged again.

        Raises:
            RewardError: as for finished completions.
        """
        self.check_unfinished("this method")
        self._known_rows += rows
        return self._rewards(rows, completions)

    def single(self, rows: Sequence[Row], completions: Sequence[str]) -> Rewards:
        """Return the rewards of one finished completion for each row, as in an evaluation.

        A function that compares the completions of a group sees a group of `group_size` equal
        completions.

        Raises:
            RewardError: as for groups of completions.
        """
        copies = 1 if self.judges_each else self.group_size
        rewards = self(
            [row for row in rows for _ in range(copies)], [text for text in completions for _ in range(copies)]
        )
        return Rewards(
            rewards.total[::copies],
            {name: values[::copies] for name, values in rewards.by_function.items()},
            {name: {r: h[::copies] for r, h in reasons.items()} for name, reasons in rewards.reasons.items()},
        )

    def _rewards(self, rows: Sequence[Row], completions: Sequence[str]) -> Rewards:
        first_index = _first_index(rows, completions)
        is_known = [all((name, *key) in self._known for name in self.functions) for key in first_index]
        self.count += (len(first_index) - sum(is_known)) if self.judges_each else len(completions)
        by_function, reasons = {}, {}
        for name, function in self.functions.items():
            if function.judges_each:
                rewards = self._call_once(name, function, first_index, rows, completions)
            else:
                rewards = self._call(function, rows, completions, _groups(rows))
            by_function[name] = rewards
            reasons[name] = {
                reason: [getattr(value, "reason", None) == reason for value in rewards] for reason in function.reasons
            }
        if completions:
            self._warn_of_none(by_function, completions)
        total = [
            sum(w * (value or 0.0) for w, value in zip(self.weights, values, strict=True))
            for values in zip(*by_function.values(), strict=True)
        ]
        return Rewards(total, by_function, reasons)

    def _call_once(
        self,
        name: str,
        function: Isolated | Local,
        first_index: Mapping[tuple[int, str], int],
        rows: Sequence[Row],
        completions: Sequence[str],
    ) -> list[float | None]:
        """Return the rewards of a function that judges each text independently. The function is
        called only for texts without a stored reward."""
        new = {key: index for key, index in first_index.items() if (name, *key) not in self._known}
        rewards = self._call(
            function,
            [rows[index] for index in new.values()],
            [completions[index] for index in new.values()],
            [range(i, i + 1) for i in range(len(new))],
        )
        self._known |= {(name, *key): reward for key, reward in zip(new, rewards, strict=True)}
        return [self._known[name, id(row), text] for row, text in zip(rows, completions, strict=True)]

    def _call(
        self, function: Isolated | Local, rows: Sequence[Row], completions: Sequence[str], parts: Sequence[Part]
    ) -> list[float | None]:
        if not completions:
            return []
        # Each completion has its own copies, so a function cannot change the arguments of another
        # call.
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
                "every reward function (%s) returned None for %d of %d completions. None means that a function does not "
                "apply; a completion to which no function applies has reward 0. The first: %r",
                ", ".join(by_function),
                sum(is_none),
                len(is_none),
                completions[is_none.index(True)][:80],
            )


_UNDECLARED = """{method} also scores unfinished completions, one by one and without the rest of their group. This \
needs a reward function that judges each completion independently, and "{name}" does not declare that it does.
  If it judges each completion independently, declare it:

      from unmask.rewards import per_completion

      {how}

  If it compares the completions of a prompt, use a method that needs finished completions only, such as \
method.type=diffu_grpo."""


def _first_index(rows: Sequence[Row], completions: Sequence[str]) -> dict[tuple[int, str], int]:
    """Return the index of the first completion for each pair of row and text."""
    first_index: dict[tuple[int, str], int] = {}
    for index, (row, text) in enumerate(zip(rows, completions, strict=True)):
        first_index.setdefault((id(row), text), index)
    return first_index


def _groups(rows: Sequence[Row]) -> list[Part]:
    """Return the ranges of adjacent completions that answer the same row."""
    starts = [i for i, row in enumerate(rows) if i == 0 or row is not rows[i - 1]]
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True)]


def _copied(value: Any) -> Any:
    """Return a deep copy of a value, or the value itself if it cannot be changed."""
    return value if isinstance(value, str | int | float | None) else copy.deepcopy(value)

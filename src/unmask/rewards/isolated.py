"""Reward functions in worker processes. A completion on which a function hangs or crashes loses
only its own reward.

The first call receives whole groups (a group is all completions of a prompt). If that call fails,
the function is called on each part separately, to find the cause. A part is one completion if the
function judges each completion independently, and one group otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter
from typing import Any

from unmask.core.errors import ConfigError, RewardError
from unmask.rewards.protocol import Score
from unmask.rewards.workers import WorkerOutcome, Workers

START_SECONDS = 900.0
"""Seconds that a process may take to import a reward function, which may load a model."""

Part = range
"""Indices of adjacent completions in a call."""

_KINDS = (
    Parameter.POSITIONAL_ONLY,
    Parameter.POSITIONAL_OR_KEYWORD,
    Parameter.VAR_POSITIONAL,
    Parameter.KEYWORD_ONLY,
    Parameter.VAR_KEYWORD,
)

logger = logging.getLogger("unmask")


class Isolated:
    """A reward function that runs in its own processes.

    The training process does not import it. The first worker reports its parameters and
    declarations.

    Args:
        path: path of the function, as `package.module:function` or `file.py:function`.
        num: number of processes. A call is split between them only if the function judges each
            completion independently.
        timeout: seconds that one call may take.
        item_timeout: seconds for each completion of a call if the function judges each completion
            independently; otherwise, seconds for one group that is called separately.

    Raises:
        ConfigError: the function does not exist, or its module cannot be imported.
    """

    def __init__(self, path: str, num: int, timeout: float, item_timeout: float) -> None:
        self.name = path.rpartition(":")[2]
        self.num, self.timeout, self.item_timeout = num, timeout, item_timeout
        self._workers = Workers(path, num, timeout, kind="reward", start_seconds=START_SECONDS)
        try:
            facts = self._workers.facts()
        except ConfigError:
            self.close()
            raise
        self.parameters = {
            name: Parameter(name, _KINDS[kind], default=Parameter.empty if is_required else None)
            for name, kind, is_required in facts["parameters"]
        }
        self.judges_each: bool = facts["judges_each"]
        self.reasons = with_timeout(facts["reasons"])
        self._has_returned = self._has_warned = False

    def __call__(
        self, arguments: Mapping[str, Sequence[Any]], parts: Sequence[Part], calling: Callable[[], None]
    ) -> list[float | None]:
        """Return one reward for each completion. If a part does not return, its completions get 0
        with the reason "timeout".

        Args:
            arguments: columns, each as long as all parts together.
            parts: smallest ranges that may be called separately.
            calling: function called before each round of calls, so that the caller can report that
                it is alive.

        Raises:
            RewardError: the function raised, returned something other than rewards, or has never
                returned.
        """
        wholes = _merged(parts, self.num if self.judges_each else 1)
        calling()
        outcomes = dict(zip(wholes, self._outcomes(arguments, wholes, is_whole=True), strict=True))
        failed = [whole for whole in wholes if outcomes[whole].failure]
        suspects = [part for part in parts if part not in outcomes and any(part.start in whole for whole in failed)]
        if suspects:
            calling()
            outcomes |= dict(zip(suspects, self._outcomes(arguments, suspects), strict=True))
        rewards: list[float | None] = [Score(0.0, "timeout")] * sum(map(len, parts))
        for part, outcome in outcomes.items():
            if not outcome.failure:
                rewards[part.start : part.stop] = map(_reward, outcome.value)
        self._has_returned |= any(not outcome.failure for outcome in outcomes.values())
        if failed:
            self._report_losses(outcomes, parts, arguments)
        return rewards

    def close(self) -> None:
        """End the processes; another call starts them again."""
        self._workers.close()

    def _outcomes(
        self, arguments: Mapping[str, Sequence[Any]], parts: Sequence[Part], is_whole: bool = False
    ) -> list[WorkerOutcome]:
        """Call the function once for each part and return the outcomes."""
        calls = [{name: values[part.start : part.stop] for name, values in arguments.items()} for part in parts]
        outcomes = self._workers.map(calls, self.timeout, [self._limit(part, is_whole) for part in parts])
        for outcome in outcomes:
            if outcome.failure == "error":
                raise RewardError(outcome.message)
        return outcomes

    def _limit(self, part: Part, is_whole: bool) -> float:
        """Return the number of seconds that a call with these completions may take."""
        if self.judges_each:
            return min(self.timeout, self.item_timeout * len(part))
        return self.timeout if is_whole else min(self.timeout, self.item_timeout)

    def _report_losses(
        self, outcomes: Mapping[Part, WorkerOutcome], parts: Sequence[Part], arguments: Mapping[str, Sequence[Any]]
    ) -> None:
        """Warn about the first loss; raise if the function has never returned."""
        lost = [part for part in parts if part in outcomes and outcomes[part].failure]
        count, total = sum(map(len, lost)), sum(map(len, parts))
        died = any(outcome.failure == "crash" for outcome in outcomes.values())
        if not self._has_returned and len(parts) > 1:
            limit = self._limit(range(total), is_whole=True)
            setting = "reward_timeout" if limit == self.timeout else "reward_item_timeout"
            what = "ended its process" if died else f"did not return within {limit:g} s"
            advice = "Call it on its own to see why." if died else f"Make it faster, or raise {setting}."
            raise RewardError(f'reward function "{self.name}" {what} for {total} completions. {advice}')
        if lost and not self._has_warned:
            self._has_warned = True
            shown = str(arguments.get("completions", [""] * total)[lost[0].start])[:80]
            logger.warning(
                'reward function "%s" %s for %d of %d completions, which score 0 and count in rewards/%s/timeout. The first: %r',
                self.name,
                "ended its process" if died else "did not return in time",
                count,
                total,
                self.name,
                shown,
            )


def with_timeout(reasons: Sequence[str]) -> tuple[str, ...]:
    """Return "timeout", the reason of lost completions, and then the reasons of a function."""
    return tuple(dict.fromkeys(("timeout", *reasons)))


def _merged(parts: Sequence[Part], count: int) -> list[Part]:
    """Join adjacent parts into at most `count` ranges with nearly equal numbers of parts."""
    size = -(-len(parts) // count) or 1
    groups = [parts[start : start + size] for start in range(0, len(parts), size)]
    return [range(group[0].start, group[-1].stop) for group in groups]


def _reward(value: Any) -> float | None:
    """Restore a reward that has been converted to JSON."""
    return Score(value["score"], value["reason"]) if isinstance(value, dict) else value

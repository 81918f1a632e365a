"""Reward functions in worker processes: a completion that makes one hang or die costs its own reward, and nothing else.

A function is called with whole groups, all in one call. Only where that call does not return are the parts of it called by
themselves, to find those that are to blame: each completion, of a function that judges each by itself, or each group.
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
"""What a process may take to import a reward function, which may load a model."""

Part = range
"""Places of completions that stand side by side in a call."""

_KINDS = (
    Parameter.POSITIONAL_ONLY,
    Parameter.POSITIONAL_OR_KEYWORD,
    Parameter.VAR_POSITIONAL,
    Parameter.KEYWORD_ONLY,
    Parameter.VAR_KEYWORD,
)

logger = logging.getLogger("unmask")


class Isolated:
    """A reward function that runs in processes of its own.

    The training process does not import it: name, parameters and declarations come from the first worker.

    Args:
        path: the function, as `package.module:function` or `file.py:function`.
        num: processes. Only a function that judges each completion by itself has its calls split between several.
        timeout: seconds that one call may take.
        item_timeout: seconds for each completion of a function that judges each by itself, and for a group called by itself.

    Raises:
        ConfigError: there is no such function, or its module cannot be imported.
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
        self._has_returned = self._is_told = False

    def __call__(
        self, arguments: Mapping[str, Sequence[Any]], parts: Sequence[Part], calling: Callable[[], None]
    ) -> list[float | None]:
        """Return one reward for each completion: 0 for the reason "timeout" where a part did not come back.

        Args:
            arguments: columns as long as the parts together.
            parts: what may be called by itself.
            calling: called before each round of calls, for watchdogs.

        Raises:
            RewardError: the function raised, returned something else than rewards, or has never yet come back for any part.
        """
        wholes = _joined(parts, self.num if self.judges_each else 1)
        calling()
        outcomes = dict(zip(wholes, self._asked(arguments, wholes, is_whole=True), strict=True))
        failed = [whole for whole in wholes if outcomes[whole].failure]
        suspects = [part for part in parts if part not in outcomes and any(part.start in whole for whole in failed)]
        if suspects:
            calling()
            outcomes |= dict(zip(suspects, self._asked(arguments, suspects), strict=True))
        rewards: list[float | None] = [Score(0.0, "timeout")] * sum(map(len, parts))
        for part, outcome in outcomes.items():
            if not outcome.failure:
                rewards[part.start : part.stop] = map(_reward, outcome.value)
        self._has_returned |= any(not outcome.failure for outcome in outcomes.values())
        if failed:
            self._tell(outcomes, parts, arguments)
        return rewards

    def close(self) -> None:
        """End the processes; a further call starts them again."""
        self._workers.close()

    def _asked(
        self, arguments: Mapping[str, Sequence[Any]], parts: Sequence[Part], is_whole: bool = False
    ) -> list[WorkerOutcome]:
        """The outcomes of calls with one part each."""
        calls = [{name: values[part.start : part.stop] for name, values in arguments.items()} for part in parts]
        outcomes = self._workers.map(calls, self.timeout, [self._limit(part, is_whole) for part in parts])
        for outcome in outcomes:
            if outcome.failure == "error":
                raise RewardError(outcome.message)
        return outcomes

    def _limit(self, part: Part, is_whole: bool) -> float:
        """Seconds that a call with these completions may take."""
        if self.judges_each:
            return min(self.timeout, self.item_timeout * len(part))
        return self.timeout if is_whole else min(self.timeout, self.item_timeout)

    def _tell(
        self, outcomes: Mapping[Part, WorkerOutcome], parts: Sequence[Part], arguments: Mapping[str, Sequence[Any]]
    ) -> None:
        """Warn of the first loss; raise where the function has never returned, so that no completion is to blame."""
        lost = [part for part in parts if part in outcomes and outcomes[part].failure]
        count, total = sum(map(len, lost)), sum(map(len, parts))
        died = any(outcome.failure == "crash" for outcome in outcomes.values())
        if not self._has_returned and len(parts) > 1:
            limit = self._limit(range(total), is_whole=True)
            setting = "reward_timeout" if limit == self.timeout else "reward_item_timeout"
            what = "ended its process" if died else f"did not return within {limit:g} s"
            advice = "Run it by itself to see why." if died else f"Make it faster, or raise {setting}."
            raise RewardError(f'reward function "{self.name}" {what} for {total} completions. {advice}')
        if lost and not self._is_told:
            self._is_told = True
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
    """The reasons that a function reports, and "timeout", for a completion on which it does not return."""
    return tuple(dict.fromkeys(("timeout", *reasons)))


def _joined(parts: Sequence[Part], count: int) -> list[Part]:
    """At most `count` stretches of parts, of nearly the same number of parts each."""
    size = -(-len(parts) // count) or 1
    groups = [parts[start : start + size] for start in range(0, len(parts), size)]
    return [range(group[0].start, group[-1].stop) for group in groups]


def _reward(value: Any) -> float | None:
    """A reward as it was before it went through JSON."""
    return Score(value["score"], value["reason"]) if isinstance(value, dict) else value

"""Monty first; what full CPython may judge differently is run again in bubblewrap."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence

from unmask.core.errors import ConfigError
from unmask.rewards.sandbox.base import Result, Sandbox, SandboxConfig, SandboxJob, Verdict
from unmask.rewards.sandbox.bubblewrap import Bubblewrap
from unmask.rewards.sandbox.monty import MontySandbox

SHARE_FOR_SLOW = 0.5
"""Part of the time of a batch after which programs that are too slow for monty are not run again. Monty is three to four times
as slow as CPython, so some of them are right; but most hang, and would hang again."""


class Auto(Sandbox):
    """Fast where that is enough, full CPython where it is not. Without bubblewrap it warns once, and is monty.

    A program is run again unless it passed, or failed in a way that does not depend on the interpreter: a wrong value, a name
    that nobody defines, a text that is no Python. The second runs begin when all first ones have ended and stop at the end of
    the batch's time, so they take nothing away from other programs.
    """

    def __init__(self, config: SandboxConfig) -> None:
        super().__init__(config)
        self.first = MontySandbox(config)
        self.second: Bubblewrap | None = None
        try:
            self.second = Bubblewrap(config)
        except ConfigError as error:
            warnings.warn(f"programs that monty does not support stay unsupported: {error}", stacklevel=2)

    def run_until(self, jobs: Sequence[SandboxJob], end: float) -> list[Result]:
        """Monty's results, and bubblewrap's in place of those that may differ; those that only were too slow come last."""
        begin = time.monotonic()
        results = self.first.run_until(jobs, end)
        if self.second is None:
            return results
        doubtful = [i for i, result in enumerate(results) if result.may_differ]
        slow = [i for i in doubtful if results[i].status == "timed_out"]
        others = [i for i in doubtful if results[i].status != "timed_out"]
        middle = end if math.isinf(end) else begin + SHARE_FOR_SLOW * (end - begin)
        for chosen, until in ((others, end), (slow, middle)):
            again = self.second.run_until([jobs[i] for i in chosen], until)
            for i, result in zip(chosen, again, strict=True):
                results[i] = result if result.was_run or i in others else results[i]
        return results

    def run_one(self, job: SandboxJob, end: float = math.inf) -> Result:
        """The result of one job, of which no test is begun after `end` on the monotonic clock."""
        return self.run_until([job], end)[0]

    def verdicts(self, job: SandboxJob, end: float) -> list[Verdict]:
        """The verdicts of one job."""
        return list(self.run_until([job], end)[0].verdicts)

    def close(self) -> None:
        """End monty's workers."""
        self.first.close()

"""Sandbox that combines monty and bubblewrap.

It runs a program in monty (a restricted Python interpreter), and runs it again in bubblewrap with
full CPython if CPython might give another result.
"""

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
"""Share of a batch's time after which programs that are too slow for monty do not run again.

Monty takes three to four times as long as CPython, so some of these programs are correct. Most of
them hang, and would hang again."""


class Auto(Sandbox):
    """Sandbox that runs all programs in monty, which is fast, and some again in full CPython.

    If bubblewrap is not available, this sandbox warns once and uses only monty.

    A program runs again unless it passed, or failed in a way that does not depend on the
    interpreter: a wrong value, an undefined name, or a syntax error. The second runs start after
    all first runs, and stop at the end of the batch's time, so they take no time from other
    programs.
    """

    def __init__(self, config: SandboxConfig) -> None:
        super().__init__(config)
        self.first = MontySandbox(config)
        self.second: Bubblewrap | None = None
        try:
            self.second = Bubblewrap(config)
        except ConfigError as error:
            warnings.warn(f"programs that monty does not support cannot be judged: {error}", stacklevel=2)

    def run_until(self, jobs: Sequence[SandboxJob], end: float) -> list[Result]:
        """Return the results of monty, or of bubblewrap where they may differ.

        Programs that are too slow for monty run last.
        """
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
        """Return the result of one job; no test starts after `end` on the monotonic clock."""
        return self.run_until([job], end)[0]

    def verdicts(self, job: SandboxJob, end: float) -> list[Verdict]:
        """Return the verdicts of one job."""
        return list(self.run_until([job], end)[0].verdicts)

    def close(self) -> None:
        """End monty's workers."""
        self.first.close()

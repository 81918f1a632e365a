"""Monty first; what it does not support is run again in bubblewrap."""

from __future__ import annotations

import warnings

from unmask.errors import ConfigError
from unmask.sandbox.base import Job, Sandbox, SandboxConfig, Verdict
from unmask.sandbox.bubblewrap import Bubblewrap
from unmask.sandbox.monty import MontySandbox


class Auto(Sandbox):
    """Fast where that is enough, full CPython where it is not. Without bubblewrap it warns once, and is monty."""

    def __init__(self, config: SandboxConfig) -> None:
        super().__init__(config)
        self.first = MontySandbox(config)
        self.second: Bubblewrap | None = None
        try:
            self.second = Bubblewrap(config)
        except ConfigError as error:
            warnings.warn(f"programs that monty does not support stay unsupported: {error}", stacklevel=2)

    def verdicts(self, job: Job, end: float) -> list[Verdict]:
        """Monty's verdicts, or bubblewrap's for all tests where monty lacks something in one."""
        found = self.first.verdicts(job, end)
        if self.second is None or all(verdict.status != "unsupported" for verdict in found):
            return found
        return self.second.verdicts(job, end)

    def close(self) -> None:
        """End monty's workers."""
        self.first.close()

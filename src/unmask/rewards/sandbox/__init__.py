"""Running untrusted programs against tests: one protocol, and backends from a small interpreter to full CPython."""

from __future__ import annotations

import atexit
from functools import lru_cache

from unmask.rewards.sandbox.base import Result, Sandbox, SandboxConfig, SandboxJob, Status, Verdict

__all__ = ["SandboxJob", "Result", "Sandbox", "SandboxConfig", "Status", "Verdict", "make_sandbox"]


@lru_cache(maxsize=8)
def make_sandbox(config: SandboxConfig) -> Sandbox:
    """The sandbox that a configuration describes; one for equal configurations, so that its workers are kept.

    Raises:
        ConfigError: its backend is not installed, or cannot work here.
    """
    sandbox = _backend(config.backend)(config)
    atexit.register(sandbox.close)
    return sandbox


def _backend(name: str) -> type[Sandbox]:
    match name:
        case "monty":
            from unmask.rewards.sandbox.monty import MontySandbox

            return MontySandbox
        case "bubblewrap":
            from unmask.rewards.sandbox.bubblewrap import Bubblewrap

            return Bubblewrap
        case "auto":
            from unmask.rewards.sandbox.auto import Auto

            return Auto
    from unmask.rewards.sandbox.unprotected import Unprotected

    return Unprotected

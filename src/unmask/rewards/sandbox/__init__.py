"""Sandboxes that test untrusted programs, in a small interpreter or in full CPython."""

from __future__ import annotations

import atexit
from functools import lru_cache

from unmask.rewards.sandbox.base import Result, Sandbox, SandboxConfig, SandboxJob, Status, Verdict

__all__ = ["SandboxJob", "Result", "Sandbox", "SandboxConfig", "Status", "Verdict", "make_sandbox"]


@lru_cache(maxsize=8)
def make_sandbox(config: SandboxConfig) -> Sandbox:
    """Return the sandbox that a configuration describes.

    Equal configurations share a sandbox, so that its workers stay alive.

    Raises:
        ConfigError: the backend is not installed or cannot work on this machine.
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

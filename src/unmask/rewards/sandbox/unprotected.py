"""No sandbox: an ordinary process of this user, with limits that stop accidents but not malice."""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unmask.rewards.sandbox.base import SandboxConfig
from unmask.rewards.sandbox.processes import Pipes, ProcessSandbox, Role, interpreter_flags


class Unprotected(ProcessSandbox):
    """Full CPython without protection, for programs that a person has checked.

    Creating this sandbox logs a warning.
    """

    def __init__(self, config: SandboxConfig) -> None:
        super().__init__(config)
        warnings.warn(
            "sandbox.backend = none runs what the model writes with all rights of this user: it can read and delete files "
            "and use the network. Use monty or bubblewrap for programs that nobody has read.",
            stacklevel=2,
        )

    @contextmanager
    def command(self, role: Role, pipes: Pipes, packages: str) -> Iterator[tuple[list[str], list[int], dict[str, Any]]]:
        flags = interpreter_flags(pipes, str(Path(__file__).parent), role)
        options = {"env": {"OPENBLAS_NUM_THREADS": "1"}, "cwd": tempfile.gettempdir()}
        yield [sys.executable, *flags], [], options

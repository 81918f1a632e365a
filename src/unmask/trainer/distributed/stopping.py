"""Signals that end a run in good order: finish the step, save, and say how to go on."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from unmask.core.errors import RunError


class RunStoppedError(RunError):
    """The run was asked to stop; it finished its step and saved. All processes do so after the same step."""

    is_agreed = True

    def __init__(self, step: int, num_steps: int, folder: Path, signal_number: int) -> None:
        super().__init__(
            f"stopped after step {step} of {num_steps}; everything is in {folder}. To continue, give the same command again"
        )
        self.needs_resume = True
        """Whether that command has to be given with --resume."""
        self.signal_number = signal_number
        # The shell's convention for a process that a signal stopped.
        self.exit_code = 128 + signal_number

    def __str__(self) -> str:
        return f"{super().__str__()}{' with --resume' if self.needs_resume else ''}."


STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Signals that stop a run. A terminal that is closed sends SIGHUP; schedulers send SIGUSR1 some time before the end of a job,
where they are asked to."""


class StopSignals:
    """While it is open, a signal of `STOPPING` is noted, and a second one of its kind ends the process at once.

    A SIGHUP that is ignored stays ignored, as nohup wants it.
    """

    def __init__(self) -> None:
        self.asked = 0
        """Number of the signal that came; 0 before."""
        self._previous: dict[int, Any] = {}
        self._terminals: list[int] = []

    def __enter__(self) -> StopSignals:
        # Handlers can only be set by the main thread; elsewhere the caller owns the signals.
        if threading.current_thread() is threading.main_thread():
            self._terminals = [number for number in (0, 1, 2) if os.isatty(number)]
            for number in STOPPING:
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        self.asked = number
        signal.signal(number, self._previous[number])
        if number == signal.SIGHUP:
            self._leave_terminal()

    def _leave_terminal(self) -> None:
        """Write to nowhere instead of to a terminal that is gone, which would raise before the step is saved."""
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number in self._terminals:
            os.dup2(nowhere, number)
        os.close(nowhere)

"""SIGINT, SIGTERM and SIGUSR1: finish the step, save, and say how to go on."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from unmask.errors import RunError


class RunStoppedError(RunError):
    """The run was asked to stop; it finished its step and saved. All processes do so after the same step."""

    is_agreed = True

    def __init__(self, step: int, num_steps: int, folder: Path, signal_number: int) -> None:
        super().__init__(
            f"stopped after step {step} of {num_steps}; everything is in {folder}. "
            "To go on: the same command with --resume (`unmask demo` needs none)."
        )
        self.signal_number = signal_number
        # The shell's convention for a process that a signal stopped.
        self.exit_code = 128 + signal_number


class StopSignals:
    """While open, a SIGINT, SIGTERM or SIGUSR1 is noted, and a second one of its kind ends the process at once.

    Schedulers send SIGUSR1 some time before the end of a job, where they are asked to.
    """

    def __init__(self) -> None:
        self.asked = 0
        """Number of the signal that came; 0 before."""
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        # Handlers can only be set by the main thread; elsewhere the caller owns the signals.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                self._previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        self.asked = number
        signal.signal(number, self._previous[number])

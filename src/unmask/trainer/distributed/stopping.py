"""Handling of signals that stop a run. The run finishes its training step, saves a checkpoint and
says how to continue."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from unmask.core.errors import RunError


class RunStoppedError(RunError):
    """A signal stopped the run after a training step, and the run saved a checkpoint. All ranks
    raise it after the same step.

    Args:
        step: number of finished training steps.
        num_steps: number of training steps of the whole run.
        folder: run folder.
        signal_number: the signal.
        needs_resume: True if the same command continues only with --resume.
    """

    def __init__(
        self, step: int, num_steps: int, folder: Path, signal_number: int, *, needs_resume: bool = True
    ) -> None:
        super().__init__(
            f"stopped after step {step} of {num_steps}; everything is in {folder}. To continue, give the same command "
            f"again{' with --resume' if needs_resume else ''}.",
            agreed=True,
        )
        self.step, self.num_steps, self.folder, self.signal_number = step, num_steps, folder, signal_number
        # Shells report a process that a signal stopped with this exit code.
        self.exit_code = 128 + signal_number


STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Signals that stop a run. A terminal that is closed sends SIGHUP; a scheduler can send SIGUSR1
before a job ends."""


class StopSignals:
    """Records the first signal of `STOPPING` while the context is open; a second signal of the same
    kind ends the process immediately.

    If the process ignores SIGHUP, as under nohup, it continues to ignore it.
    """

    def __init__(self) -> None:
        self.received = 0
        """Number of the last signal; 0 if there was none."""
        self._previous: dict[int, Any] = {}
        self._terminals: list[int] = []

    def __enter__(self) -> StopSignals:
        # Only the main thread can set handlers. In another thread the caller handles signals.
        if threading.current_thread() is threading.main_thread():
            self._terminals = [number for number in (0, 1, 2) if os.isatty(number)]
            for number in STOPPING:
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        self.received = number
        signal.signal(number, self._previous[number])
        if number == signal.SIGHUP:
            self._leave_terminal()

    def _leave_terminal(self) -> None:
        """Discard all further output. Otherwise, writing to the closed terminal would raise an
        error before the checkpoint is saved."""
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number in self._terminals:
            os.dup2(nowhere, number)
        os.close(nowhere)

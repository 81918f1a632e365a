"""Display of a run's progress, which is a bar on a terminal or in a notebook, and one line for each
step in a pipe."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from unmask.core.text import visible
from unmask.runs.metrics import evaluations

if TYPE_CHECKING:
    from rich.console import RenderableType

SHOWN = ("loss", "reward", "frac_reward_zero_std", "grad_norm")
"""Metrics in the line of a training step, beside the accuracies."""
EXAMPLE_SHOWN = 200
"""Number of characters of the last completion that are shown."""


class ProgressView:
    """Observer for `Trainer` and `pretrain` that shows progress.

    A terminal and a notebook get a bar, numbers and the last completion; a pipe gets lines.

    Args:
        name: name of the command, such as train.
        total: number of training steps.
        console: console to print to.
    """

    def __init__(self, name: str, total: int, console: Console) -> None:
        self.console, self.total, self.name = console, total, name
        self._started, self._first = 0.0, -1
        self._accuracy = self._numbers = self._example = ""
        self._values: list[str] = []
        self._live: Live | None = None
        if console.is_terminal or _has_widgets(console):
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._bar.add_task(name, total=total)
            self._live = Live(self, console=console, refresh_per_second=4)

    def __rich__(self) -> RenderableType:
        lines = [Text(line, no_wrap=True, overflow="ellipsis") for line in (self._numbers, self._example) if line]
        return Group(self._bar, *lines)

    def __enter__(self) -> ProgressView:
        if self._live:
            with suppress(OSError):
                self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            with suppress(OSError):
                # In a notebook rich does not draw the last state by itself.
                self._live.refresh()
                self._live.stop()

    def __call__(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Show the metrics of a training step. An error of the terminal or pipe, which may have been
        closed, does not stop the run."""
        with suppress(OSError):
            self._show(step, metrics)

    def _show(self, step: int, metrics: Mapping[str, Any]) -> None:
        if self._first < 0:
            self._started, self._first = time.perf_counter(), step
        accuracy = accuracies(metrics)
        self._accuracy = accuracy or self._accuracy
        values = [f"{key} {metrics[key]:.3f}" for key in SHOWN if key in metrics]
        # The line of an evaluation holds accuracies only, so the numbers of the last step stay.
        self._values = values or self._values
        if self._live:
            self._bar.update(self._task, completed=step)
            self._numbers = "  ".join([*self._values[:2], *([self._accuracy] if self._accuracy else [])])
            if accuracy:
                self.console.print(f"{self.name} step {step}: {accuracy}", highlight=False)
            return
        spent = time.perf_counter() - self._started
        left = [f"{spent / (step - self._first) * (self.total - step):.0f} s left"] if step > self._first else []
        line = "  ".join([*values, *([accuracy] if accuracy else []), *left])
        self.console.print(f"{self.name} step {step}/{self.total}  {line}", highlight=False, soft_wrap=True)
        if accuracy and self._example:
            self.console.print(f"  {self._example}", highlight=False, soft_wrap=True, markup=False)

    def example(self, completion: str, reward: float) -> None:
        """Keep a completion of the current step, which is shown together with the next metrics.

        In a pipe, the completion is shown together with the next accuracies.
        """
        text = visible(" ".join(completion.split()))
        self._example = f"last completion, reward {reward:.3f}: {text[:EXAMPLE_SHOWN] or '(empty)'}"


def _has_widgets(console: Console) -> bool:
    """Check whether the console is a notebook with ipywidgets, which can update a display."""
    return console.is_jupyter and find_spec("ipywidgets") is not None


def accuracies(metrics: Mapping[str, Any]) -> str:
    """Return the accuracies among a step's metrics in words; empty if there are none."""
    shares = [
        f"{point.sampling} {point.accuracy:.3f}"
        + (f" in {point.forwards:.1f} forwards" if math.isfinite(point.forwards) else "")
        for point in evaluations(metrics)
    ]
    return ("solved: " + ", ".join(shares)) if shares else ""


@contextmanager
def progress(name: str, total: int, console: Console | None = None) -> Iterator[ProgressView]:
    """Open a `ProgressView` on standard error, so that standard output holds results only."""
    with ProgressView(name, total, console or Console(file=sys.stderr)) as view:
        yield view

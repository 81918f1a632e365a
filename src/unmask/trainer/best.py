"""The best checkpoint of a run, by accuracy on the validation split and on nothing else.

Released codes evaluate their last twenty checkpoints on the test set and report the best, sometimes another one for each
completion length. The best of many noisy numbers is too high: that is not done here. With `evaluation.split: validation`
the model of the best evaluation is kept in best/, beside final/; with `test` none is chosen.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from unmask.runs.metrics import FILE, evaluations, read_metrics

STEP, ACCURACY = "eval/best_step", "eval/best_accuracy"
"""Keys of the metrics that say which evaluation is the best so far."""


class Best(NamedTuple):
    """The best evaluation so far."""

    step: int
    accuracy: float

    def metrics(self) -> dict[str, Any]:
        """As the metrics of a step say it."""
        return {STEP: self.step, ACCURACY: self.accuracy}


def validation_accuracy(metrics: Mapping[str, Any]) -> float | None:
    """Mean over the temperatures of the validation accuracy; None where none was measured.

    Example:
        >>> validation_accuracy({"eval/validation@0/accuracy": 0.5, "eval/validation@0.9/accuracy": 0.25, "loss": 1.0})
        0.375
        >>> validation_accuracy({"eval/test@0/accuracy": 0.5}) is None
        True
    """
    values = [point.accuracy for point in evaluations(metrics) if point.split == "validation"]
    return statistics.fmean(values) if values else None


def better(best: Best | None, step: int, metrics: Mapping[str, Any]) -> Best | None:
    """The evaluation of `step` if it beats the best so far; of equals the earlier stays, which was trained less."""
    accuracy = validation_accuracy(metrics)
    if accuracy is None or (best is not None and accuracy <= best.accuracy):
        return None
    return Best(step, accuracy)


def best_of(lines: Iterable[Mapping[str, Any]]) -> Best | None:
    """The best evaluation among lines of metrics, so that a resumed run goes on from what it had found by then."""
    best = None
    for line in lines:
        best = better(best, int(line["step"]), line) or best
    return best


def best_in(run: Path) -> Best | None:
    """`best_of` the lines of a run's metrics.jsonl."""
    return best_of(read_metrics(run)) if (run / FILE).exists() else None

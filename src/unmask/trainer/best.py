"""The best model of a run, chosen only by its accuracy on the validation split.

Some published code evaluates the last twenty checkpoints on the test set and reports the best one,
sometimes a different one for each completion length. The best of many noisy accuracies
overestimates the true accuracy, so unmask does not choose a model on the test set. With
`evaluation.split: validation` the run saves the model of the best evaluation in best/, beside
final/. With `test`, the run does not choose a best model.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from unmask.runs.metrics import FILE, evaluations, read_metrics

STEP, ACCURACY = "eval/best_step", "eval/best_accuracy"
"""Keys of the metrics that describe the best evaluation so far."""


class Best(NamedTuple):
    """The best evaluation so far."""

    step: int
    """Number of training steps before the evaluation."""
    accuracy: float
    """Accuracy on the validation split, averaged over the sampling temperatures."""

    def metrics(self) -> dict[str, Any]:
        """Return this evaluation as metrics, under the keys `STEP` and `ACCURACY`."""
        return {STEP: self.step, ACCURACY: self.accuracy}


def validation_accuracy(metrics: Mapping[str, Any]) -> float | None:
    """Return the validation accuracy, averaged over the sampling temperatures; None if the metrics
    do not contain it.

    Example:
        >>> validation_accuracy({"eval/validation@0/accuracy": 0.5, "eval/validation@0.9/accuracy": 0.25, "loss": 1.0})
        0.375
        >>> validation_accuracy({"eval/test@0/accuracy": 0.5}) is None
        True
    """
    values = [point.accuracy for point in evaluations(metrics) if point.split == "validation"]
    return statistics.fmean(values) if values else None


def better(best: Best | None, step: int, metrics: Mapping[str, Any]) -> Best | None:
    """Return the evaluation after `step` training steps if it beats the best so far, otherwise
    None. If the two are equal, the earlier evaluation stays the best."""
    accuracy = validation_accuracy(metrics)
    if accuracy is None or (best is not None and accuracy <= best.accuracy):
        return None
    return Best(step, accuracy)


def best_of(lines: Iterable[Mapping[str, Any]]) -> Best | None:
    """Return the best evaluation among lines of metrics, from which a resumed run continues."""
    best = None
    for line in lines:
        best = better(best, int(line["step"]), line) or best
    return best


def best_in(run: Path) -> Best | None:
    """Return the best evaluation in the metrics of a run folder; None if there is none."""
    return best_of(read_metrics(run)) if (run / FILE).exists() else None

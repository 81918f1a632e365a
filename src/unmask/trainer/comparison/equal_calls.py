"""Accuracy of the methods at an equal number of reward calls, read off the curves of their runs."""

from __future__ import annotations

from collections.abc import Sequence

from unmask.trainer.comparison.jobs import Record
from unmask.trainer.comparison.recipe import BASE
from unmask.trainer.comparison.results import Mean, Results


def fewest_calls(results: Results, task: str) -> int | None:
    """Return the largest number of reward calls that every run on a task has made; None with fewer
    than two methods, or if a run did not record the calls at each evaluation, as in earlier
    versions."""
    methods = [method for method in results.methods(task) if method != BASE]
    curves = [_known(record) for method in methods for record in results.runs(task, method).values()]
    if len(methods) < 2 or any(not curve for curve in curves):
        return None
    return min(int(curve[-1]["reward_calls"]) for curve in curves)


def at_calls(results: Results, task: str, method: str, temperature: str, calls: int) -> Mean:
    """Return the mean accuracy of a method after a number of reward calls.

    The accuracy of a run lies on the straight line between its evaluations before and after this
    number of calls. The numbers of calls at the evaluations must be known.
    """
    runs = results.runs(task, method).values()
    values = [_interpolated(_known(record), temperature, calls) for record in runs]
    return Mean.of(values, 0.0, 1.0)


def _known(record: Record) -> Sequence[Record]:
    curve: Sequence[Record] = record.get("curve", [])
    return curve if all("reward_calls" in point for point in curve) else []


def _interpolated(curve: Sequence[Record], temperature: str, calls: int) -> float:
    import numpy as np

    positions = [point["reward_calls"] for point in curve]
    return float(np.interp(calls, positions, [point["accuracy"][temperature] for point in curve]))

"""Tests of the differences between methods, and intervals over seeds and examples."""

from __future__ import annotations

from dataclasses import dataclass

from unmask.functional.differences import cohens_d, holm, paired_t_test
from unmask.functional.hierarchical import hierarchical_interval
from unmask.functional.noise import named_generator
from unmask.trainer.comparison.results import Mean, Results

LEVEL = 0.05
"""Largest corrected p-value at which tables mark a difference."""

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference in accuracy between a method and a baseline on a task, paired by seed."""

    mean: Mean
    """Mean over the common seeds."""
    effect: float
    """Cohen's d of the paired differences; nan for a single seed."""
    p_value: float
    """Two-sided p-value of the paired t test; nan for a single seed."""
    corrected: float
    """P-value after Holm's correction for all differences of the comparison; nan for a single
    seed."""

    @property
    def is_marked(self) -> bool:
        """True if the corrected p-value is at most `LEVEL`."""
        return self.corrected <= LEVEL


def pairs(results: Results, task: str) -> list[tuple[str, str]]:
    """Return all pairs of a baseline and a method to compare with it. Two baselines form only one
    pair."""
    baselines = results.recipe.baselines
    return [
        (baseline, method)
        for i, baseline in enumerate(baselines)
        for method in results.recipe.methods
        if method not in baselines[: i + 1] and {method, baseline} <= set(results.methods(task))
    ]


class Statistics:
    """Differences between methods and baselines on all tasks and at all temperatures.

    Args:
        results: results of the comparison.
    """

    def __init__(self, results: Results) -> None:
        self._results = results
        self._intervals: dict[tuple[str, ...], Interval | None] = {}
        found = {
            (task, method, baseline, t): list(values.values())
            for task in results.recipe.tasks
            for baseline, method in pairs(results, task)
            for t in results.temperatures
            if (values := results.paired(task, method, baseline, "accuracy", t))
        }
        p_values = [paired_t_test(values) for values in found.values()]
        self._differences = {
            key: Difference(Mean.of(values, -1.0, 1.0), cohens_d(values), p_value, corrected)
            for (key, values), p_value, corrected in zip(found.items(), p_values, holm(p_values), strict=True)
        }

    @property
    def num_tests(self) -> int:
        """Number of differences that Holm's correction counts."""
        return sum(difference.p_value == difference.p_value for difference in self._differences.values())

    def difference(self, task: str, method: str, baseline: str, temperature: str) -> Difference | None:
        """Return the difference of a method from a baseline; None if they have no seed in common."""
        return self._differences.get((task, method, baseline, temperature))

    def interval(self, task: str, method: str, temperature: str, baseline: str = "") -> Interval | None:
        """Return the hierarchical bootstrap interval of an accuracy, or of its difference from that
        of a baseline.

        Returns:
            (lower, upper); None with fewer than two seeds, or if a run of an earlier version did not
            record the outcomes of its examples.
        """
        key = (task, method, temperature, baseline)
        if key not in self._intervals:
            values = self._results.outcomes(task, method, baseline, "accuracy", temperature)
            generator = named_generator(0, "bootstrap", *key)
            self._intervals[key] = hierarchical_interval(values, generator) if values and len(values) > 1 else None
        return self._intervals[key]

"""Tables of the differences between the methods of a comparison, and sentences on what they do not
show."""

from __future__ import annotations

from math import isnan

from unmask.report.tables import Table, marked, with_interval
from unmask.runs.metrics import temperature_name
from unmask.trainer.comparison.results import FEW_SEEDS, Results
from unmask.trainer.comparison.statistics import LEVEL, Difference, Statistics, pairs

CERTAIN = "*"
"""Mark of differences whose corrected p-value is at most `LEVEL`."""
MOST_NAMED = 3
"""Maximum number of methods that a sentence names."""


def table_of_differences(results: Results, statistics: Statistics, task: str) -> Table | None:
    """Return the table of the differences from the baselines; None without differences."""
    rows = [
        [_name(results, task, method, baseline), str(found[0].mean.number)]
        + [with_interval(one.mean, signed=True) + (f" {CERTAIN}" if one.is_marked else "") for one in found]
        for baseline, method, found in _all(results, statistics, task)
    ]
    columns = ["difference, paired by seed", "seeds", *(temperature_name(t) for t in results.temperatures)]
    return Table("", columns, rows) if rows else None


def table_of_tests(results: Results, statistics: Statistics, task: str) -> Table | None:
    """Return the table of p-values, effect sizes and bootstrap intervals of the differences; None if
    no difference rests on two or more seeds."""
    rows = [
        [_name(results, task, method, baseline), temperature_name(t), _number(difference.effect, "+.2f")]
        + [_p_value(difference.p_value), _p_value(difference.corrected)]
        + [f"{interval[0]:+.3f} to {interval[1]:+.3f}" if interval else ""]
        for baseline, method, found in _all(results, statistics, task)
        for t, difference in zip(results.temperatures, found, strict=True)
        if not isnan(difference.p_value)
        for interval in [statistics.interval(task, method, t, baseline)]
    ]
    columns = ["test, paired by seed", "evaluation", "Cohen's d", "p", "p, Holm", "bootstrap over seeds and examples"]
    table = Table("", columns, rows)
    # Earlier versions did not record the outcomes of examples.
    return (table if any(row[-1] for row in rows) else table.without(columns[-1])) if rows else None


def explanation(statistics: Statistics) -> str:
    """Return an explanation of the marks and tests; empty without tests."""
    if not statistics.num_tests:
        return ""
    return (
        f"Differences with {CERTAIN} have a p-value of at most {LEVEL:g} in the paired t test over seeds, after Holm's "
        f"correction for all {statistics.num_tests} differences of these tables. Cohen's d is the mean difference divided by the "
        "standard deviation of the differences over seeds. The bootstrap draws seeds, and examples within each seed."
    )


def undecided(results: Results, task: str) -> list[str]:
    """Return a sentence for each column of a task's table in which no method is certainly the
    best."""
    if (number := results.fewest_seeds_of(task)) < FEW_SEEDS:
        few = f"no method is called the best, because a line has only {number} seed{'s' if number > 1 else ''}"
        return (
            [f"**{task}: {few}.** Use at least {FEW_SEEDS}."]
            if results.leader(task, "accuracy", results.temperatures[0])[0]
            else []
        )
    sentences = []
    for t in results.temperatures:
        first, rivals = results.leader(task, "accuracy", t)
        if first is not None and rivals:
            more = f" and {len(rivals) - MOST_NAMED} more" if len(rivals) > MOST_NAMED else ""
            sentences.append(
                f"**{task}, {temperature_name(t)}: no method is certainly the best.** {first} has the largest mean, but the "
                f"95 % intervals of its differences from {', '.join(rivals[:MOST_NAMED])}{more} contain 0."
            )
    return sentences


def _all(results: Results, statistics: Statistics, task: str) -> list[tuple[str, str, list[Difference]]]:
    """Return baseline, method and the difference at each temperature of all pairs with a common
    seed."""
    found = []
    for baseline, method in pairs(results, task):
        of_pair = [statistics.difference(task, method, baseline, t) for t in results.temperatures]
        found += [(baseline, method, [one for one in of_pair if one is not None])] if None not in of_pair else []
    return found


def _name(results: Results, task: str, method: str, baseline: str) -> str:
    return f"{marked(results, task, method)} - {marked(results, task, baseline)}"


def _number(value: float, form: str) -> str:
    return "" if isnan(value) else f"{value:{form}}"


def _p_value(value: float) -> str:
    return "" if isnan(value) else "< 0.0001" if value < 1e-4 else f"{value:.4f}"

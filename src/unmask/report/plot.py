"""Figures of any metric of runs against steps or compute, for a paper: PNG, SVG, PDF, and the
numbers with their intervals.

Runs that differ only in their seed form one line: the mean over seeds with its 95 % Student-t
interval, cut to the range of the metric if that is known. The accuracy of a single run has the 95 %
Wilson interval that the run logged. Other metrics of a single run have no interval, and the label
states this.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, nan
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from unmask.core.errors import ConfigError, RunError, unknown_name
from unmask.core.settings import flat
from unmask.functional.intervals import cut, mean_interval
from unmask.report.figure_style import (
    MOST_BANDS,
    PANEL_WIDTH,
    SUFFIXES,
    check_target,
    draw_line,
    legend_below,
    line_style,
    panels,
    save_figure,
    save_table,
    tidy,
    with_bands,
    without_band,
    wrapped,
)
from unmask.report.runs import read_config
from unmask.runs.continued import FREE_TO_CHANGE
from unmask.runs.metrics import evaluation_of, evaluations, number_of, read_metrics, temperature_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Lines = list[dict[str, Any]]

X_AXES = {
    "step": ("training step", 1, ()),
    "token_passes": ("training compute, million token passes", 1e6, ("compute/token_passes",)),
    "reward_calls": ("thousand reward calls", 1e3, ("compute/reward_calls",)),
    "seconds": ("seconds of rollout and update", 1, ("time/rollout", "time/update")),
}
"""Quantities for the x axis. Each has a label, the unit of the label, and the metrics whose sum is
the quantity."""

_NOT_A_SETTING = FREE_TO_CHANGE | {"seed"}
"""Keys of a recipe in which the runs of one line may differ."""


@dataclass(frozen=True, slots=True)
class Series:
    """A metric of the runs of one recipe, with a point for each training step at which all runs
    have it."""

    label: str
    """Label of the recipe."""
    num_runs: int
    """Number of runs."""
    step: list[int]
    """Training step of each point."""
    x: list[float]
    """Position of each point on the x axis."""
    mean: list[float]
    """Mean over the runs at each point."""
    low: list[float]
    """Lower end of the interval at each point; nan if there is none."""
    high: list[float]
    """Upper end of the interval at each point; nan if there is none."""

    @property
    def has_interval(self) -> bool:
        """True if some point has an interval."""
        return any(value == value for value in self.low)


def plot_metrics(
    runs: Sequence[Path],
    metrics: Sequence[str],
    target: Path,
    *,
    x: str = "step",
    smooth: int = 1,
    across: Sequence[str] = (),
    suffixes: Sequence[str] = SUFFIXES,
) -> Path:
    """Draw metrics of runs into `target`, write the numbers into a CSV file of the same name, and
    return `target`.

    Args:
        runs: run folders.
        metrics: keys of metrics.jsonl, with a panel for each. By default every accuracy that all
            runs have, and the reward.
        target: .png, .svg or .pdf file.
        x: quantity on the x axis, a name of `X_AXES`.
        smooth: number of measurements to average for a point: the measurement at the point and
            those just before it. Each run is smoothed before the mean over runs. Accuracies are
            never smoothed, because their intervals would no longer be valid.
        across: config keys to average over, in addition to the seed, such as `model` if each seed
            has its own base model.
        suffixes: endings of the files to write.

    Raises:
        RunError: if a folder is not a run or lacks the metric, or a file cannot be written.
        ConfigError: if the target, the axis or a metric cannot be used.
    """
    check_target(target, suffixes)
    if x not in X_AXES:
        raise ConfigError(unknown_name("axis", x, X_AXES))
    logs = {run: read_metrics(run) for run in runs}
    groups = group_runs(runs, across)
    chosen = list(metrics) or _usual(logs)
    if not chosen:
        raise RunError(
            f"{', '.join(map(str, runs))}: the runs have no accuracy, reward or loss in common. Name metrics with --metric."
        )
    drawn = {
        metric: [
            series_of(label, [logs[run] for run in group], metric, x, smooth, range_of(metric, read_config(group[0])))
            for label, group in groups.items()
        ]
        for metric in chosen
    }
    with panels(len(chosen)) as (figure, axes):
        lines: dict[str, Any] = {}
        for axis, (metric, panel) in zip(axes, drawn.items(), strict=True):
            _draw_panel(axis, metric, panel, x, smooth, lines)
        legend_below(figure, lines)
        for suffix in suffixes:
            save_figure(figure, target.with_suffix(suffix))
    extra = [] if x == "step" else [x]
    save_table(
        target.with_suffix(".csv"),
        ["metric", "recipe", "runs", "step", *extra, "smoothed_over", "mean", "low", "high"],
        [
            [metric, s.label, s.num_runs, step, *([at] if extra else []), _window(metric, smooth), mean, low, high]
            for metric, panel in drawn.items()
            for s in panel
            for step, at, mean, low, high in zip(s.step, s.x, s.mean, s.low, s.high, strict=True)
        ],
    )
    return target


def _draw_panel(axis: Axes, metric: str, panel: Sequence[Series], x: str, smooth: int, lines: dict[str, Any]) -> None:
    """Draw a metric of all recipes on an axis, and add the line of each recipe to `lines`, which the
    legend shows."""
    banded = _banded(panel)
    for index, series in enumerate(panel):
        positions = [position / X_AXES[x][1] for position in series.x]
        low, high = (series.low, series.high) if index in banded else (without_band(series.low),) * 2
        line = draw_line(axis, positions, series.mean, low, high, **line_style(index))
        lines.setdefault(_with_number(series), line)
    axis.set_xlabel(X_AXES[x][0])
    if x == "step":
        axis.locator_params("x", integer=True)
    axis.set_title(_title(metric, panel, smooth), fontsize=9)
    if evaluation_of(metric):
        axis.set_ylim(0, 1)
    tidy(axis)


def group_runs(runs: Sequence[Path], across: Sequence[str] = ()) -> dict[str, list[Path]]:
    """Return the runs of each recipe by a label, which names the differences between the recipes.

    Raises:
        RunError: if a folder has no config.yaml, or two runs of a group have the same seed and are
            therefore equal.
    """
    settings = {run: _settings(run, across) for run in runs}
    groups: dict[str, list[Path]] = {}
    for run in runs:
        groups.setdefault(json.dumps(settings[run], sort_keys=True, default=str), []).append(run)
    for group in groups.values():
        seeds = [read_config(run).get("seed") for run in group]
        if len(set(seeds)) < len(seeds) and not across:
            raise RunError(
                f"{', '.join(map(str, group))} have the same settings, and two of them have the same seed, so they are the same "
                "run. Leave one out, or name runs with different seeds."
            )
    labels = _labels([settings[group[0]] for group in groups.values()])
    named = [label or group[0].name for label, group in zip(labels, groups.values(), strict=True)]
    return dict(zip(named, groups.values(), strict=True))


def range_of(metric: str, config: Mapping[str, Any]) -> tuple[float, float]:
    """Return the smallest and the largest possible value of a metric for a recipe; infinite if
    unknown.

    A task's own reward lies between 0 and 1, times its weight. The range of a user's reward
    function is unknown.

    Example:
        >>> range_of("completions/ended_share", {}), range_of("reward", {"reward_funcs": ["mine.py:f"]})
        ((0.0, 1.0), (-inf, inf))
    """
    first, _, last = metric.rpartition("/")
    if metric.endswith(("/accuracy", "_share")) or first == "clip_ratio" or last.startswith("frac_"):
        return 0.0, 1.0
    if first.startswith("rewards/") and last != "mean":
        return 0.0, 1.0  # share of completions with this reason
    if last in ("reward", "one_step_reward", "branch_reward") or first.startswith("rewards/"):
        if config.get("reward_funcs"):
            return -inf, inf
        weight = 1.0 if first.startswith("rewards/") else float((config.get("reward_weights") or [1])[0])
        return min(0.0, weight), max(0.0, weight)
    if first in ("compute", "time") or last in (
        "reward_std",
        "grad_norm",
        "learning_rate",
        "mean_length",
        "path_entropy",
    ):
        return 0.0, inf
    return -inf, inf


def series_of(
    label: str,
    runs: Sequence[Lines],
    metric: str,
    x: str,
    smooth: int,
    limits: tuple[float, float] = (-inf, inf),
) -> Series:
    """Return a metric of the runs of one recipe, at the steps at which all runs have it, with
    intervals cut to `limits`."""
    columns = [_smoothed(_column(lines, metric, x), _window(metric, smooth)) for lines in runs]
    steps = sorted(set.intersection(*(set(column) for column in columns)))
    if not steps:
        raise RunError(
            f"the runs of {label} have no common step with {metric}. Leave out a run, or name another metric."
        )
    points = [[column[step] for column in columns] for step in steps]
    means = [mean_interval([value for _, value in values]) for values in points]
    ends = [cut((mean - half, mean + half), *limits) for mean, half in means]
    low, high = [end for end, _ in ends], [end for _, end in ends]
    if len(runs) == 1:
        bounds = {line["step"]: (p.low, p.high) for line in runs[0] for p in evaluations(line) if p.key == metric}
        low, high = ([bounds.get(step, (nan, nan))[end] for step in steps] for end in (0, 1))
    positions = [fmean(position for position, _ in values) for values in points]
    return Series(label, len(runs), steps, positions, [mean for mean, _ in means], low, high)


def _column(lines: Lines, metric: str, x: str) -> dict[int, tuple[float, float]]:
    """Return the position on the x axis and the value of a metric, by training step."""
    column: dict[int, tuple[float, float]] = {}
    total = 0.0
    for line in lines:
        total += sum(number_of(line.get(key, 0.0)) or 0.0 for key in X_AXES[x][2])
        if metric in line:
            if isinstance(line[metric], list):
                raise ConfigError(
                    f"--metric {metric} has a list for each step and cannot be drawn. Name a metric with numbers."
                )
            if (value := number_of(line[metric])) is not None:
                column[line["step"]] = (float(line["step"]) if x == "step" else total, value)
    if not column:
        known = sorted(
            {key for line in lines for key, value in line.items() if isinstance(value, int | float)} - {"step"}
        )
        raise RunError(unknown_name("metric", metric, known))
    return column


def _window(metric: str, smooth: int) -> int:
    return 1 if evaluation_of(metric) else smooth


def _smoothed(column: Mapping[int, tuple[float, float]], over: int) -> dict[int, tuple[float, float]]:
    """Return the column with each value replaced by the mean of it and the `over` - 1 values before
    it."""
    items = list(column.items())
    return {
        step: (position, fmean(value for _, (_, value) in items[max(0, i + 1 - over) : i + 1]))
        for i, (step, (position, _)) in enumerate(items)
    }


def _usual(logs: Mapping[Path, Lines]) -> list[str]:
    """Return the metrics to draw by default: the accuracies that all runs have, and the reward or,
    without a reward, the loss. Metrics whose values are lists are left out."""
    keys = [{key for line in lines for key in line} for lines in logs.values()]
    lists = {key for lines in logs.values() for line in lines for key in line if isinstance(line[key], list)}
    common = set.intersection(*keys) - lists
    rest = [name for name in ("reward", "loss") if name in common][:1]
    return [*sorted(key for key in common if evaluation_of(key)), *rest]


def _settings(run: Path, across: Iterable[str]) -> dict[str, Any]:
    """Return the settings that distinguish a run's recipe, by dotted key."""
    left_out = (*_NOT_A_SETTING, *across)
    return {
        key: value
        for key, value in flat(read_config(run)).items()
        if not any(key == name or key.startswith(f"{name}.") for name in left_out)
    }


def _labels(recipes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a label for each recipe: the name of the method if the methods differ, otherwise all
    settings in which the recipes differ."""
    methods = [str(own.get("method.type")) for own in recipes]
    if len(recipes) > 1 and len(set(methods)) == len(methods):
        return methods
    keys = sorted({key for own in recipes for key in own if any(other.get(key) != own[key] for other in recipes)})
    return [", ".join(f"{key.removeprefix('method.')} {own[key]}" for key in keys if key in own) for own in recipes]


def _banded(panel: Sequence[Series]) -> set[int]:
    """Return the indices of the lines in a panel that get a band for their interval."""
    with_interval = [i for i, series in enumerate(panel) if series.has_interval]
    return {with_interval[i] for i in with_bands([panel[i].mean[-1] for i in with_interval])}


def _with_number(series: Series) -> str:
    return f"{series.label} ({series.num_runs} run{'s' if series.num_runs > 1 else ''})"


def _title(metric: str, panel: Sequence[Series], smooth: int) -> str:
    """Return the title of a panel: the metric, the kind of its bands, and the smoothing."""
    evaluation = evaluation_of(metric)
    title = f"{evaluation[0]} accuracy, {temperature_name(evaluation[1])}" if evaluation else metric
    bands = {
        f"(t) over seeds ({s.num_runs})" if s.num_runs > 1 else "over examples (Wilson)"
        for s in panel
        if s.has_interval
    }
    notes = [f"band: 95 % interval {' or '.join(sorted(bands))}" if bands else "one run: no interval"]
    if len([s for s in panel if s.has_interval]) > MOST_BANDS:
        notes.append(f"only the {MOST_BANDS} that end highest")
    if (window := _window(metric, smooth)) > 1:
        notes.append(f"mean of {window} measurements")
    return f"{title}\n{wrapped(', '.join(notes), PANEL_WIDTH)}"

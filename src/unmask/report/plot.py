"""Any metric of any runs against steps or compute, for a paper: PNG, SVG, PDF, and the numbers drawn, with their intervals.

Runs that differ in their seed alone are one line: the mean over seeds with its 95 % Student-t interval, cut to the range of the
metric where that is known. A single run's accuracy has the 95 % Wilson interval that the run logged; another metric of a single
run has none, and its label says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, nan
from pathlib import Path
from statistics import fmean
from typing import Any

from unmask.core.config import flat
from unmask.core.errors import ConfigError, RunError, unknown_name
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
from unmask.runs.folder import FREE_TO_CHANGE
from unmask.runs.metrics import evaluation_of, evaluations, number_of, read_metrics, temperature_name

Lines = list[dict[str, Any]]

X_AXES = {
    "step": ("run step", 1, ()),
    "token_passes": ("training compute, million token passes", 1e6, ("compute/token_passes",)),
    "reward_calls": ("thousand reward calls", 1e3, ("compute/reward_calls",)),
    "seconds": ("seconds of rollout and update", 1, ("time/rollout", "time/update")),
}
"""What a metric can be drawn against: label, the label's unit, and the metrics that are summed up to it."""

_NOT_A_SETTING = FREE_TO_CHANGE | {"seed"}


@dataclass(frozen=True, slots=True)
class Series:
    """One metric of one recipe: a point for each step at which all its runs measured it."""

    label: str
    num_runs: int
    step: list[int]
    x: list[float]
    mean: list[float]
    low: list[float]
    """nan where there is no interval."""
    high: list[float]

    @property
    def has_interval(self) -> bool:
        """Whether there is a band to draw."""
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
    """Draw metrics of runs into `target`, write the numbers as CSV beside it, and return `target`.

    Args:
        runs: run folders.
        metrics: keys of metrics.jsonl, one panel each. If empty, every accuracy that all runs have, and the reward.
        target: a .png, .svg or .pdf file.
        x: a name of `X_AXES`.
        smooth: draw the mean of a measurement and the `smooth` - 1 before it. Each run is smoothed before means over runs
            are taken. Accuracies are never smoothed, because their intervals would no longer fit.
        across: settings that may differ within a line besides the seed, such as `model` if each seed has its own base model.
        suffixes: the file formats to write; each gets the name of `target` with its own suffix.

    Raises:
        RunError: a folder is not a run, lacks the metric, or the files cannot be written.
        ConfigError: a target, axis or metric that cannot be used.
    """
    check_target(target, suffixes)
    if x not in X_AXES:
        raise ConfigError(unknown_name("axis", x, X_AXES))
    read = {run: read_metrics(run) for run in runs}
    groups = group_runs(runs, across)
    chosen = list(metrics) or _usual(read)
    if not chosen:
        raise RunError(
            f"{', '.join(map(str, runs))}: there is no accuracy, reward or loss that all have logged. Name what to draw with "
            "--metric."
        )
    drawn = {
        metric: [
            series_of(label, [read[run] for run in group], metric, x, smooth, range_of(metric, read_config(group[0])))
            for label, group in groups.items()
        ]
        for metric in chosen
    }
    with panels(len(chosen)) as (figure, axes):
        lines: dict[str, Any] = {}
        for axis, (metric, found) in zip(axes, drawn.items(), strict=True):
            banded = _banded(found)
            for index, series in enumerate(found):
                places = [place / X_AXES[x][1] for place in series.x]
                low, high = (series.low, series.high) if index in banded else (without_band(series.low),) * 2
                line = draw_line(axis, places, series.mean, low, high, **line_style(index))
                lines.setdefault(_with_number(series), line)
            axis.set_xlabel(X_AXES[x][0])
            if x == "step":
                axis.locator_params("x", integer=True)
            axis.set_title(_title(metric, found, smooth), fontsize=9)
            if evaluation_of(metric):
                axis.set_ylim(0, 1)
            tidy(axis)
        legend_below(figure, lines)
        for suffix in suffixes:
            save_figure(figure, target.with_suffix(suffix))
    extra = [] if x == "step" else [x]
    save_table(
        target.with_suffix(".csv"),
        ["metric", "recipe", "runs", "step", *extra, "smoothed_over", "mean", "low", "high"],
        [
            [metric, s.label, s.num_runs, step, *([place] if extra else []), _window(metric, smooth), mean, low, high]
            for metric, found in drawn.items()
            for s in found
            for step, place, mean, low, high in zip(s.step, s.x, s.mean, s.low, s.high, strict=True)
        ],
    )
    return target


def group_runs(runs: Sequence[Path], across: Sequence[str] = ()) -> dict[str, list[Path]]:
    """Runs of one recipe together, by a label that says in what the recipes differ.

    Raises:
        RunError: a folder without a config.yaml, or the same seed twice in a group: that is no second run.
    """
    settings = {run: _settings(run, across) for run in runs}
    groups: dict[str, list[Path]] = {}
    for run in runs:
        groups.setdefault(json.dumps(settings[run], sort_keys=True, default=str), []).append(run)
    for group in groups.values():
        seeds = [read_config(run).get("seed") for run in group]
        if len(set(seeds)) < len(seeds) and not across:
            raise RunError(
                f"{', '.join(map(str, group))} have the same settings, and two of them the same seed, so they are one run "
                "told twice. Leave one out, or give runs of different seeds."
            )
    labels = _labels([settings[group[0]] for group in groups.values()])
    named = [label or group[0].name for label, group in zip(labels, groups.values(), strict=True)]
    return dict(zip(named, groups.values(), strict=True))


def range_of(metric: str, config: Mapping[str, Any]) -> tuple[float, float]:
    """The least and the largest value that a metric of a run with this recipe can have, as far as that is known.

    A task's own reward is from 0 to 1, times its weight; what a reward function of one's own may return is not known.

    Example:
        >>> range_of("completions/ended_share", {}), range_of("reward", {"reward_funcs": ["mine.py:f"]})
        ((0.0, 1.0), (-inf, inf))
    """
    first, _, last = metric.rpartition("/")
    if metric.endswith(("/accuracy", "_share")) or first == "clip_ratio" or last.startswith("frac_"):
        return 0.0, 1.0
    if first.startswith("rewards/") and last != "mean":
        return 0.0, 1.0  # the share of completions with a reason
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
    """A metric of the runs of one recipe, at the steps at which all of them have it; its interval ends where its range does."""
    columns = [_smoothed(_column(lines, metric, x), _window(metric, smooth)) for lines in runs]
    steps = sorted(set.intersection(*(set(column) for column in columns)))
    if not steps:
        raise RunError(f"the runs of {label} have {metric} at no step in common.")
    points = [[column[step] for column in columns] for step in steps]
    means = [mean_interval([value for _, value in values]) for values in points]
    ends = [cut((mean - half, mean + half), *limits) for mean, half in means]
    low, high = [end for end, _ in ends], [end for _, end in ends]
    if len(runs) == 1:
        bounds = {line["step"]: (p.low, p.high) for line in runs[0] for p in evaluations(line) if p.key == metric}
        low, high = ([bounds.get(step, (nan, nan))[end] for step in steps] for end in (0, 1))
    places = [fmean(place for place, _ in values) for values in points]
    return Series(label, len(runs), steps, places, [mean for mean, _ in means], low, high)


def _column(lines: Lines, metric: str, x: str) -> dict[int, tuple[float, float]]:
    """Step: the place on the x axis, and the value."""
    found: dict[int, tuple[float, float]] = {}
    spent = 0.0
    for line in lines:
        spent += sum(number_of(line.get(key, 0.0)) or 0.0 for key in X_AXES[x][2])
        if metric in line:
            if isinstance(line[metric], list):
                raise ConfigError(f"--metric {metric} is a list, not a number, and cannot be drawn against steps.")
            if (value := number_of(line[metric])) is not None:
                found[line["step"]] = (float(line["step"]) if x == "step" else spent, value)
    if not found:
        known = sorted(
            {key for line in lines for key, value in line.items() if isinstance(value, int | float)} - {"step"}
        )
        raise RunError(unknown_name("metric", metric, known))
    return found


def _window(metric: str, smooth: int) -> int:
    return 1 if evaluation_of(metric) else smooth


def _smoothed(column: Mapping[int, tuple[float, float]], over: int) -> dict[int, tuple[float, float]]:
    """The mean of each value and the `over` - 1 before it."""
    items = list(column.items())
    return {
        step: (place, fmean(value for _, (_, value) in items[max(0, i + 1 - over) : i + 1]))
        for i, (step, (place, _)) in enumerate(items)
    }


def _usual(read: Mapping[Path, Lines]) -> list[str]:
    """The accuracies that all runs have, and the reward, or else the loss. A metric that is a list anywhere is left out."""
    keys = [{key for line in lines for key in line} for lines in read.values()]
    lists = {key for lines in read.values() for line in lines for key in line if isinstance(line[key], list)}
    common = set.intersection(*keys) - lists
    rest = [name for name in ("reward", "loss") if name in common][:1]
    return [*sorted(key for key in common if evaluation_of(key)), *rest]


def _settings(run: Path, across: Iterable[str]) -> dict[str, Any]:
    """What makes a run's recipe: all keys, flat, but those that do not."""
    left_out = (*_NOT_A_SETTING, *across)
    return {
        key: value
        for key, value in flat(read_config(run)).items()
        if not any(key == name or key.startswith(f"{name}.") for name in left_out)
    }


def _labels(recipes: Sequence[Mapping[str, Any]]) -> list[str]:
    """What sets each recipe apart: its method's name if that does, otherwise every setting in which some differ."""
    methods = [str(own.get("method.type")) for own in recipes]
    if len(recipes) > 1 and len(set(methods)) == len(methods):
        return methods
    keys = sorted({key for own in recipes for key in own if any(other.get(key) != own[key] for other in recipes)})
    return [", ".join(f"{key.removeprefix('method.')} {own[key]}" for key in keys if key in own) for own in recipes]


def _banded(found: Sequence[Series]) -> set[int]:
    """Which lines of a panel get a band."""
    with_interval = [i for i, series in enumerate(found) if series.has_interval]
    return {with_interval[i] for i in with_bands([found[i].mean[-1] for i in with_interval])}


def _with_number(series: Series) -> str:
    return f"{series.label} ({series.num_runs} run{'s' if series.num_runs > 1 else ''})"


def _title(metric: str, found: Sequence[Series], smooth: int) -> str:
    """The metric, what its band is, and whether it is smoothed."""
    place = evaluation_of(metric)
    title = f"{place[0]} accuracy, {temperature_name(place[1])}" if place else metric
    bands = {
        f"(t) over seeds ({s.num_runs})" if s.num_runs > 1 else "of rows (Wilson)" for s in found if s.has_interval
    }
    notes = [f"band: 95 % interval {' or '.join(sorted(bands))}" if bands else "one run: no interval"]
    if len([s for s in found if s.has_interval]) > MOST_BANDS:
        notes.append(f"of the {MOST_BANDS} that end highest")
    if (window := _window(metric, smooth)) > 1:
        notes.append(f"mean of {window} measurements")
    return f"{title}\n{wrapped(', '.join(notes), PANEL_WIDTH)}"

"""Data of a run folder for the report: the settings, the curves, and the time that each part of the
run takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from unmask.core.files import read_yaml
from unmask.core.text import visible
from unmask.runs.metrics import evaluations, read_metrics

MOST_POINTS = 2000
"""Maximum number of points per curve. Longer runs are averaged in bins of consecutive steps."""
_POINT = ("step", "accuracy", "low", "high", "forwards")
"""Entries of a point of an evaluation, in the order in which the page reads them."""
HEAT_COLUMNS = 80
"""Maximum number of columns in a heat map of denoising steps against training steps."""


def read_config(run: Path) -> dict[str, Any]:
    """Return a run's recipe as a tree without validation, so that recipes of other versions can be
    read.

    Raises:
        RunError: if the file does not exist or cannot be read.
    """
    return read_yaml(run / "config.yaml")


def run_facts(run: Path, name: str) -> dict[str, Any]:
    """Return the name and the settings of a run, which are small enough for the start of the page.

    Args:
        run: the run folder.
        name: name of the run on the page.
    """
    config = read_config(run)
    task, method, sampler = (_branch(config, key) for key in ("task", "method", "sampler"))
    return {
        "name": visible(name),
        "folder": visible(str(run)),
        "method": visible(str(method.get("type", "pretraining"))),
        "task": visible(":".join(str(task[key]) for key in ("type", "name") if task.get(key))),
        "model": visible(str(config.get("model") or "")),
        "settings": [
            [visible(label), visible(_short(value))]
            for label, value in (
                ("seed", config.get("seed")),
                ("training steps", config.get("max_steps")),
                ("prompts a step", config.get("num_prompts")),
                ("completions of a prompt, G", config.get("num_generations")),
                ("denoising steps, T", sampler.get("num_steps")),
                ("completion tokens, L", sampler.get("max_completion_length")),
                ("temperature", sampler.get("temperature")),
                ("order", sampler.get("order")),
                ("selected steps, K", method.get("num_selected")),
                ("KL weight, β", method.get("beta")),
                ("learning rate", _branch(config, "optim").get("learning_rate")),
            )
            if value is not None
        ],
        "config": visible(yaml.safe_dump(config, sort_keys=False, allow_unicode=True)),
    }


def run_curves(run: Path) -> dict[str, Any]:
    """Return everything that the run logged, as columns.

    Returns:
        `steps` and `metrics`, columns of equal length, with None where a line lacks the key;
        `evaluations` with their intervals; `heat`, the metrics by denoising step, in columns of
        training steps; `seconds`, the total time of each part; and `bin`, the number of training
        steps in a point.
    """
    lines = read_metrics(run)
    # The line of step 0 has only an evaluation.
    trained = [line for line in lines if any(not key.startswith(("step", "eval/", "time/evaluation")) for key in line)]
    size = math.ceil(len(trained) / MOST_POINTS) or 1
    bins = [trained[i : i + size] for i in range(0, len(trained), size)]
    keys = sorted({key for line in trained for key, value in line.items() if _is_number(value)} - {"step"})
    keys = [key for key in keys if not key.startswith(("eval/", "time/"))]
    return {
        "bin": size,
        "steps": [part[-1]["step"] for part in bins],
        "metrics": {visible(key): [_mean_of(part, key) for part in bins] for key in keys},
        "evaluations": [
            {"label": visible(label), "points": [[p[k] for k in _POINT] for p in points]}
            for label, points in sorted(evaluations_of(lines).items())
        ],
        "heat": {
            key.removeprefix("diffusion/"): heat
            for key in ("diffusion/selected_by_step", "diffusion/entropy_by_step")
            if (heat := _heat(trained, key))
        },
        "seconds": {
            visible(key.removeprefix("time/")): round(sum(line.get(key, 0.0) for line in lines), 3)
            for key in sorted({key for line in lines for key in line if key.startswith("time/")})
        },
    }


def evaluations_of(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the points step, accuracy, low, high and forwards (the mean number of forward passes of
    a completion, or None) of each evaluation of a run, by its label.

    Points without an accuracy or an interval are left out.
    """
    by_label: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        for point in evaluations(line):
            values = {"accuracy": point.accuracy, "low": point.low, "high": point.high}
            if all(map(math.isfinite, values.values())):
                forwards = point.forwards if math.isfinite(point.forwards) else None
                by_label.setdefault(point.label, []).append({"step": line["step"], **values, "forwards": forwards})
    return by_label


def _heat(lines: Sequence[Mapping[str, Any]], key: str) -> dict[str, Any] | None:
    """Return means over bins of training steps for a metric with one value for each denoising
    step."""
    rows = [(line["step"], line[key]) for line in lines if isinstance(line.get(key), list)]
    if not rows:
        return None
    size = math.ceil(len(rows) / HEAT_COLUMNS)
    bins = [rows[i : i + size] for i in range(0, len(rows), size)]
    return {
        "steps": [[part[0][0], part[-1][0]] for part in bins],
        "values": [
            [rounded(fmean(values)) for values in zip(*(row for _, row in part), strict=False)] for part in bins
        ],
    }


def _mean_of(lines: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [line[key] for line in lines if _is_number(line.get(key))]
    return rounded(fmean(values)) if values else None


def rounded(value: float) -> float:
    """Return a value rounded to six significant digits, which is more than the page shows."""
    return float(f"{value:.6g}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _branch(tree: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = tree.get(key)
    return value if isinstance(value, Mapping) else {}


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)

"""The lines of metrics.jsonl, which are a JSON object for each training step and one for each
evaluation.

The results of an evaluation have keys such as `eval/test@0.9/accuracy`, which consist of the split,
the sampling temperature and the name of the metric. This module writes and reads these keys.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask.core.errors import RunError
from unmask.core.files import parse_json, read_json_lines

FILE = "metrics.jsonl"
"""Name of the file in a run folder."""
_EVALUATION = re.compile(r"eval/(?P<split>[^@]+)@(?P<temperature>.+)/(?P<name>[^/]+)")
EVALUATION_NUMBERS = ("accuracy", "low", "high", "reward", "forwards", "tokens_per_forward")
"""Names of the numbers of an evaluation, which are the ends of their keys."""


@dataclass(frozen=True, slots=True)
class EvaluationPoint:
    """One evaluation of a run, as a line of metrics records it."""

    split: str
    """Split of the task: `validation` or `test`."""
    temperature: str
    """Sampling temperature as it is written in the key, such as `0` or `0.9`."""
    accuracy: float
    """Share of solved examples."""
    low: float = math.nan
    """Lower end of the 95 % interval of the accuracy; NaN if the line does not have it."""
    high: float = math.nan
    """Upper end of this interval."""
    reward: float = math.nan
    """Mean reward; NaN if the line does not have it."""
    forwards: float = math.nan
    """Mean number of forward passes of a completion; NaN if the line does not have it."""
    tokens_per_forward: float = math.nan
    """Mean number of tokens that a forward pass committed; NaN if the line does not have it."""

    @property
    def key(self) -> str:
        """Key of the accuracy."""
        return f"eval/{self.split}@{self.temperature}/accuracy"

    @property
    def sampling(self) -> str:
        """Temperature in words."""
        return temperature_name(self.temperature)

    @property
    def label(self) -> str:
        """Split and temperature in words.

        Example:
            >>> EvaluationPoint("test", "0.9", accuracy=0.5).label
            'test, sampled at 0.9'
        """
        return f"{self.split}, {self.sampling}"

    def metrics(self) -> dict[str, float]:
        """Return the evaluation as entries of a line of metrics."""
        split, temperature = self.split, self.temperature
        return {
            f"eval/{split}@{temperature}/accuracy": self.accuracy,
            f"eval/{split}@{temperature}/low": self.low,
            f"eval/{split}@{temperature}/high": self.high,
            f"eval/{split}@{temperature}/reward": self.reward,
            f"eval/{split}@{temperature}/forwards": self.forwards,
            f"eval/{split}@{temperature}/tokens_per_forward": self.tokens_per_forward,
        }


def evaluations(line: Mapping[str, Any]) -> list[EvaluationPoint]:
    """Return the evaluations in a line of metrics, in the order of their keys.

    Example:
        >>> line = {"step": 4, "loss": 0.5, "eval/test@0/accuracy": 0.25, "eval/best_step": 4}
        >>> [(point.split, point.temperature, point.accuracy) for point in evaluations(line)]
        [('test', '0', 0.25)]
    """
    points: dict[tuple[str, str], dict[str, float]] = {}
    for key, value in line.items():
        if (parts := _EVALUATION.fullmatch(key)) and (number := number_of(value)) is not None:
            points.setdefault((parts["split"], parts["temperature"]), {})[parts["name"]] = number
    return [
        EvaluationPoint(split, temperature, *(numbers.get(name, math.nan) for name in EVALUATION_NUMBERS))
        for (split, temperature), numbers in points.items()
        if "accuracy" in numbers
    ]


def evaluation_of(metric: str) -> tuple[str, str] | None:
    """Return the split and the temperature in the key of an evaluation's accuracy; None for any
    other key.

    Example:
        >>> evaluation_of("eval/test@0.9/accuracy"), evaluation_of("eval/test@0.9/reward")
        (('test', '0.9'), None)
    """
    parts = _EVALUATION.fullmatch(metric)
    return (parts["split"], parts["temperature"]) if parts and parts["name"] == "accuracy" else None


def temperature_name(temperature: str | float) -> str:
    """Return a sampling temperature in words: `greedy` for 0, otherwise `sampled at` and the number
    or text."""
    try:
        number = float(temperature)
    except ValueError:
        return f"sampled at {temperature}"
    return "greedy" if number == 0 else f"sampled at {number:g}"


def number_of(value: object) -> float | None:
    """Return a value of a line of metrics as a float; None if the value is not a number (for
    example, a list)."""
    return float(value) if isinstance(value, int | float) else None


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the metrics of a run as one object for each step: the line of the step, merged with
    the line of its evaluation.

    Raises:
        RunError: if the file does not exist, is not UTF-8 text, or has a damaged line.
    """
    merged: list[dict[str, Any]] = []
    for line in read_metric_lines(run):
        if merged and merged[-1]["step"] == line["step"]:
            merged[-1] |= line
        else:
            merged.append(line)
    return merged


def read_metric_lines(run: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl. `read_json_lines` describes how an incomplete last
    line is treated.

    Raises:
        RunError: if the file does not exist, is not UTF-8 text, or has a damaged line.
    """
    path = run / FILE
    if not path.exists():
        raise RunError(f"{run} is not a run folder: it has no {FILE}. Name the folder of a run.")
    return read_json_lines(path, parse_line, "a line of metrics")


def parse_line(text: str) -> dict[str, Any] | None:
    """Return the metrics in a line of metrics.jsonl; None if the text is not such a line.

    A line is an object of numbers and lists of numbers, all of which fit into a float. Its `step`
    is an integer of 0 or more.

    Example:
        >>> parse_line('{"step": 3, "reward": 0.5}'), parse_line('{"step": 3, "rew'), parse_line('{"reward": 1}')
        ({'step': 3, 'reward': 0.5}, None, None)
    """
    try:
        line = parse_json(text)
    except ValueError:
        return None
    if not isinstance(line, dict):
        return None
    step: Any = line.get("step")
    if not _is_number(step) or not math.isfinite(step) or step != int(step) or step < 0:
        return None
    parts = [part for value in line.values() for part in (value if isinstance(value, list) else [value])]
    return line | {"step": int(step)} if all(map(_is_number, parts)) else None


def _is_number(value: Any) -> bool:
    """Return whether a value is a number that fits into a float; JSON has integers of any size."""
    if isinstance(value, float):
        return True
    return isinstance(value, int) and (isinstance(value, bool) or abs(value) < 10**300)

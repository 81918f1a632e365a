"""Reading metrics.jsonl, in which a run logs one JSON object for each step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from unmask.errors import RunError
from unmask.files import parse_json, read_text

FILE = "metrics.jsonl"


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Read the lines of a run's metrics.jsonl.

    Raises:
        RunError: there is no such file, it is not UTF-8 text, or one of its lines is damaged; the last line may be half
            written, by a process that is at work or was killed.
    """
    path = run / FILE
    if not path.is_file():
        raise RunError(f"{run} is not a run folder: it has no {FILE}.")
    *whole, _ = read_text(path).split("\n")
    return [_checked(path, number, line) for number, line in enumerate(whole, 1)]


def parse_line(text: str) -> dict[str, Any] | None:
    """Read one line of metrics; None if it is not one.

    A line is an object of numbers and lists of numbers, all of which fit into a float; its `step` is a whole number from 0.

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


def _checked(path: Path, number: int, text: str) -> dict[str, Any]:
    line = parse_line(text)
    if line is None:
        raise RunError(
            f"{path}, line {number} is not a line of metrics: {text[:60]!r}. If a process was killed while it wrote, "
            "remove the line."
        )
    return line


def _is_number(value: Any) -> bool:
    """Whether a value is a number that fits into a float; JSON has integers of any size."""
    if isinstance(value, float):
        return True
    return isinstance(value, int) and (isinstance(value, bool) or abs(value) < 10**300)

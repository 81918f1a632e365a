"""The learning curve: a picture, and the numbers in it beside it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from unmask.report.curve import plot_curve

EVALUATIONS = [
    {"eval/test@0/accuracy": 0.25, "eval/test@0/low": 0.125, "eval/test@0/high": 0.5}
    | {"eval/test@0.9/accuracy": 0.1, "eval/test@0.9/low": 0.05, "eval/test@0.9/high": 0.2},
    {"eval/test@0/accuracy": 0.75, "eval/test@0/low": 0.5, "eval/test@0/high": 0.875}
    | {"eval/test@0.9/accuracy": 0.5, "eval/test@0.9/low": 0.4, "eval/test@0.9/high": 0.6},
]
LINES = [
    {"step": 0} | EVALUATIONS[0],
    {"step": 1, "reward": 0.5},
    {"step": 2, "reward": 0.625} | EVALUATIONS[1],
]


def run_folder(path: Path, lines: list[dict[str, Any]], tail: str = "") -> Path:
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    return path


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures that were saved, kept open."""
    figures: list[Figure] = []
    monkeypatch.setattr(plt, "close", figures.append)
    return figures


def test_the_numbers_are_written_beside_the_picture(tmp_path: Path) -> None:
    target = plot_curve(run_folder(tmp_path, LINES), tmp_path / "curve.png")
    assert target.read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "curve.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(int(r["step"]), r["evaluation"], *(float(r[k]) for k in ("accuracy", "low", "high"))) for r in rows] == [
        (0, "test, greedy", 0.25, 0.125, 0.5),
        (2, "test, greedy", 0.75, 0.5, 0.875),
        (0, "test, sampled at 0.9", 0.1, 0.05, 0.2),
        (2, "test, sampled at 0.9", 0.5, 0.4, 0.6),
    ]


def test_the_lines_go_through_the_numbers(tmp_path: Path, drawn: list[Figure]) -> None:
    plot_curve(run_folder(tmp_path, LINES), tmp_path / "curve.png")
    left, right = drawn[0].axes
    assert {line.get_label(): line.get_xydata().tolist() for line in left.lines} == {
        "test, greedy": [[0, 0.25], [2, 0.75]],
        "test, sampled at 0.9": [[0, 0.1], [2, 0.5]],
    }
    assert right.lines[0].get_xydata().tolist() == [[1, 0.5], [2, 0.625]]
    (band, _) = left.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (0.125, 0.875)
    assert all(axis.get_xlabel() and axis.get_ylabel() and axis.get_title() for axis in (left, right))


def test_every_evaluation_of_many_is_drawn(tmp_path: Path, drawn: list[Figure]) -> None:
    line: dict[str, Any] = {"step": 0}
    for temperature in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5):
        line |= {f"eval/validation@{temperature:g}/{field}": 0.5 for field in ("accuracy", "low", "high")}
    plot_curve(run_folder(tmp_path, [line]), tmp_path / "curve.png")
    assert len(drawn[0].axes[0].lines) == 6


def test_a_run_without_evaluations_or_rewards_is_still_drawn(tmp_path: Path) -> None:
    assert plot_curve(run_folder(tmp_path, [{"step": 1, "loss": 2.0}]), tmp_path / "curve.svg").stat().st_size > 0
    assert (tmp_path / "curve.csv").read_text().splitlines() == ["step,evaluation,accuracy,low,high"]

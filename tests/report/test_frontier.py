"""The figure of accuracy against forward passes: a panel for each temperature, a line for each type of
schedule, ordered by cost."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from unmask.report import frontier


def test_points_of_a_type_form_a_line_in_the_order_of_their_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[Any, ...]] = []
    draw = frontier.draw_line

    def recorded(axis: Any, x: Any, mean: Any, low: Any, high: Any, **style: Any) -> Any:
        drawn.append((axis.get_title() or None, x, mean, low, high))
        return draw(axis, x, mean, low, high, **style)

    monkeypatch.setattr(frontier, "draw_line", recorded)
    points = [
        frontier.FrontierPoint("greedy", "threshold", 6.0, 0.75, 0.2, 0.8),
        frontier.FrontierPoint("greedy", "threshold", 3.0, 0.25, 0.2, 0.8),
        frontier.FrontierPoint("greedy", "fixed", 8.0, 0.5, 0.2, 0.8),
        frontier.FrontierPoint("sampled at 0.9", "fixed", 8.0, 0.5),
    ]
    paths = frontier.draw_frontier(points, tmp_path / "eval.json", "a note")
    assert [line[1:4] for line in drawn] == [
        ((3.0, 6.0), (0.25, 0.75), (0.2, 0.2)),
        ((8.0,), (0.5,), (0.2,)),
        ((8.0,), (0.5,), drawn[2][3]),
    ]
    assert all(map(math.isnan, drawn[2][3]))
    assert [path.name for path in paths] == ["eval.png", "eval.svg", "eval.pdf"]
    text = (tmp_path / "eval.svg").read_text()
    assert text.startswith("<?xml")
    assert all(path.stat().st_size > 1000 for path in paths)

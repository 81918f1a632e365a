"""The style that all figures share."""

from __future__ import annotations

import pytest

from unmask.report.figure_style import draw_line, legend_below, line_style, panels


@pytest.mark.parametrize("num_panels", [1, 3])
@pytest.mark.parametrize("name", ["ESPO", "EGSPO by value 32x1", "a method with a name of nearly fifty letters, or so"])
def test_the_names_of_a_legend_lie_within_the_figure(num_panels: int, name: str) -> None:
    with panels(num_panels) as (figure, axes):
        lines = {f"{name} {i}": draw_line(axes[0], [0, 1], [0, i], [0, i], [1, i], **line_style(i)) for i in range(10)}
        legend_below(figure, lines, "5 seeds.")
        figure.canvas.draw()
        boxes = [text.get_window_extent() for text in figure.legends[0].get_texts()]
        assert len(boxes) == 10
        assert all(box.x0 >= 0 and box.x1 <= figure.bbox.width for box in boxes)

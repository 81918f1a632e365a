"""The learning curve of a run: accuracy with its interval, and reward, against run steps."""

from __future__ import annotations

from pathlib import Path

from unmask.report.runs import evaluations_of
from unmask.runs.metrics import number_of, read_metrics
from unmask.style import draw_line, line_style, panels, save_figure, save_table, tidy


def plot_curve(run: Path, target: Path) -> Path:
    """Draw a run's accuracy and reward into `target` (PNG or SVG), with the accuracies beside it as CSV.

    The band is the 95 % Wilson interval of each evaluation; rewards are the means of the training batches.
    """
    lines = read_metrics(run)
    evaluations = evaluations_of(lines)
    with panels(2, width=9, height=3.6) as (figure, (left, right)):
        for index, (name, points) in enumerate(sorted(evaluations.items())):
            x, mean, low, high = ([point[key] for point in points] for key in ("step", "accuracy", "low", "high"))
            draw_line(left, x, mean, low, high, label=name, **line_style(index))
        left.set(
            xlabel="run step",
            ylabel="solved share of held-out rows",
            ylim=(0, 1),
            title="accuracy of one run\nband: 95 % Wilson interval of its rows",
        )
        if evaluations:
            left.legend(loc="lower right", frameon=False)
        rewards = [(line["step"], value) for line in lines if (value := number_of(line.get("reward"))) is not None]
        right.plot([step for step, _ in rewards], [reward for _, reward in rewards], color="#444444", linewidth=1)
        right.set(xlabel="run step", ylabel="mean reward of a batch", title="training reward")
        for axis in (left, right):
            tidy(axis)
        save_figure(figure, target)
    save_table(
        target.with_suffix(".csv"),
        ["step", "evaluation", "accuracy", "low", "high"],
        [
            [p["step"], name, p["accuracy"], p["low"], p["high"]]
            for name, points in sorted(evaluations.items())
            for p in points
        ],
    )
    return target

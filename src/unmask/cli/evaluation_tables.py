"""Output of `unmask eval` and `unmask data check`: progress, results, comparisons and overlaps."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from unmask.cli.tables import table
from unmask.runs.metrics import temperature_name

if TYPE_CHECKING:
    from pathlib import Path

    from unmask.core.config import SamplerConfig
    from unmask.evaluation.evaluate import Evaluation
    from unmask.evaluation.results import Comparison
    from unmask.tasks.contamination import Overlap


@contextmanager
def evaluation_progress(sampler: SamplerConfig, console: Console | None = None) -> Iterator[Callable[[float], None]]:
    """Show the progress of an evaluation on standard error: a bar on a terminal, one line in a
    pipe.

    Args:
        sampler: settings of the evaluation.
        console: console to use instead of standard error.

    Yields:
        A function that takes the share that is done.
    """
    console = console or Console(file=sys.stderr)
    steps = f"schedule {sampler.schedule}" if sampler.is_adaptive else f"{sampler.steps} steps"
    name = f"length {sampler.max_completion_length}, {steps}, {temperature_name(sampler.temperature)}"
    if not console.is_terminal:
        console.print(f"evaluate {name}", highlight=False, soft_wrap=True)
        yield lambda share: None
        return
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(name, total=1.0)
        yield lambda share: bar.update(task, completed=share)


def results_table(results: Sequence[Evaluation], title: str) -> None:
    """Print one evaluation per line, with a column for each secondary measure and each k > 1 of
    pass@k, and below it what each cost."""
    extra = {name: [r.measures[name] for r in results] for name in results[0].measures}
    extra |= {f"pass@{k}": [r.pass_at[k] for r in results] for k in results[0].pass_at if k > 1}
    accuracy = "pass@1" if results[0].samples > 1 else "accuracy"
    table(
        [
            "length",
            "steps",
            "sampling",
            "solved",
            f"{accuracy} (95 % CI)",
            *extra,
            "reward",
        ],
        [
            [
                r.length,
                _steps(r.steps, r.schedule),
                _sampling(r.temperature),
                f"{r.num_solved} of {r.num_rows * r.samples}",
                _with_interval(r.accuracy, r.low, r.high),
                *(_with_interval(*estimates[i]) for estimates in extra.values()),
                f"{r.reward:.3f} ± {r.reward_se:.3f}",
            ]
            for i, r in enumerate(results)
        ],
        title,
    )
    table(
        ["length", "steps", "sampling", "forward passes", "tokens per forward pass", "accuracy"],
        [
            [
                r.length,
                _steps(r.steps, r.schedule),
                _sampling(r.temperature),
                f"{r.forwards:.3g}",
                f"{r.tokens_per_forward:.3g}",
                f"{r.accuracy:.3f}",
            ]
            for r in results
        ],
        "cost of a completion",
    )


def plot_frontier(results: Sequence[Evaluation], path: Path) -> list[Path]:
    """Draw the accuracy of evaluations of one model against their forward passes, with a panel for
    each temperature and length.

    Args:
        results: evaluations at several schedules or numbers of steps.
        path: the .json file of the results, next to which the figure is written.

    Returns:
        The paths of the PNG, SVG and PDF file.
    """
    from unmask.core.schedules import Schedule
    from unmask.report.frontier import FrontierPoint, draw_frontier

    lengths = {result.length for result in results}

    def panel(result: Evaluation) -> str:
        name = temperature_name(result.temperature)
        return f"{name}, length {result.length}" if len(lengths) > 1 else name

    points = [
        FrontierPoint(panel(r), Schedule.parse(r.schedule).type, r.forwards, r.accuracy, r.low, r.high) for r in results
    ]
    return draw_frontier(points, path, "Bands: 95 % interval over examples.")


def comparison_table(comparisons: Iterable[Comparison], earlier: object) -> None:
    """Print one comparison with an earlier evaluation per line, and the rows that changed."""
    table(
        ["length", "steps", "sampling", "before", "now", "difference (95 % CI)", "gained", "lost", "p (McNemar)"],
        [
            [
                _change(c.against[0], c.setting[0]),
                _change(_steps(c.against[1], c.against[3]), _steps(c.setting[1], c.setting[3])),
                _change(_sampling(c.against[2]), _sampling(c.setting[2])),
                f"{c.before:.3f}",
                f"{c.now:.3f}",
                f"{c.difference:+.3f} ({c.low:+.3f} to {c.high:+.3f})",
                _some(c.gained),
                _some(c.lost),
                "" if c.p_value is None else f"{c.p_value:.3g}",
            ]
            for c in comparisons
        ],
        f"against {earlier}, row by row",
    )


def overlap_table(overlaps: Iterable[Overlap], title: str) -> None:
    """Print what held-out rows share with training rows, and the ends of a few examples."""
    table(
        ["split", "by", "distinct", "in training", "share", "for example"],
        [
            [
                o.held_out,
                o.kind,
                o.num_rows,
                o.num_found,
                f"{o.share:.1%}",
                " | ".join(repr(x)[-40:] for x in o.examples),
            ]
            for o in overlaps
        ],
        title,
    )


def _with_interval(value: float, low: float, high: float) -> str:
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def _steps(steps: int, schedule: str) -> str:
    """Return the number of steps of a fixed schedule, or an adaptive schedule."""
    return str(steps) if schedule == "fixed" else schedule


def _sampling(temperature: float) -> str:
    return "greedy" if temperature == 0 else f"T = {temperature:g}"


def _change(before: object, now: object) -> str:
    return str(now) if before == now else f"{before} -> {now}"


def _some(rows: Sequence[int]) -> str:
    """Return the number of rows and the first five rows."""
    shown = ", ".join(map(str, rows[:5]))
    return f"{len(rows)}" + (f": {shown}{', ...' if len(rows) > 5 else ''}" if rows else "")

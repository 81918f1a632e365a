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
    name = f"length {sampler.max_completion_length}, {sampler.steps} steps, {temperature_name(sampler.temperature)}"
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
    pass@k."""
    extra = {name: [r.measures[name] for r in results] for name in results[0].measures}
    extra |= {f"pass@{k}": [r.pass_at[k] for r in results] for k in results[0].pass_at if k > 1}
    accuracy = "pass@1" if results[0].samples > 1 else "accuracy"
    table(
        ["length", "steps", "sampling", "solved", f"{accuracy} (95 % CI)", *extra, "reward"],
        [
            [
                r.length,
                r.steps,
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


def comparison_table(comparisons: Iterable[Comparison], earlier: object) -> None:
    """Print one comparison with an earlier evaluation per line, and the rows that changed."""
    table(
        ["length", "steps", "sampling", "before", "now", "difference (95 % CI)", "gained", "lost", "p (McNemar)"],
        [
            [
                _change(c.against[0], c.setting[0]),
                _change(c.against[1], c.setting[1]),
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


def _sampling(temperature: float) -> str:
    return "greedy" if temperature == 0 else f"T = {temperature:g}"


def _change(before: object, now: object) -> str:
    return str(now) if before == now else f"{before} -> {now}"


def _some(rows: Sequence[int]) -> str:
    """Return the number of rows and the first five rows."""
    shown = ", ".join(map(str, rows[:5]))
    return f"{len(rows)}" + (f": {shown}{', ...' if len(rows) > 5 else ''}" if rows else "")

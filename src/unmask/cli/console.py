"""What a person sees of a run: a progress bar on a terminal, a line for each step in a pipe."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from unmask.core.text import visible
from unmask.runs.metrics import temperature_name

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from unmask.core.config import SamplerConfig
    from unmask.evaluation.evaluate import Evaluation
    from unmask.evaluation.results import Comparison
    from unmask.report.comparison_files import Shown
    from unmask.tasks.contamination import Overlap

PIPE_WIDTH = 160
"""Columns of a table that is not shown on a terminal."""


@contextmanager
def evaluation_progress(sampler: SamplerConfig, console: Console | None = None) -> Iterator[Callable[[float], None]]:
    """A view for `evaluate`, on standard error: a bar on a terminal, a line at the beginning in a pipe."""
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


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> None:
    """Print a table to standard output."""
    from rich.table import Table

    console, drawn = Console(), Table(*columns, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        # A pipe has no edge to wrap at; rich would take it for 80 columns wide.
        console = Console(width=PIPE_WIDTH)
    cells = [[visible(str(cell)) for cell in row] for row in rows]
    for row in cells:
        drawn.add_row(*map(_bold, row))
    if title:
        console.print(visible(title), style="italic", markup=False, highlight=False, soft_wrap=True)
    if _narrowest(columns, cells) <= console.width:
        console.print(drawn)
    else:
        _print_entries(console, columns, cells)


def _narrowest(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Columns of the terminal below which a table would have to cut words."""
    widths = [
        max(len(word) for cell in column for word in (cell.split() or [""]))
        for column in zip(columns, *rows, strict=True)
    ]
    return sum(widths) + 3 * (len(widths) - 1)


def _print_entries(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The rows of a table one below the other, for a terminal that is too narrow for columns."""
    for first, *rest in rows:
        console.print(Text(first, style="bold"), soft_wrap=True)
        for column, cell in zip(columns[1:], rest, strict=True):
            if cell:
                console.print(Padding(Text(f"{column}: {cell}"), (0, 0, 0, 2)))


def _bold(text: str) -> str:
    """A cell as rich reads it: **text between stars** is bold, and nothing else in it is markup."""
    inner = text.removeprefix("**").removesuffix("**")
    return f"[bold]{escape(inner)}[/]" if text == f"**{inner}**" else escape(text)


def comparison_results(shown: Shown) -> None:
    """Print what `unmask compare` found: the tables, and below them what a reader must know."""
    console = Console()
    for found in shown.tables:
        table(found.columns, found.rows, found.title)
        console.print()
    for note in shown.notes:
        console.print(Text(visible(note.replace("**", "").replace("`", ""))), soft_wrap=not console.is_terminal)
        console.print()


def methods_table() -> None:
    """Print all methods, one a line."""
    from unmask.methods import METHODS

    rows = [
        {
            "method": key,
            "arXiv": m.paper.removeprefix("arXiv:"),
            "what it does": m.summary,
            "unbiased": m.unbiased,
            "cost of a completion": m.cost,
            "needs": m.needed(),
        }
        for key, m in METHODS.items()
    ]
    is_wide = shutil.get_terminal_size().columns >= 120
    columns = [column for column in rows[0] if is_wide or column != "what it does"]
    table(columns, [[row[column] for column in columns] for row in rows])
    print(
        "f: a forward; f+b: a forward with backward; the rollout's T forwards come on top.\n"
        "Two passes: one f more for each f+b where an update's views do not fit into one forward (views_per_forward).\n"
        "unmask methods NAME shows the options of one; docs/methods/NAME.md its equations."
    )


def method_page(name: str) -> None:
    """Print a method, given by name or by path, with all its options.

    Raises:
        ConfigError: there is no such method.
    """
    from unmask.methods import Method
    from unmask.recipes.keys import find_class

    method = find_class(Method, name)  # type: ignore[type-abstract]
    print(f"{name} ({method.paper or 'no paper stated'}): {method.summary}\n")
    for title, text in (
        ("estimates", method.estimates),
        ("unbiased", method.unbiased),
        ("cost", method.cost),
        ("needs", method.needed()),
    ):
        print(f"{title + ':':11}{text}")
    print()
    table(
        ["option", "default", "what it is"],
        [
            [key, default_of(field), " ".join((field.description or "").split())]
            for key, field in method.model_fields.items()
            if key != "type"
        ],
    )


def default_of(field: FieldInfo) -> object:
    """What an option is if it is not set, as tables show it."""
    return "(must be set)" if field.is_required() else field.get_default(call_default_factory=True)


def families_table() -> None:
    """Print the model families, and their checkpoints."""
    from unmask.models.families import FAMILIES

    table(
        ["family", "what it is", "native class", "head", "blocks", "checked here by"],
        [
            [
                name,
                f"{family.title}, {family.paper}",
                family.native_class,
                "shifted" if family.logit_shift else "",
                family.block_length or "",
                family.checked,
            ]
            for name, family in FAMILIES.items()
        ],
    )
    print()
    table(
        ["checkpoint", "family", "parameters", "licence"],
        [[c.hub_id, name, c.parameters, c.licence] for name, family in FAMILIES.items() for c in family.checkpoints],
    )
    print(
        "\nunmask models NAME shows one; unmask convert CHECKPOINT FOLDER makes it native. No checkpoint's code is run."
    )


def family_page(name: str) -> None:
    """Print a model family with its checkpoints, tokens and traps."""
    from unmask.models.families import FAMILIES

    family = FAMILIES[name]
    ids = ", ".join(f"{role} {i}" for role, i in family.token_ids.items())
    blocks = f"{family.block_length}, block-causal" if family.block_length else "none: every position sees every other"
    print(f"{name}: {family.title} ({family.paper})\n")
    for title, text in (
        ("native class", family.native_class),
        ("original", f"{family.architecture}, model_type {family.model_type}" if family.architecture else "native too"),
        ("tensors", "renamed" if family.keys else "under the same names"),
        ("tokens", ", ".join(family.tokens.values()) + (f" ({ids})" if ids else "") or "its own"),
        ("chat template", family.chat_template),
        ("head", "shifted: speaks of the next position" if family.logit_shift else "speaks of its own position"),
        ("blocks", blocks),
        ("LoRA targets", ", ".join(family.lora_targets)),
        ("checked by", family.checked),
    ):
        print(f"{title + ':':15}{text}")
    print()
    if family.checkpoints:
        table(
            ["checkpoint", "parameters", "licence"], [[c.hub_id, c.parameters, c.licence] for c in family.checkpoints]
        )
        print()
    for note in family.notes:
        print(f"- {note}")


def results_table(results: Sequence[Evaluation], title: str) -> None:
    """Print evaluations, one a line, with a column for each secondary measure and each k of pass@k but the first."""
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


def comparison_table(comparisons: Iterable[Comparison], place: object) -> None:
    """Print comparisons with an earlier evaluation, one a line, and which rows changed."""
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
        f"against {place}, row by row",
    )


def overlap_table(overlaps: Iterable[Overlap], title: str) -> None:
    """Print what held-out rows share with training rows, the ends of a few examples included."""
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
    """How many rows, and the first of them."""
    shown = ", ".join(map(str, rows[:5]))
    return f"{len(rows)}" + (f": {shown}{', ...' if len(rows) > 5 else ''}" if rows else "")

"""An estimate as text, with the arithmetic of every number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from unmask.cli.estimate import StepEstimate
from unmask.cli.estimate.memory import nice


def described(estimate: StepEstimate, room: float | None = None) -> str:
    """The whole page.

    Args:
        estimate: what to show.
        room: bytes of a GPU, to say whether it fits.
    """
    work, costs = estimate.work, estimate.costs
    shared = f", one of {estimate.processes} ({estimate.preset})" if estimate.processes > 1 else ""
    parts = [
        f"model       {estimate.model}",
        f"parameters  {_count(estimate.parameters)}, of which {_count(estimate.trained)} trained",
        f"a process   {work.completions} completions a step{shared}; prompts of {work.prompt} tokens ({estimate.prompt})",
        "",
        "Memory of a process",
        *_columns([(line.name, nice(line.bytes), line.words) for line in estimate.memory.resident]),
        "  and, one at a time,",
        *_columns([(line.name, nice(line.bytes), line.words) for line in estimate.memory.peaks]),
        *_columns([("in all", nice(estimate.memory.total), "the first lines and the largest of the others")]),
        *_verdict(estimate, room),
        "",
        "Floating-point operations of a process in a step (1 T = 10^12)",
        f"  trunk       2 W = {_count(costs.trunk)} a token; attention 4 S D layers = {_count(costs.attention)} a token;"
        f" head {_count(costs.head)} a position",
        *_columns([_row(estimate, p.name) for p in work.passes]),
        *_time(estimate),
        "",
        f"Rewards     {work.rewards} completions at most; their time, and loading and saving, are not counted.",
    ]
    return "\n".join(parts)


def _row(estimate: StepEstimate, name: str) -> tuple[str, str, str]:
    found = next(p for p in estimate.work.passes if p.name == name)
    costs = estimate.costs
    formula = f"{found.tokens:,} tokens x {_count(costs.trunk + costs.attention)}"
    if found.head * costs.head > 0.001 * costs.total(found):
        formula += f" + {found.head:,} positions x {_count(costs.head)}"
    if found.backward:
        formula += f", and backward {_count(costs.backward(found))}"
        formula += " (with recomputation)" if costs.recomputes else ""
    return name, _count(costs.total(found)), f"{formula}; {found.words}, {found.forwards} forwards"


def _time(estimate: StepEstimate) -> Iterable[str]:
    times = estimate.times
    if times is None:
        return [
            "",
            "Time        give --flops, what a process sustains (two fifths of the peak is usual: 4e14 on an H100 in bfloat16,",
            "            1.2e14 on an A100), or --measure for what it is here.",
        ]
    rows = [(name, _seconds(spent), "operations / rate") for name, spent in times.by_pass.items()]
    if times.optimizer:
        rows.append(("optimizer", _seconds(times.optimizer), f"{estimate.work.updates} updates"))
    return [
        "",
        f"Time of a step ({times.words}), if no row ends early",
        *_columns([*rows, ("in all", _seconds(times.step), f"{3600 / times.step:.3g} steps an hour")]),
    ]


def _verdict(estimate: StepEstimate, room: float | None) -> list[str]:
    if room is None:
        return []
    total = estimate.memory.total
    # An allocator loses some between its blocks, and a CUDA context takes half a gigabyte before anything is allocated.
    if 1.1 * total + 0.5e9 <= room:
        return [f"  fits {nice(room)}, with the tenth and the 500 MB that allocator and driver want beside it"]
    largest = max(estimate.memory.peaks, key=lambda line: line.bytes)
    advice = {
        "rollout": "a smaller rollout_batch_size",
        "update": "a smaller views_per_forward, gradient_checkpointing: true",
    }.get(largest.name, "a smaller views_per_forward")
    return [
        f"  does NOT fit {nice(room)} (a tenth and 500 MB beside it are wanted by allocator and driver). Try {advice}; "
        "lora, lora.quantize: 4bit or the preset zero3 for what is there all the time."
    ]


def _columns(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    return [f"  {name:<28}{value:>10}  {words}" for name, value, words in rows]


def _count(value: float) -> str:
    """A number with a suffix: 8.02B, 16 T for operations alike."""
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.4g} {unit}"
    return f"{value:.0f}"


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value < 600 else f"{value / 60:.3g} min"

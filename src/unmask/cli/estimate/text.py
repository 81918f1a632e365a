"""Text of an estimate, which shows the calculation of every number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from unmask.cli.estimate import StepEstimate
from unmask.cli.estimate.memory import nice
from unmask.cli.estimate.work import Pass

RESERVE = "a tenth and 500 MB for allocator and driver"
"""Text that says how much memory must stay free, so that a step counts as fitting."""


def described(estimate: StepEstimate, gpu_memory: float | None = None) -> str:
    """Return the report of `unmask estimate`.

    Args:
        estimate: the estimate to show.
        gpu_memory: memory of one GPU in bytes; the report says whether the step fits.
    """
    work, costs, memory = estimate.work, estimate.costs, estimate.memory
    shared = f", one of {estimate.processes} ranks ({estimate.preset})" if estimate.processes > 1 else ""
    parts = [
        f"model       {estimate.model}",
        f"parameters  {_count(memory.parameters)}, of which {_count(memory.trained)} are trained{_experts(estimate)}",
        f"a rank      {work.completions} completions a step{shared}; prompts of {work.prompt} tokens ({estimate.prompt})",
        *_schedule(estimate),
        "",
        "Memory of a rank",
        *_columns([(line.name, nice(line.bytes), line.words) for line in memory.resident]),
        "  and, one at a time,",
        *_columns([(line.name, nice(line.bytes), line.words) for line in memory.peaks]),
        *_columns([("in all", nice(memory.total), "the first lines and the largest of the others")]),
        *_verdict(estimate, gpu_memory),
        "",
        "Floating-point operations of a rank in a training step (1 T = 10^12)",
        f"  trunk       2 W = {_count(costs.trunk)} a token{_adapters(estimate)}; attention 4 S D layers ="
        f" {_count(costs.attention(work.passes[0].attended))} a token; head {_count(costs.head)} a position",
        *_columns([_operations(estimate, p) for p in work.passes]),
        *_time(estimate),
        "",
        f"Rewards     {work.rewards} completions at most. Their time is not counted, nor is loading and saving.",
    ]
    return "\n".join(parts)


def _schedule(estimate: StepEstimate) -> list[str]:
    if estimate.schedule == "fixed":
        return []
    return [
        f"schedule    {estimate.schedule} is adaptive, so rollouts are priced at their upper limit, sampler.num_steps. For N",
        "            forward passes a completion, which runs log as diffusion/forwards, estimate with sampler.schedule=fixed",
        "            and sampler.num_steps=N.",
    ]


def _operations(estimate: StepEstimate, work: Pass) -> tuple[str, str, str]:
    costs = estimate.costs
    formula = f"{work.tokens:,} tokens x {_count(costs.token(work))}"
    if work.columns * costs.column(work) > 0.001 * costs.total(work):
        formula += f" + {work.columns:,} columns x {_count(costs.column(work))} in the last layer"
    if work.head * costs.head > 0.001 * costs.total(work):
        formula += f" + {work.head:,} positions x {_count(costs.head)}"
    if work.backward:
        formula += f", and backward {_count(costs.backward(work))}"
        formula += " (with recomputation)" if costs.recomputes else ""
    passes = "pass" if work.forwards == 1 else "passes"
    return work.name, _count(costs.total(work)), f"{formula}; {work.words}, {work.forwards} forward {passes}"


def _experts(estimate: StepEstimate) -> str:
    """Return the size of the experts of a mixture; empty for other models."""
    costs = estimate.costs
    if not costs.stacks:
        return ""
    return f"; {_count(costs.stacks)} are in experts, and a token is multiplied with {_count(costs.used)}"


def _adapters(estimate: StepEstimate) -> str:
    """Return the operations and bytes of adapters beside the weights; empty without adapters."""
    costs = estimate.costs
    return f", adapters {_count(costs.adapters)} and {nice(costs.adapter_bytes)} to move" if costs.adapters else ""


def _time(estimate: StepEstimate) -> Iterable[str]:
    times, rates, work = estimate.durations, estimate.rates, estimate.work
    if times is None or rates is None:
        return [
            "",
            "Time        needs --flops, the FLOP/s that a rank sustains. Two fifths of the peak is usual:",
            "            4e14 on an H100 in bfloat16, 1.2e14 on an A100.",
        ]
    rows = [(p.name, _duration(times.passes[p.name]), _rule(estimate, p)) for p in work.passes]
    rollouts = f" ({rates.rollout:.3g} in rollouts)" if rates.rollout != rates.update else ""
    hours = times.run / 3600
    gpu_hours = hours * estimate.processes
    whole = f"{work.steps:,} steps and {work.evaluations} evaluations of {_duration(times.evaluation)} each"
    cost = f"; at {estimate.price:g} an hour {gpu_hours * estimate.price:,.0f}" if estimate.price is not None else ""
    ranks = f" on each of {estimate.processes} GPUs" if estimate.processes > 1 else ""
    return [
        "",
        f"Time at {rates.update:.3g} FLOP/s{rollouts} and {rates.bandwidth:.3g} bytes/s, if no completion ends early",
        *_columns([*rows, ("a training step", _duration(times.step), f"{3600 / times.step:.3g} steps an hour")]),
        *_columns([("the run", f"{hours:.3g} h", f"{whole}{ranks}")]),
        *_columns([("GPU-hours", f"{gpu_hours:,.3g}", f"hours x GPUs{cost}")]),
    ]


def _rule(estimate: StepEstimate, work: Pass) -> str:
    """Return the calculation of the time of a pass."""
    moved = estimate.costs.moved(work)
    return "operations / rate" + (f" + {nice(moved)} of adapters / bandwidth" if moved else "")


def _verdict(estimate: StepEstimate, gpu_memory: float | None) -> list[str]:
    if gpu_memory is None:
        return []
    if estimate.memory.fits(gpu_memory):
        return [f"  fits {nice(gpu_memory)}, including {RESERVE}"]
    largest = max(estimate.memory.peaks, key=lambda line: line.bytes)
    remedy = {
        "rollout": "a smaller rollout_batch_size",
        "update": "a smaller views_per_forward, gradient_checkpointing: true",
    }.get(largest.name, "a smaller views_per_forward")
    return [
        f"  does NOT fit {nice(gpu_memory)}, including {RESERVE}. For the peak, try {remedy}. "
        "For the rest, try lora, lora.quantize: 4bit or the preset zero3."
    ]


def _columns(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    return [f"  {name:<28}{value:>10}  {words}" for name, value, words in rows]


def _count(value: float) -> str:
    """Format a number with a suffix, such as 8.02 G."""
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.4g} {unit}"
    return f"{value:.0f}"


def _duration(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 600 else f"{seconds / 60:.3g} min"

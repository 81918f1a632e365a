"""Memory of one process, part by part.

Weights, gradients and optimizer states are counted. What forwards and backwards hold at their peak is followed, tensor by tensor,
while the model and the functions of the engine run on tensors that have shapes and no numbers (torch's fake tensors), with a few
layers, and extended to all of them: what a layer adds is the same for each.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unmask.cli.estimate.shapes import build_fake
from unmask.cli.estimate.work import Pass, Work
from unmask.functional.distribution import token_logprobs
from unmask.models import Denoiser
from unmask.recipes.schema import TrainRecipe
from unmask.sampling import LogprobSettings
from unmask.sampling.step_outputs import PART_ON_CPU, PART_ON_GPU, StepReader
from unmask.trainer.optimizer import state_bytes
from unmask.trainer.peak import peak_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight in 4-bit NormalFloat with doubly quantized scales: a byte for each 64, a float32 for each 256 of those."""

FEW, MORE = 3, 6
"""Layers that are built: ModernBERT's attention repeats every three."""

SHARDED = {"zero2": ("gradients", "optimizer"), "zero3": ("weights", "gradients", "optimizer")}
SHARDED["fsdp2"] = SHARDED["zero3"]
PRESETS = ("none", "ddp", *SHARDED)


@dataclass(frozen=True, slots=True)
class Line:
    """One part."""

    name: str
    bytes: float
    words: str
    """The arithmetic."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What one process holds."""

    resident: tuple[Line, ...]
    """All the time."""
    peaks: tuple[Line, ...]
    """While a phase runs; the largest counts."""
    parameters: float
    trained: float

    @property
    def total(self) -> float:
        """Bytes at the worst moment."""
        return sum(line.bytes for line in self.resident) + max(line.bytes for line in self.peaks)


def memory_of(
    recipe: TrainRecipe,
    config: PreTrainedConfig,
    work: Work,
    *,
    processes: int = 1,
    preset: str = "none",
    on_gpu: bool = False,
) -> Memory:
    """Memory of one of `processes`, sharded as a preset says."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    layers: int = config.num_hidden_layers
    sizes = [layers] if layers <= MORE else [FEW, MORE]
    with FakeTensorMode():
        facts = [_facts(build_fake(config, recipe, size), recipe, work, on_gpu) for size in sizes]

    def whole(name: str) -> float:
        if len(sizes) == 1:
            return float(facts[0][name])
        slope = (facts[1][name] - facts[0][name]) / (MORE - FEW)
        return float(facts[0][name] + slope * (layers - FEW))

    def split(name: str) -> str:
        if len(sizes) == 1:
            return ""
        slope = (facts[1][name] - facts[0][name]) / (MORE - FEW)
        return f"{layers} layers x {nice(slope)} + {nice(whole(name) - layers * slope)}"

    share = {
        part: processes if part in SHARDED.get(preset, ()) else 1 for part in ("weights", "gradients", "optimizer")
    }
    resident = _resident(recipe, whole, share)
    if preset == "ddp" and processes > 1:
        resident.append(Line("DDP's buckets", 4 * whole("trained"), "as large as the gradients"))
    # Before the second chunk there are gradients; where there is but one, they come while its activations go.
    update = whole("second") if work.chunks > 1 else whole("first") - 4 * whole("trained")
    by_name = {p.name: p for p in work.passes}
    rollout, last = by_name["rollout"], by_name["update"]
    which = "second" if work.chunks > 1 else "first"
    peaks = [
        Line(
            "rollout",
            whole("rollout"),
            f"{rollout.rows} rows, {rollout.width} x {config.vocab_size} logits each; {split('rollout')}",
        ),
        Line(
            "update",
            update,
            f"{last.rows} views, {last.width} x {config.vocab_size} logits each; {split(which)}",
        ),
    ]
    for name in ("old policy", "reference"):
        if name in by_name:
            found = by_name[name]
            kept = 4 * int(work.views.target.sum()) * config.vocab_size if _keeps_distributions(recipe, name) else 0
            peaks.append(
                Line(
                    f"{name} pass",
                    whole("scores") + kept,
                    f"{found.rows} views, no graph" + (", all distributions kept" if kept else ""),
                )
            )
    return Memory(tuple(resident), tuple(peaks), whole("frozen") + whole("trained"), whole("trained"))


def nice(value: float) -> str:
    """Bytes in the unit that suits them; 1 GB is 10^9."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"


def _keeps_distributions(recipe: TrainRecipe, name: str) -> bool:
    return name == "reference" and recipe.method.needs().reference == "distribution"


def _resident(recipe: TrainRecipe, whole: Callable[[str], float], share: dict[str, int]) -> list[Line]:
    size = 2 if recipe.dtype == "bfloat16" else 4
    frozen, quantized, trained = (whole(name) for name in ("frozen", "quantized", "trained"))
    of = {part: f" / {n} processes" if n > 1 else "" for part, n in share.items()}
    lines = []
    if recipe.lora:
        rest = frozen - quantized
        words = f"{rest / 1e6:.1f}e6 x {size} B"
        if quantized:
            words = f"{quantized / 1e6:.1f}e6 x {NF4:.3f} B (nf4) + " + words
        lines.append(Line("weights, frozen", (quantized * NF4 + rest * size) / share["weights"], words + of["weights"]))
        lines.append(Line("adapters", trained * 4 / share["weights"], f"{trained / 1e6:.1f}e6 x 4 B" + of["weights"]))
        trained_size = 4
    else:
        lines.append(
            Line("weights", trained * size / share["weights"], f"{trained / 1e6:.1f}e6 x {size} B" + of["weights"])
        )
        trained_size = size
    number = f"{trained / 1e6:.1f}e6"
    lines.append(
        Line("gradients", trained * trained_size / share["gradients"], f"{number} x {trained_size} B" + of["gradients"])
    )
    state = state_bytes(trained * trained_size, recipe.optim)
    words = f"state: {state / (trained * trained_size):.3g} x {number} x {trained_size} B"
    lines.append(Line("optimizer", state / share["optimizer"], words + of["optimizer"]))
    if recipe.method.needs().reference != "none":
        if not recipe.lora:
            where = 0 if recipe.reference_offload else trained * size
            words = (
                "in the CPU's memory (reference_offload)"
                if recipe.reference_offload
                else f"a frozen copy: {number} x {size} B"
            )
            lines.append(Line("reference", where, words))
        elif recipe.sync_ref_model:
            lines.append(Line("reference", trained * 4, f"a second adapter: {number} x 4 B"))
        else:
            lines.append(Line("reference", 0, "the adapters switched off"))
    return lines


def _facts(denoiser: Denoiser, recipe: TrainRecipe, work: Work, on_gpu: bool) -> dict[str, float]:
    """Numbers of weights, and the peak of each phase in bytes, of a model in fake mode."""
    parameters = list(denoiser.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    quantized = 0
    if recipe.lora and recipe.lora.quantize == "4bit":
        trunk = denoiser.backbone.base_model.modules()
        matrices = {
            id(m.weight): m.weight for m in trunk if isinstance(m, torch.nn.Linear) and not m.weight.requires_grad
        }
        quantized = sum(weight.numel() for weight in matrices.values())
    by_name = {p.name: p for p in work.passes}
    length = work.prompt + recipe.sampler.max_completion_length
    update = by_name["update"]

    def backward() -> None:
        _scored(denoiser, recipe, update, length, work.views.tokens).sum().backward()

    first = peak_bytes(backward, denoiser)
    second = peak_bytes(backward, denoiser)
    with torch.no_grad():
        scores = peak_bytes(lambda: _scored(denoiser, recipe, by_name.get("reference", update), length, None), denoiser)
        rollout = peak_bytes(lambda: _sampled(denoiser, recipe, by_name["rollout"], length, on_gpu), denoiser)
    return {
        "frozen": sum(p.numel() for p in parameters) - trained,
        "trained": trained,
        "quantized": quantized,
        "first": first,
        "second": second,
        "scores": scores,
        "rollout": rollout,
    }


def _logits(denoiser: Denoiser, recipe: TrainRecipe, rows: int, width: int, length: int) -> Tensor:
    """As `predict` makes them."""
    ids = torch.zeros(rows, length, dtype=torch.long)
    positions = torch.zeros(rows, width, dtype=torch.long)
    is_mixed = recipe.mixed_precision == "bf16"
    with torch.autocast("cpu", torch.bfloat16) if is_mixed else nullcontext():
        logits: Tensor = denoiser(ids, None, positions)
        if recipe.sampler.guidance:
            without = denoiser(ids, None, positions)
            logits = without + (1.0 + recipe.sampler.guidance) * (logits - without)
        if is_mixed:
            logits = logits.float()
        return logits.masked_fill(torch.zeros(logits.shape[-1], dtype=torch.bool), -torch.inf)


def _scored(denoiser: Denoiser, recipe: TrainRecipe, work: Pass, length: int, readings: Tensor | None) -> Tensor:
    """As `view_logprobs` scores, from the logits on."""
    logits = _logits(denoiser, recipe, work.rows, work.width, length)
    tokens = torch.zeros(work.rows, work.width, 1 if readings is None else readings.shape[1], dtype=torch.long)
    given = recipe.logprob_temperature
    scoring = (
        LogprobSettings(given, 0, 1.0)
        if given != "sampling"
        else LogprobSettings(recipe.sampler.temperature, recipe.sampler.top_k, recipe.sampler.top_p)
    )
    logprobs = token_logprobs(logits, scoring.temperature, scoring.top_k, scoring.top_p, keep=tokens)
    return logprobs.gather(-1, tokens)


def _sampled(denoiser: Denoiser, recipe: TrainRecipe, work: Pass, length: int, on_gpu: bool) -> object:
    """As the sampler reads the logits of its first step: whole rows of them, or a part, at a time."""
    needs = recipe.method.needs()
    logits = _logits(denoiser, recipe, work.rows, work.width, length)
    room = max(1, (PART_ON_GPU if on_gpu else PART_ON_CPU) // logits.shape[-1])
    columns = min(room, recipe.sampler.block)
    rows = min(work.rows, max(1, room // columns))
    reader = StepReader(
        recipe.sampler, 1.0 if recipe.logprob_temperature != "sampling" else None, needs.greedy, needs.branches
    )
    positions = torch.zeros(rows, columns, dtype=torch.long)
    seed: Any = torch.zeros(rows, dtype=torch.long)
    return logits.argmax(-1), reader.read_part(logits[:rows, :columns], seed, 0, positions)

"""Memory of one rank, part by part.

Weights, gradients and optimizer states are counted. The peaks of forward and backward passes are
measured: the model and the functions of the engine run on torch's fake tensors, which have shapes
but no numbers, and the measurement counts every tensor from its creation until it is freed. A deep
model is measured at two small depths and extrapolated, because every layer adds the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unmask.cli.estimate.shapes import build_fake
from unmask.cli.estimate.work import Pass, Work, merges, scores_choice
from unmask.core.denoising import KeyValueCache, NoisyCopies, Readout
from unmask.core.records import Needs
from unmask.models import Denoiser
from unmask.models.native import NATIVE_CLASSES
from unmask.recipes.schema import TrainRecipe
from unmask.sampling import LogprobSettings
from unmask.sampling.step_outputs import CPU_CHUNK, GPU_CHUNK, Proposer
from unmask.trainer.model_limits import logits_at_once
from unmask.trainer.optimizer import state_bytes
from unmask.trainer.passes import UpdatePasses
from unmask.trainer.peak import peak_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight in 4-bit NormalFloat with doubly quantized scales: one byte per 64 weights, and
one float32 per 256 scales."""

FEW, MORE = 3, 6
"""Numbers of layers that are built; multiples of 3, since ModernBERT's kinds of attention repeat
every three layers. With fewer layers, the peak of a phase may be at its head instead."""

SHARDED = {"zero2": ("gradients", "optimizer"), "zero3": ("weights", "gradients", "optimizer")}
SHARDED["fsdp2"] = SHARDED["zero3"]
"""Parts of the memory that each preset divides among the ranks."""
PRESETS = ("none", "ddp", *SHARDED)
"""Names of the ways in which ranks share a model."""


@dataclass(frozen=True, slots=True)
class Line:
    """One part of the memory."""

    name: str
    """Name of the part."""
    bytes: float
    """Size of the part."""
    words: str
    """Text that shows how the size is calculated."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of one rank."""

    resident: tuple[Line, ...]
    """Parts that are held during the whole training step."""
    peaks: tuple[Line, ...]
    """Parts that are held one after the other, so only the largest counts."""
    parameters: float
    """Number of parameters."""
    trained: float
    """Number of parameters that are trained."""

    @property
    def total(self) -> float:
        """Largest number of bytes that are held at once."""
        return sum(line.bytes for line in self.resident) + max(line.bytes for line in self.peaks)

    def fits(self, room: float) -> bool:
        """Return True if a device with `room` bytes of memory holds the rank.

        Allocators lose memory between blocks, and a CUDA context takes half a gigabyte before
        anything is allocated.
        """
        return 1.1 * self.total + 0.5e9 <= room


@dataclass(frozen=True, slots=True)
class _Measured:
    """Measurements of models with fewer layers, extrapolated to all layers."""

    layers: int
    """Number of layers of the whole model."""
    facts: dict[int, dict[str, float]]
    """Measurements by number of layers: one entry for the whole model, or entries for a few and for
    more layers."""

    def slope(self, name: str) -> float:
        """Return the amount that one layer adds; 0 if the whole model was measured."""
        few, more = min(self.facts), max(self.facts)
        return (self.facts[more][name] - self.facts[few][name]) / (more - few) if more > few else 0.0

    def __getitem__(self, name: str) -> float:
        first = min(self.facts)
        return float(self.facts[first][name] + self.slope(name) * (self.layers - first))

    def words(self, name: str) -> str:
        """Return a text that shows how the value is extrapolated; empty if it is not
        extrapolated."""
        slope = self.slope(name)
        return f"; {self.layers} layers x {nice(slope)} + {nice(self[name] - self.layers * slope)}" if slope else ""


def memory_of(
    recipe: TrainRecipe,
    config: PreTrainedConfig,
    work: Work,
    *,
    processes: int = 1,
    preset: str = "none",
    on_gpu: bool = False,
) -> Memory:
    """Estimate the memory of one rank.

    Args:
        recipe: settings of the run.
        config: configuration of the model.
        work: work of the rank in a training step.
        processes: number of ranks.
        preset: how the ranks share the model.
        on_gpu: True if the memory is that of a GPU.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    layers: int = config.num_hidden_layers
    sizes = [layers] if layers <= MORE else [FEW, MORE]
    with FakeTensorMode():
        facts = {size: _facts(build_fake(config, recipe, size), recipe, work, on_gpu) for size in sizes}
    measured = _Measured(layers, facts)
    share = {
        part: processes if part in SHARDED.get(preset, ()) else 1 for part in ("weights", "gradients", "optimizer")
    }
    resident = [*_resident(recipe, measured, share, keeps_shards=preset == "fsdp2" and processes > 1)]
    peaks = [*_peaks(recipe, config, work, measured, preset if processes > 1 else "none")]
    for states in work.of("critic"):
        size, count = config.hidden_size + 2, states.tokens // states.length
        told = f"second moments: {size} x {size} x 8 B; features: {count} x {size - 2} x 4 B"
        resident.append(Line("critic", 8 * size**2 + 4 * count * (size - 2), told))
        told = "the larger of two more matrices, to solve, and of one with the features twice, to learn"
        peaks.append(Line("critic", max(16 * size**2, 8 * size**2 + 16 * count * size), told))
    return Memory(tuple(resident), tuple(peaks), measured["frozen"] + measured["trained"], measured["trained"])


def weight_size(recipe: TrainRecipe) -> int:
    """Return the bytes of a weight in a forward pass."""
    return 2 if recipe.precision == "bf16" else 4


def nice(size: float) -> str:
    """Format a number of bytes in the unit that suits it; 1 GB is 10^9 bytes."""
    for unit, unit_size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(size) >= unit_size:
            return f"{size / unit_size:.3g} {unit}"
    return f"{size:.0f} B"


def _resident(recipe: TrainRecipe, measured: _Measured, share: dict[str, int], *, keeps_shards: bool) -> Iterator[Line]:
    """Yield the parts of the memory that stay.

    Args:
        recipe: settings of the run.
        measured: numbers of weights.
        share: number of ranks that share each part.
        keeps_shards: True if the model holds shards of the master weights alone, from which FSDP2
            gathers weights in their precision.
    """
    size = weight_size(recipe)
    frozen, quantized, trained = measured["frozen"], measured["quantized"], measured["trained"]
    divided = {part: f" / {n} ranks" if n > 1 else "" for part, n in share.items()}
    number = f"{trained / 1e6:.1f}e6"
    if recipe.lora:
        rest = frozen - quantized
        words = f"{quantized / 1e6:.1f}e6 x {NF4:.3f} B (nf4) + " if quantized else ""
        words += f"{rest / 1e6:.1f}e6 x {size} B{divided['weights']}"
        yield Line("weights, frozen", (quantized * NF4 + rest * size) / share["weights"], words)
    name = "adapters" if recipe.lora else "weights"
    if not keeps_shards or size == 4:
        yield Line(name, trained * size / share["weights"], f"{number} x {size} B{divided['weights']}")
    if size < 4:
        # What the optimizer updates. ZeRO and FSDP2 keep it in shards, as the optimizer's state.
        yield Line("master weights", trained * 4 / share["optimizer"], f"{number} x 4 B{divided['optimizer']}")
    yield Line("gradients", trained * 4 / share["gradients"], f"{number} x 4 B{divided['gradients']}")
    state = state_bytes(trained * 4, recipe.optim)
    words = f"state: {state / (trained * 4):.3g} x {number} x 4 B{divided['optimizer']}"
    yield Line("optimizer", state / share["optimizer"], words)
    if recipe.method.needs().reference == "none":
        return
    # A reference that moves by a small share needs float32 copies of bfloat16 weights.
    is_fine = recipe.sync_ref_model and recipe.ref_model_mixup_alpha < 1 and size < 4
    held, each = size + 4 * is_fine, f"({size} + 4) B" if is_fine else f"{size} B"
    if recipe.lora and recipe.sync_ref_model:
        yield Line("reference", trained * held, f"a second adapter: {number} x {each}")
    elif recipe.lora:
        yield Line("reference", 0, "the policy without its adapters")
    elif recipe.reference_offload:
        yield Line("reference", 0, "in the CPU's memory (reference_offload)")
    else:
        yield Line("reference", trained * held, f"a frozen copy: {number} x {each}")


def _gathered(recipe: TrainRecipe, measured: _Measured, preset: str, *, backward: bool) -> tuple[float, str]:
    """Return the bytes of the weights that a pass over shards gathers at a time, and the words that
    explain them. These are the layer that runs and the next one, and the embeddings and the head.
    In a backward pass, trained ones have whole gradients until these are reduced."""
    if "weights" not in SHARDED.get(preset, ()):
        return 0.0, ""
    layer = measured["layer"]
    outside = measured["frozen"] + measured["trained"] - measured.layers * layer
    total = weight_size(recipe) * (2 * layer + outside)
    if backward and not recipe.lora:
        total += 4 * (layer + outside)
    return total, f"; {nice(total)} gathered"


def _whole_weights(recipe: TrainRecipe, measured: _Measured, preset: str) -> tuple[float, str]:
    """Return the bytes of the weights that a rank holds for rollouts beside those of training, and
    the words that explain them; see `RolloutWeights`."""
    size, parameters = weight_size(recipe), measured["frozen"] + measured["trained"]
    is_quantized = recipe.lora is not None and recipe.lora.quantize != "none"
    if "weights" in SHARDED.get(preset, ()) and recipe.rollout_weights != "sharded" and not is_quantized:
        return parameters * size, f"; whole weights {parameters / 1e6:.1f}e6 x {size} B"
    if merges(recipe):
        return measured["adapted"] * size, f"; merged weights {measured['adapted'] / 1e6:.1f}e6 x {size} B"
    return 0.0, ""


def _peaks(
    recipe: TrainRecipe, config: PreTrainedConfig, work: Work, measured: _Measured, preset: str
) -> Iterator[Line]:
    by_name, passes = {p.name: p for p in work.passes}, UpdatePasses(recipe)
    whole, told_whole = _whole_weights(recipe, measured, preset)

    def words(name: str, unit: str) -> str:
        return f"{by_name[name].rows} {unit}, {by_name[name].width} x {config.vocab_size} logits each"

    told = words("rollout", "completions") + measured.words("rollout") + told_whole
    yield Line("rollout", measured["rollout"] + whole, told)
    evaluated, name = work.evaluation, "evaluation"
    told = f"{evaluated.rows} completions, {evaluated.width} x {config.vocab_size} logits each"
    yield Line(name, measured[name] + whole, told + measured.words(name) + told_whole)
    # In a single chunk the gradients are made while its activations go.
    made = 0 if work.chunks > 1 else (2 if recipe.precision == "bf16" else 4) * measured["trained"]
    gathered, told = _gathered(recipe, measured, preset, backward=True)
    told = words("update", "views") + measured.words("update") + told
    yield Line("update", measured["update"] - made + gathered, told)
    gathered, told = _gathered(recipe, measured, preset, backward=False)
    for name in ("old policy", "behaviour ratio", "reference"):
        if name not in by_name:
            continue
        keeps_all = {"old policy": passes.keeps_old, "reference": passes.keeps_reference}.get(name, False)
        kept = 4 * int(work.views.target.sum()) * config.vocab_size if keeps_all else 0
        note = ", all distributions kept" if keeps_all else ""
        size, is_copy = measured["scores"] + kept, name == "reference" and not recipe.lora
        # A frozen copy is whole on every rank.
        size += 0 if is_copy else gathered
        yield Line(f"{name} pass", size, f"{by_name[name].rows} views, no graph{note}{'' if is_copy else told}")


def _facts(denoiser: Denoiser, recipe: TrainRecipe, work: Work, on_gpu: bool) -> dict[str, float]:
    """Count the weights of a model of fake tensors, and measure the peak of each phase in bytes."""
    parameters = list(denoiser.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    quantized = 0
    if recipe.lora and recipe.lora.quantize == "4bit":
        linear = [m.weight for m in denoiser.backbone.base_model.modules() if isinstance(m, torch.nn.Linear)]
        quantized = sum(weight.numel() for weight in {id(w): w for w in linear if not w.requires_grad}.values())
    adapted: list[Any] = [m for m in denoiser.modules() if hasattr(m, "base_layer")]
    trunk = denoiser.backbone.base_model
    layers: Any = trunk.get_submodule(NATIVE_CLASSES[type(denoiser.backbone).__name__].last.layers)
    by_name = {p.name: p for p in work.passes}
    length = work.prompt + recipe.sampler.max_completion_length
    update = by_name["update"]

    def backward() -> None:
        _scored(denoiser, recipe, update, work.views.tokens, on_gpu).sum().backward()

    if work.chunks > 1:
        # The first chunk has made the gradients before the others run.
        for parameter in parameters:
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
    updated = peak_bytes(backward, denoiser)
    scored, rollout = by_name.get("reference", update), by_name["rollout"]
    with torch.no_grad():
        scores = peak_bytes(lambda: _scored(denoiser, recipe, scored, None, on_gpu), denoiser)
        sampled = peak_bytes(lambda: _sampled(denoiser, recipe, rollout, length, on_gpu), denoiser)
        evaluated = peak_bytes(
            lambda: _sampled(denoiser, recipe, work.evaluation, length, on_gpu, is_evaluation=True), denoiser
        )
    return {
        "frozen": sum(p.numel() for p in parameters) - trained,
        "trained": trained,
        "quantized": quantized,
        "layer": sum(p.numel() for p in layers.parameters()) / len(layers),
        "adapted": sum(_adapted_weight(layer).numel() for layer in adapted),
        "update": updated,
        "scores": scores,
        "rollout": sampled,
        "evaluation": evaluated,
    }


def _adapted_weight(layer: Any) -> Tensor:
    """Return the weight that an adapter is added to: a matrix, or a stack of experts."""
    weight: Tensor = layer.get_param() if hasattr(layer, "parameter_name") else layer.base_layer.weight
    return weight


def _logits(
    denoiser: Denoiser,
    recipe: TrainRecipe,
    rows: int,
    width: int,
    length: int,
    caches: Sequence[KeyValueCache] = (),
    **options: Any,
) -> Tensor:
    """Compute logits as `predict` does."""
    ids = torch.zeros(rows, length, dtype=torch.long)
    positions = torch.zeros(rows, width, dtype=torch.long)
    cached: list[dict[str, Any]] = [{"cache": cache} for cache in caches] or [options, options]
    logits: Tensor = denoiser(ids, None, positions, **cached[0])
    if recipe.sampler.guidance:
        without = denoiser(ids, None, positions, **cached[1])
        logits = without + (1.0 + recipe.sampler.guidance) * (logits - without)
    logits[..., 0] = -torch.inf
    return logits


def _scored(denoiser: Denoiser, recipe: TrainRecipe, work: Pass, readings: Tensor | None, on_gpu: bool) -> Tensor:
    """Compute log-probabilities as `view_logprobs` does."""
    ids = torch.zeros(work.rows, work.length, dtype=torch.long)
    options: dict[str, Any] = {}
    if denoiser.block_length is not None:
        # Masks of noisy copies differ from row to row.
        options["copies"] = NoisyCopies(ids, ids, ids)
    settings = LogprobSettings.of_sampler(recipe.sampler, recipe.logprob_temperature)
    num_readings = 1 if readings is None else readings.shape[1]

    def read(logits: Tensor, tokens: Tensor) -> Tensor:
        return settings.logprobs(logits, tokens).gather(-1, tokens)

    if work.is_wide:
        logits = _logits(denoiser, recipe, work.rows, work.width, work.length, **options)
        return read(logits, torch.zeros(*logits.shape[:2], num_readings, dtype=torch.long))

    def read_without_mask(logits: Tensor, tokens: Tensor) -> Tensor:
        logits[..., 0] = -torch.inf
        return read(logits, tokens)

    # A mask has no shape without numbers. Indices select as many positions.
    index: Any = (torch.zeros(work.read, dtype=torch.long),) * 2
    tokens = torch.zeros(work.read, num_readings, dtype=torch.long)
    at_once = max(1, logits_at_once("cuda" if on_gpu else "cpu") // denoiser.vocab_size)
    is_linear = settings.has_full_support and not (scores_choice(recipe) or recipe.method.reads().entropy)
    readout = Readout(read_without_mask, index, tokens, at_once, settings.temperature if is_linear else None, 0)
    positions = torch.zeros(work.rows, work.width, dtype=torch.long)
    values: Tensor = denoiser(ids, None, positions, readout=readout, **options)
    return values


def _sampled(
    denoiser: Denoiser, recipe: TrainRecipe, work: Pass, length: int, on_gpu: bool, *, is_evaluation: bool = False
) -> object:
    """Read the logits of the first denoising step as the sampler does: all rows or a part of them
    at a time. With a cache, its keys and values stay."""
    sampler, needs = recipe.sampler, Needs() if is_evaluation else recipe.method.needs()
    is_cached = not sampler.is_exact or denoiser.block_length is not None
    caches = [KeyValueCache() for _ in range(2 if sampler.guidance else 1)] if is_cached else []
    # One-step completions beyond the block come from full forward passes after the last step.
    width = work.width if sampler.is_exact else min(work.width, sampler.block)
    logits = _logits(denoiser, recipe, work.rows, width, length, caches)
    at_once = max(1, (GPU_CHUNK if on_gpu else CPU_CHUNK) // logits.shape[-1])
    columns = min(at_once, sampler.block)
    rows = min(work.rows, max(1, at_once // columns))
    entropy_temperature = None if recipe.logprob_temperature == "sampling" else 1.0
    proposer = Proposer(sampler, entropy_temperature, needs.greedy, needs.branches)
    positions = torch.zeros(rows, columns, dtype=torch.long)
    seed: Any = torch.zeros(rows, dtype=torch.long)
    likeliest = logits.argmax(-1)
    proposer.propose_chunk(logits[:rows, :columns], seed, positions[:, :1], positions)
    del logits
    if work.width > width:
        likeliest = _logits(denoiser, recipe, work.rows, work.width, length).argmax(-1)
    return likeliest, caches

"""The least time that the operations of an 8B model can take on a GPU, with and without adapters.

    python -m benchmark.roofline                  # the table of docs/adapters.md
    python -m benchmark.roofline --measure        # CPU times of a smaller model, as a check

The real modules run on meta tensors, which have shapes and no numbers, so every operation that
PyTorch would start on a GPU is seen at its full shape. An operation takes at least as long as its
floating-point operations at the peak rate of its data type, as the bytes that it reads and writes
at the bandwidth of the memory, and as the start of a kernel. Attention counts as one fused kernel.
Not seen are the efficiency of kernels at unusual shapes, clocks, and overlap.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from transformers import LlamaConfig, LlamaForCausalLM

from unmask.core.config import LoraConfig
from unmask.models import Denoiser
from unmask.models.adapters import Adapters

LLADA = {"width": 4096, "layers": 32, "heads": 32, "ffn": 12288, "vocab": 126464}
"""Shape of LLaDA-8B."""
FEW, MORE = 2, 4
"""Numbers of layers that are priced; every further layer adds the same."""


@dataclass(frozen=True)
class Machine:
    """Sustained rates of a GPU. The defaults are those of an H100 SXM."""

    flops: tuple[tuple[torch.dtype, float], ...] = ((torch.bfloat16, 640e12), (torch.float32, 54e12))
    """Floating-point operations per second of matrix products, by the data type of their inputs."""
    bandwidth: float = 2.85e12
    """Bytes per second."""
    launch: float = 4e-6
    """Seconds from the start of one small kernel to the next."""


class Roofline(TorchDispatchMode):
    """Adds up the least time of every operation in its block.

    Args:
        machine: rates of the GPU.
    """

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self.machine = machine
        self.seconds: Counter[str] = Counter()
        """Time by kind: matrix products by data type, and everything else."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **kwargs or {})
        if function.is_view or not any(isinstance(leaf, Tensor) for leaf in tree_leaves(made)):
            return made
        packet = function._overloadpacket
        if packet in _NO_WORK:
            return made
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        out = [leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
        moved = sum(t.nbytes for t in out) + sum(t.nbytes for t in given)
        if packet in _READS_WHAT_IT_WRITES:
            moved = 2 * sum(t.nbytes for t in out)
        flops = flop_registry[packet](*args, **kwargs or {}, out_val=made) if packet in flop_registry else 0
        self.add(given[0].dtype if given else torch.float32, flops, moved)
        return made

    def add(self, dtype: torch.dtype, flops: float, moved: float) -> None:
        """Add one operation."""
        rate = dict(self.machine.flops).get(dtype, dict(self.machine.flops)[torch.float32])
        kind = f"{str(dtype).removeprefix('torch.')} products" if flops else "everything else"
        self.seconds[kind] += max(flops / rate, moved / self.machine.bandwidth, self.machine.launch)

    @property
    def total(self) -> float:
        """Sum over all operations in seconds."""
        return sum(self.seconds.values())


_ATEN = torch.ops.aten
_NO_WORK = {_ATEN.detach, _ATEN.empty, _ATEN.empty_like, _ATEN.new_empty, _ATEN._unsafe_view, _ATEN.lift_fresh}
_READS_WHAT_IT_WRITES = {_ATEN.embedding, _ATEN.gather, _ATEN.index, _ATEN.index_select, _ATEN.zeros, _ATEN.arange}


class _FusedAttention(torch.autograd.Function):
    """Attention as one kernel: 4 S² D operations for each head forward and 10 S² D backward
    (arXiv:2205.14135), and every tensor is read or written once."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, price: Callable[..., None]) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.price, ctx.work = price, 2.0 * query.numel() * key.shape[-2]
        price(query.dtype, 2 * ctx.work, 2 * query.nbytes + key.nbytes + value.nbytes)
        return query.new_empty(query.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        ctx.price(inputs[0].dtype, 5 * ctx.work, 2 * sum(t.nbytes for t in inputs) + 2 * inputs[0].nbytes)
        return *(t.new_empty(t.shape) for t in inputs), None


@contextmanager
def priced(machine: Machine) -> Iterator[Roofline]:
    """Price the operations of a block, with attention as one kernel."""
    roofline, plain = Roofline(machine), nn.functional.scaled_dot_product_attention

    def fused(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
        made: Tensor = _FusedAttention.apply(query, key, value, roofline.add)  # type: ignore[no-untyped-call]
        return made

    nn.functional.scaled_dot_product_attention = fused
    try:
        with roofline:
            yield roofline
    finally:
        nn.functional.scaled_dot_product_attention = plain


def build(shape: dict[str, int], layers: int, rank: int, adapters: str) -> Denoiser:
    """Build a LLaDA-like denoiser in bfloat16 on the current device.

    Args:
        shape: width, heads, ffn and vocab.
        layers: number of layers.
        rank: rank of the adapters.
        adapters: `none`, `bf16` as unmask makes them, or `float32` as peft makes them.
    """
    config = LlamaConfig(
        vocab_size=shape["vocab"],
        hidden_size=shape["width"],
        intermediate_size=shape["ffn"],
        num_hidden_layers=layers,
        num_attention_heads=shape["heads"],
        tie_word_embeddings=False,
    )
    config.is_causal = False
    denoiser = Denoiser(LlamaForCausalLM(config).to(torch.bfloat16).eval(), 0, 1, 1)
    denoiser.requires_grad_(False)
    if adapters != "none":
        for _, parameter in Adapters(denoiser, LoraConfig(r=rank, alpha=rank)).parameters():
            if adapters == "float32":
                parameter.data = parameter.data.float()
    return denoiser


def forward(denoiser: Denoiser, ids: Tensor, positions: Tensor) -> Tensor:
    """Run the forward pass of a denoising step."""
    with torch.no_grad():
        return denoiser(ids, None, positions)


def update(denoiser: Denoiser, ids: Tensor, positions: Tensor) -> None:
    """Run the forward and backward pass of a batch of views. Without adapters, the gradient of the
    embedded tokens makes the backward pass run through all layers."""
    embedded: list[Tensor] = []

    def differentiate(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[0]

    handle = denoiser.backbone.get_input_embeddings().register_forward_hook(differentiate)
    try:
        denoiser(ids, None, positions).log_softmax(-1).sum().backward()
    finally:
        handle.remove()


def seconds(work: Callable[..., Any], adapters: str, options: argparse.Namespace, rows: int, read: int) -> Roofline:
    """Return the priced operations of a pass over `rows` sequences, of which `read` positions are
    read, extrapolated to all layers."""
    found = []
    for layers in (FEW, MORE):
        with torch.device("meta"):
            denoiser = build(LLADA, layers, options.rank, adapters)
            ids = torch.zeros(rows, options.tokens, dtype=torch.long)
            positions = torch.zeros(rows, read, dtype=torch.long)
            with priced(Machine()) as roofline:
                work(denoiser, ids, positions)
        found.append(roofline)
    few, more = found
    whole = Roofline(few.machine)
    for kind in few.seconds | more.seconds:
        slope = (more.seconds[kind] - few.seconds[kind]) / (MORE - FEW)
        whole.seconds[kind] = few.seconds[kind] + slope * (LLADA["layers"] - FEW)
    return whole


CASES = {
    "bare, or adapters merged into the weights": "none",
    "adapters in bfloat16": "bf16",
    "adapters in float32, as peft makes them": "float32",
}
"""The rows of the table, and how their adapters are made."""


def table(options: argparse.Namespace) -> list[str]:
    """Return the table as Markdown."""
    lines = [
        "| | forward, ms | x bare | forward and backward, ms | x bare |",
        "|---|---|---|---|---|",
    ]
    bare: tuple[float, float] | None = None
    for name, adapters in CASES.items():
        rollout = seconds(forward, adapters, options, options.rows, options.tokens // 4).total
        training = seconds(update, adapters, options, options.views, 2).total
        bare = bare or (rollout, training)
        ratios = rollout / bare[0], training / bare[1]
        lines.append(f"| {name} | {1e3 * rollout:.0f} | {ratios[0]:.2f} | {1e3 * training:.0f} | {ratios[1]:.2f} |")
    return lines


def measured(options: argparse.Namespace) -> list[str]:
    """Return the CPU times of the same passes on a model of a quarter of the width, relative to the
    bare model: medians, minima and maxima of interleaved pairs."""
    shape = {"width": 1024, "heads": 8, "ffn": 3072, "vocab": 4096}
    models = {name: build(shape, 2, options.rank // 4, adapters) for name, adapters in CASES.items()}
    ids, positions = torch.zeros(4, 114, dtype=torch.long), torch.zeros(4, 2, dtype=torch.long)
    times: dict[tuple[str, str], list[float]] = {}
    for repeat in range(options.repeats + 1):
        for work in (forward, update):
            for name, denoiser in models.items():
                started = time.process_time()
                work(denoiser, ids, positions)
                if repeat:
                    times.setdefault((work.__name__, name), []).append(time.process_time() - started)
    lines = []
    first = next(iter(CASES))
    for (work, name), own in times.items():
        ratios = sorted(a / b for a, b in zip(own, times[work, first], strict=True))
        lines.append(
            f"{work}, {name}: {ratios[len(ratios) // 2]:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) times the bare model"
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, or the measured times."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=456, help="prompt and completion of a sequence")
    parser.add_argument("--rows", type=int, default=48, help="sequences in a forward pass of a rollout")
    parser.add_argument("--views", type=int, default=8, help="views in a forward pass of an update")
    parser.add_argument("--measure", action="store_true", help="measure CPU times instead")
    parser.add_argument("--repeats", type=int, default=9, help="pairs of measurements")
    options = parser.parse_args(arguments)
    print("\n".join(measured(options) if options.measure else table(options)))


if __name__ == "__main__":
    main()

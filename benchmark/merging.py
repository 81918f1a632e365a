"""What merged rollouts cost and keep: time of a forward pass with adapters, and the effect of the
adapters after their sum with bfloat16 weights is rounded.

    python -m benchmark.merging [--width 512 --layers 4 --vocab 2048 --rank 128 --rows 8 --repeats 9]

Times are CPU times of one forward pass in float32, divided by that of the model without adapters;
the three are measured in turn, and the table has the median and the extremes. The second table
takes adapters whose product has entries of a given standard deviation. `kept` is the projection of
the change of the weights on the update, `slope` that of the change of log-probabilities on the
exact change, and `error` the standard deviation of log-probabilities around the exact ones, with
float32 arithmetic and with bfloat16 arithmetic. The exact ones are those of a float32 model with
separate adapters.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from unmask.core.config import LoraConfig
from unmask.models import Denoiser, TinyConfig, char_tokenizer, tiny_denoiser
from unmask.models.adapters import Adapters, remove_layers
from unmask.models.shell import filled, without_weights

LENGTH = 64
SIZES = (1e-6, 1e-5, 1e-4, 1e-3)
"""Standard deviations of the entries of an update."""


def plain(options: argparse.Namespace) -> Denoiser:
    """Return a model whose weights bfloat16 can represent."""
    shape = TinyConfig(num_layers=options.layers, width=options.width, num_heads=8, max_length=LENGTH)
    # A private plane of Unicode has enough characters for any vocabulary size.
    tokenizer = char_tokenizer("".join(chr(0xE000 + i) for i in range(options.vocab - 3)))
    denoiser = tiny_denoiser(shape, tokenizer, seed=0).eval()
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.copy_((parameter if parameter.dim() < 2 else 1.5 * parameter).bfloat16())
    return denoiser


def build(options: argparse.Namespace) -> tuple[Denoiser, Adapters, Denoiser]:
    """Return a model with adapters, the adapters, and an empty copy of the model without them."""
    denoiser = plain(options)
    adapters = Adapters(denoiser, LoraConfig(r=options.rank, alpha=options.rank))
    shell = without_weights(denoiser)
    remove_layers(shell)
    return denoiser, adapters, shell


@torch.no_grad()
def set_update(adapters: Adapters, size: float) -> None:
    """Set B to random numbers, so that the entries of B A have the standard deviation `size`."""
    generator = torch.Generator().manual_seed(1)
    pairs = iter(parameter for _, parameter in adapters.parameters())
    for a, b in zip(pairs, pairs, strict=True):
        b.normal_(generator=generator)
        b.mul_(size / (b @ a).std())


def merged(denoiser: Denoiser, adapters: Adapters, dtype: torch.dtype, *, at_random: bool) -> dict[str, Tensor]:
    """Return the tensors of the merged model, whose sums are rounded to `dtype`."""
    own = dict(denoiser.backbone.named_parameters(remove_duplicate=False))
    whole: Callable[[Tensor], Tensor] = lambda tensor: tensor.detach().to(dtype)  # noqa: E731
    found = {f"backbone.{name}": tensor for name, tensor in adapters.merging(own, whole, at_random=at_random)}
    return found | dict(denoiser.named_buffers(remove_duplicate=False))


def inputs(options: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor]:
    """Return tokens, their columns, and the tokens whose log-probabilities are read."""
    generator = torch.Generator().manual_seed(0)
    ids, read = (torch.randint(3, options.vocab, (options.rows, LENGTH), generator=generator) for _ in range(2))
    return ids, torch.arange(LENGTH).expand(options.rows, -1), read.unsqueeze(-1)


@torch.no_grad()
def logprobs(denoiser: Denoiser, options: argparse.Namespace) -> Tensor:
    """Return the log-probabilities of fixed tokens."""
    ids, columns, read = inputs(options)
    return denoiser(ids, None, columns).float().log_softmax(-1).gather(-1, read).flatten()


def times(options: argparse.Namespace) -> None:
    """Print the time of a forward pass with separate and with merged adapters."""
    denoiser, adapters, shell = build(options)
    set_update(adapters, 1e-3)
    ids, columns, _ = inputs(options)
    started = time.process_time()
    tensors = merged(denoiser, adapters, torch.float32, at_random=True)
    merging = time.process_time() - started
    bare = plain(options)
    spent: dict[str, list[float]] = {"bare": [], "separate": [], "merged": []}
    with torch.no_grad(), filled(shell, tensors) as whole:
        for repeat in range(options.repeats + 2):
            for name, model in (("bare", bare), ("separate", denoiser), ("merged", whole)):
                started = time.process_time()
                model(ids, None, columns)
                if repeat > 1:
                    spent[name].append(time.process_time() - started)
    print(f"| r = {options.rank} | forward pass / bare: median (min to max) |\n|---|---|")
    for name in ("separate", "merged"):
        ratios = [a / b for a, b in zip(spent[name], spent["bare"], strict=True)]
        print(f"| {name} | {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |")
    print(f"| merging once | {merging / statistics.median(spent['bare']):.2f} |\n")


def rounding(options: argparse.Namespace) -> None:
    """Print what rounding of the merged weights to bfloat16 keeps of updates of several sizes."""
    denoiser, adapters, shell = build(options)
    set_update(adapters, 0.0)
    before, base = merged(denoiser, adapters, torch.float32, at_random=False), logprobs(denoiser, options)
    print("| size | rounding | kept | slope | error, float32 | error, bfloat16 |\n|---|---|---|---|---|---|")
    for size in SIZES:
        set_update(adapters, size)
        exact, sums = logprobs(denoiser, options), merged(denoiser, adapters, torch.float32, at_random=False)
        for rule, at_random in (("to nearest", False), ("at random", True)):
            tensors = merged(denoiser, adapters, torch.bfloat16, at_random=at_random)
            change, update = (
                torch.cat([(x[n].float() - before[n]).flatten() for n in before]) for x in (tensors, sums)
            )
            with filled(shell, {name: tensor.float() for name, tensor in tensors.items()}) as whole:
                single = logprobs(whole, options)
            with filled(shell, {name: tensor.bfloat16() for name, tensor in tensors.items()}) as whole:
                half = logprobs(whole, options)
            kept, slope = projection(change, update), projection(single - base, exact - base)
            errors = f"{float((single - exact).std()):.4f} | {float((half - exact).std()):.4f}"
            print(f"| {size:.0e} | {rule} | {kept:.2f} | {slope:.2f} | {errors} |")


def projection(change: Tensor, exact: Tensor) -> float:
    """Return the length of a change along the exact one, in units of the exact one."""
    return float((change * exact).sum() / exact.square().sum())


def main(arguments: Sequence[str] | None = None) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"width": 512, "layers": 4, "vocab": 2048, "rank": 128, "rows": 8, "repeats": 9}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    times(options)
    rounding(options)


if __name__ == "__main__":
    main()

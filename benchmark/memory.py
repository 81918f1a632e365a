"""Cost and savings of each option of `docs/adapters.md`, in tensors of one update.

    python -m benchmark.memory [--width 256 --layers 8 --vocab 6144 --length 128 --views 8]

The counts are exact on any machine. One update is a forward and backward pass of views that mask a
whole completion and read all of it, as mean-field methods do, without the step of the optimizer.
The peak is the largest amount that is alive at once in addition to the weights: gradients,
activations, logits. Weights include the float32 master copies of weights that are trained in
bfloat16, and the optimizer's state is that of the masters. Time is the minimum CPU time of five
updates, divided by that of the first line.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch

from unmask.core.config import LoraConfig, OptimConfig, SamplerConfig
from unmask.core.records import Trajectory, Views
from unmask.models import Denoiser, TinyConfig, char_tokenizer, tiny_denoiser
from unmask.models.adapters import Adapters
from unmask.sampling import LogprobSettings, view_logprobs
from unmask.trainer.distributed.masters import add_masters, master_of
from unmask.trainer.optimizer import make_optimizer, state_bytes, trainable
from unmask.trainer.peak import peak_bytes

MIB = 2**20
PROMPT = 32


def build(options: argparse.Namespace) -> Denoiser:
    """Return a bidirectional GPT-2 of the requested size."""
    shape = TinyConfig(num_layers=options.layers, width=options.width, num_heads=4, max_length=PROMPT + options.length)
    # A private plane of Unicode has enough characters for any vocabulary size.
    tokenizer = char_tokenizer("".join(chr(0xE000 + i) for i in range(options.vocab - 3)))
    return tiny_denoiser(shape, tokenizer, seed=0).eval()


def views_of(denoiser: Denoiser, options: argparse.Namespace) -> tuple[Trajectory, Views]:
    """Return random completions with one view each, in which every position is masked and read."""
    generator = torch.Generator().manual_seed(0)
    rows, length = options.views, options.length
    tokens = torch.randint(3, options.vocab, (rows, length), generator=generator)
    zeros = torch.zeros(rows, length)
    path = Trajectory(
        prompt_ids=torch.randint(3, options.vocab, (rows, PROMPT), generator=generator),
        prompt_mask=torch.ones(rows, PROMPT, dtype=torch.bool),
        tokens=tokens,
        unmask_step=zeros.int(),
        logprob=zeros,
        entropy=zeros,
        seed=torch.arange(rows),
        sampler=SamplerConfig(max_completion_length=length, num_steps=1, order="random"),
        mask_id=denoiser.mask_id,
        eos_id=denoiser.eos_id,
    )
    whole = torch.ones(rows, length, dtype=torch.bool)
    index = torch.arange(rows)
    return path, Views(index, whole, whole, torch.ones(rows), torch.zeros_like(index))


def measure(options: argparse.Namespace, change: Callable[[Denoiser], object], parts: int | None) -> dict[str, float]:
    """Return bytes of weights, of AdamW's state and at the peak of an update, and its seconds."""
    denoiser, optim = build(options), OptimConfig()
    change(denoiser)
    path, views = views_of(denoiser, options)
    scoring = LogprobSettings.of(path, "sampling")
    trained = trainable(denoiser)
    optimizer = make_optimizer(trained, optim)
    add_masters(denoiser, [optimizer])
    masters = [master for p in trained if (master := master_of(p)) is not p]

    def update() -> None:
        view_logprobs(denoiser, path, views, scoring, positions_at_once=parts).logprob.sum().backward()
        optimizer.zero_grad()

    update()
    times = []
    for _ in range(5):
        started = time.process_time()
        update()
        times.append(time.process_time() - started)
    return {
        "weights": sum(p.nbytes for p in [*denoiser.parameters(), *masters]),
        "state": state_bytes(sum(master_of(p).nbytes for p in trained), optim),
        "peak": peak_bytes(update, denoiser),
        "time": min(times),
    }


def lines(options: argparse.Namespace) -> list[str]:
    """Return the table as Markdown."""

    def adapters(denoiser: Denoiser) -> None:
        Adapters(denoiser, LoraConfig(r=options.r))

    def both(denoiser: Denoiser) -> None:
        adapters(denoiser)
        denoiser.checkpoint_gradients()

    def halved(denoiser: Denoiser) -> None:
        denoiser.to(torch.bfloat16)
        adapters(denoiser)

    settings: dict[str, tuple[Callable[[Denoiser], object], bool]] = {
        "all weights": (lambda denoiser: None, False),
        "gradient_checkpointing": (Denoiser.checkpoint_gradients, False),
        "head in chunks": (lambda denoiser: None, True),
        "both": (Denoiser.checkpoint_gradients, True),
        f"lora.r={options.r}": (adapters, False),
        f"lora.r={options.r}, both": (both, True),
        f"lora.r={options.r}, precision=bf16": (halved, False),
    }
    table = [
        "| setting | weights with masters | AdamW's state | peak of an update | reference | together | time |",
        "|---|---|---|---|---|---|---|",
    ]
    first = 0.0
    for name, (change, in_parts) in settings.items():
        found = measure(options, change, options.parts if in_parts else None)
        first = first or found["time"]
        # The reference is a frozen copy of the weights, or the same weights with the adapters off.
        reference = 0.0 if "lora" in name else found["weights"]
        total = found["weights"] + found["state"] + found["peak"] + reference
        cells = [f"{value / MIB:.1f}" for value in (found["weights"], found["state"], found["peak"], reference, total)]
        table.append(f"| {name} | {' | '.join(cells)} | {found['time'] / first:.2f} |")
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in {
        "width": 256,
        "layers": 8,
        "vocab": 6144,
        "length": 128,
        "views": 8,
        "r": 16,
        "parts": 64,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    shape = ", ".join(f"{key} {value}" for key, value in vars(options).items())
    print(f"MiB; {shape}; prompt {PROMPT}; one thread\n")
    print("\n".join(lines(options)))


if __name__ == "__main__":
    main()

"""Time and tokens of scoring the views of a block-causal model in packs, against one view at a time.

    python -m benchmark.packed_views --output benchmark/results/packed_views.md

A random Qwen3 of 4 layers of width 256 scores views of completions of 128 tokens with prompts of 128
tokens, forward and backward, in three ways: each view in a plain row of prompt and completion; each
view in a row of its own that ends with the view's last block; and in packs, as the trainer does it.
The batches are those of the trainer on a CPU. The log-probabilities of the last two must agree to
1e-5. CPU seconds of one thread are compared, as the minimum of the rounds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmark.blocks import RunAgain, model
from unmask.core.config import SamplerConfig
from unmask.core.records import Trajectory, Views
from unmask.functional.elbo import elbo_weight, masks_of_counts, stratified_counts
from unmask.methods.views import masked_views, step_views
from unmask.models import Denoiser
from unmask.sampling import LogprobSettings, denoise, view_logprobs
from unmask.sampling.noisy_copies import Packing
from unmask.trainer.learn import packing_of, positions_at_once
from unmask.trainer.passes import CACHED_STATES
from unmask.trainer.view_batches import ViewBatches

ROWS, ROUNDS = 2, 2


def states(num_selected: int) -> Callable[[Trajectory], Views]:
    """Return a plan of evenly spaced states of the path."""

    def plan(path: Trajectory) -> Views:
        steps = torch.arange(num_selected) * path.num_steps // num_selected
        steps = steps + path.num_steps // num_selected // 2
        return step_views(path, steps.expand(len(path), -1), torch.ones(len(path), num_selected))

    return plan


def bounds(num_views: int) -> Callable[[Trajectory], Views]:
    """Return a plan of random masks of the whole completion, as an ELBO has."""

    def plan(path: Trajectory) -> Views:
        everything = torch.ones_like(path.tokens, dtype=torch.bool)
        generator = torch.Generator().manual_seed(0)
        counts = stratified_counts(everything.sum(-1), num_views, 1, generator)
        masks = masks_of_counts(counts, everything, generator)
        return masked_views(masks, elbo_weight(masks, everything, coupled=False))

    return plan


def plans(num_steps: int) -> dict[str, Callable[[Trajectory], Views]]:
    """Return the plans that are compared, by their names in the table."""
    return {
        "1 state": states(1),
        "4 states": states(4),
        f"all {num_steps} states": states(num_steps),
        "ELBO, 1 mask": bounds(1),
        "ELBO, 4 masks": bounds(4),
    }


def scored(denoiser: Denoiser, subject: Any, path: Trajectory, views: Views, packing: Packing | None) -> Tensor:
    """Score views batch by batch, forward and backward, and return their log-probabilities."""
    width, length = int(denoiser.backbone.config.hidden_size), path.prompt_ids.shape[1] + path.tokens.shape[1]
    held = CACHED_STATES // width
    limits = (held // length, None) if packing is None else (len(views), held)
    batches = ViewBatches.of(views, path, *limits, packing=packing)
    settings, parts = LogprobSettings.of(path, "sampling"), []
    denoiser.zero_grad()
    for _, batch in batches:
        scores = view_logprobs(subject, path, batch, settings, positions_at_once=positions_at_once(denoiser))
        scores.logprob.sum().backward()
        parts.append(replace(scores, logprob=scores.logprob.detach()))
    return batches.in_order(parts).logprob


def compare(block_length: int, name: str, prompt_length: int = 128, length: int = 128) -> list[str]:
    """Return a row of the table; raise if log-probabilities differ."""
    denoiser = model(block_length)
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randint(0, 500, (ROWS, prompt_length), generator=generator)
    sampler = SamplerConfig(
        max_completion_length=length, num_steps=length // 2, block_length=block_length, order="random"
    )
    path = denoise(denoiser, prompt, torch.ones_like(prompt, dtype=torch.bool), sampler, torch.arange(ROWS))
    views = plans(sampler.steps)[name](path)
    packing = packing_of(denoiser)
    assert packing is not None
    tokens = {"plain": 0, "alone": 0, "packed": 0}
    now = "plain"

    def count(_: Any, arguments: tuple[Any, ...]) -> None:
        tokens[now] += arguments[0].numel()

    handle = denoiser.register_forward_pre_hook(count)
    ways = {"plain": (RunAgain(denoiser), None), "alone": (denoiser, None), "packed": (denoiser, packing)}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    found = {}
    for _ in range(ROUNDS):
        for now, (subject, packs) in ways.items():
            tokens[now] = 0
            started = time.process_time()
            found[now] = scored(denoiser, subject, path, views, packs)
            seconds[now].append(time.process_time() - started)
    handle.remove()
    torch.testing.assert_close(found["packed"], found["alone"], rtol=0, atol=1e-5)
    best = {way: min(times) for way, times in seconds.items()}
    counts = [f"{tokens[way] / ROWS:.0f}" for way in ways]
    return [
        str(block_length),
        name,
        *counts,
        f"{tokens['plain'] / tokens['packed']:.1f}",
        *(f"{best[way]:.2f}" for way in ways),
        f"{best['plain'] / best['packed']:.1f}",
        f"{best['alone'] / best['packed']:.1f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="file for the table, in addition to the terminal")
    output = parser.parse_args().output
    torch.set_num_threads(1)
    columns = ["block", "views of a completion", "tokens, plain", "one a row", "packed", "plain / packed"]
    columns += ["seconds, plain", "one a row", "packed", "plain / packed", "one a row / packed"]
    lines = [columns, ["---"] * len(columns)]
    for block_length in (4, 16, 32):
        for name in plans(64):
            lines.append(compare(block_length, name))
            print(" | ".join(lines[-1]), flush=True)
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    if output is not None:
        output.write_text(f"# Views in packs, against one at a time\n\n`python -m benchmark.packed_views`\n\n{table}\n")


if __name__ == "__main__":
    main()

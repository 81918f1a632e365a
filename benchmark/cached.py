"""Reinforcement learning on approximate, cached rollouts: accuracy, work, and distance from the old
policy, over seeds.

    python -m benchmark.cached --seeds 5          # about two minutes a seed on an idle core
    python -m benchmark.cached --speed            # CPU time of a rollout, in pairs
    python -m benchmark.cached --table

EGSPO-SA trains the tiny Sudoku model on completions of 16 tokens in four blocks of four, one token
a step. The variants differ in the cache of the rollout, and in the correction by the ratio of the
old to the behaviour policy. Every variant of a seed starts from the same base model, and is
evaluated by exact decoding, and by decoding with the dual cache. Results go to
benchmark/results/cached.jsonl, one line for each variant and seed; an existing line does not run
again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from unmask.core.config import SamplerConfig
from unmask.functional.intervals import mean_interval
from unmask.models import Denoiser, load_model
from unmask.recipes.load import load, load_recipe
from unmask.recipes.schema import PretrainRecipe
from unmask.runs.metrics import read_metrics
from unmask.trainer.loop import Trainer
from unmask.trainer.pretrain import pretrain

RESULTS = Path(__file__).parent / "results" / "cached.jsonl"
WORK = Path("runs/benchmark/cached")
RECIPE, BASE = "sudoku-tiny", "sudoku-tiny-base"
SETTINGS = (
    "max_steps=50",
    "sampler.num_steps=16",
    "sampler.block_length=4",
    "method.num_selected=2",
    "evaluation.eval_steps=0",
    "evaluation.num_rows=1",
)
UNCORRECTED = "behaviour.level=off"
VARIANTS: dict[str, tuple[str, ...]] = {
    "off": (),
    "prefix": ("sampler.cache=prefix", UNCORRECTED),
    "prefix, corrected": ("sampler.cache=prefix",),
    "dual": ("sampler.cache=dual", UNCORRECTED),
    "dual, corrected": ("sampler.cache=dual",),
}
BEHAVIOUR = ("ratio_mean", "ratio_max", "truncated_share", "effective_share")


def run_cell(variant: str, seed: int) -> dict[str, Any]:
    """Train one variant from the base of its seed, which is made if it is missing, and evaluate
    it."""
    folder, base = WORK / variant.replace(", ", "-") / str(seed), WORK / "base" / str(seed)
    if not (base / "final").exists():
        pretrain(load(PretrainRecipe, BASE, [f"output_dir={base}", f"seed={seed}"]))
    changes = (*SETTINGS, *VARIANTS[variant], f"model={base / 'final'}", f"output_dir={folder}", f"seed={seed}")
    recipe = load_recipe(RECIPE, changes)
    started = time.process_time()
    Trainer(recipe, resume=folder.exists()).train()
    seconds = time.process_time() - started
    lines = [line for line in read_metrics(folder) if "compute/token_passes" in line]
    found = {name: [line[f"behaviour/{name}"] for line in lines if f"behaviour/{name}" in line] for name in BEHAVIOUR}
    return {
        "variant": variant,
        "seed": seed,
        **accuracies(folder / "final", recipe.sampler),
        "steps": len(lines),
        "token_passes": sum(line["compute/token_passes"] for line in lines),
        "mismatch_max": max(line["diffusion/mismatch_max"] for line in lines if "diffusion/mismatch_max" in line),
        **{
            name: (max if name.endswith("_max") else statistics.fmean)(values)
            for name, values in found.items()
            if values
        },
        "cpu_seconds": round(seconds, 1),
    }


def accuracies(model: Path, sampler: SamplerConfig, num_rows: int = 256) -> dict[str, float]:
    """Return the accuracy of greedy and sampled decoding, exact and with the dual cache."""
    from unmask.evaluation.on_task import evaluate

    policy, reached = load_model(model), {}
    for name, temperature in (("greedy", 0.0), ("sampled", 0.9)):
        for cache in ("off", "dual"):
            settings = sampler.model_copy(update={"cache": cache, "temperature": temperature})
            found = evaluate(policy, "sudoku", num_rows, sampler=settings)
            reached[name if cache == "off" else f"{name} cached"] = found.accuracy
    return reached


def large_model() -> Denoiser:
    """Return a random Llama with 13 million parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=6,
        is_causal=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Denoiser(LlamaForCausalLM(config), 8191, -1, 0).eval()


def tiny_model() -> Denoiser:
    """Return a random model of the size of the tiny Sudoku model."""
    from unmask.models import TinyConfig, char_tokenizer, tiny_denoiser

    denoiser = tiny_denoiser(TinyConfig(num_layers=2, width=64, num_heads=4), char_tokenizer("01234="), seed=0)
    denoiser.eos_id = -1  # No row ends early.
    return denoiser.eval()


def speed(denoiser: Denoiser, prompt: int, rows: int, sampler: SamplerConfig, rounds: int) -> list[list[str]]:
    """Return for each cache the token passes of a completion, and the CPU time without a cache in
    relation to that with it: median, minimum and maximum over rounds of neighbouring runs."""
    from unmask.sampling import denoise
    from unmask.trainer.metrics import TokenPasses

    counter = TokenPasses(denoiser)
    ids = torch.randint(3, denoiser.vocab_size - 1, (rows, prompt), generator=torch.Generator().manual_seed(0))
    samplers = {cache: sampler.model_copy(update={"cache": cache}) for cache in ("off", "prefix", "dual")}

    def run(cache: str) -> tuple[float, int]:
        counter.take()
        started = time.process_time()
        denoise(denoiser, ids, torch.ones_like(ids, dtype=torch.bool), samplers[cache], torch.arange(rows))
        return time.process_time() - started, counter.take()

    measured = [{cache: run(cache) for cache in samplers} for _ in range(rounds + 1)][1:]
    table = []
    for cache in samplers:
        ratios = sorted(each["off"][0] / each[cache][0] for each in measured)
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        table.append([cache, str(measured[0][cache][1] // rows), "1" if cache == "off" else spread])
    return table


def speeds(rounds: int) -> str:
    """Return a Markdown table of the rollouts of a tiny and of a larger model."""
    tiny = SamplerConfig(max_completion_length=16, num_steps=16, block_length=4, temperature=0.9)
    large = SamplerConfig(max_completion_length=128, num_steps=64, block_length=32, temperature=0.9)
    lines = ["| model | cache | token passes a completion | CPU time, off / this |", "|---|---|---|---|"]
    for name, rows in (
        ("tiny, 64 rows of 17 + 16 tokens, blocks of 4, T = 16", speed(tiny_model(), 17, 64, tiny, rounds)),
        ("13M, 2 rows of 32 + 128 tokens, blocks of 32, T = 64", speed(large_model(), 32, 2, large, rounds)),
    ):
        lines += [f"| {name} | {' | '.join(row)} |" for row in rows]
    return "\n".join(lines)


def read() -> list[dict[str, Any]]:
    """Return the results so far."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def table() -> str:
    """Return a Markdown table with a line for each variant: means over seeds with 95 % t intervals,
    and differences from exact rollouts, paired by seed."""
    results = read()
    accuracy = ("greedy", "sampled", "greedy cached", "sampled cached")
    head = [*accuracy, "greedy - off", "sampled - off", "token passes, M", "CPU s / off"]
    head += ["ratio, mean", "ratio, largest", "truncated", "effective share"]
    lines = [f"| rollouts | seeds | {' | '.join(head)} |", "|---" * (len(head) + 2) + "|"]
    exact = {r["seed"]: r for r in results if r["variant"] == "off"}
    for variant in VARIANTS:
        rows = [r for r in results if r["variant"] == variant and r["seed"] in exact]
        if not rows:
            continue
        pairs = [(r, exact[r["seed"]]) for r in rows]
        cells = [_with_interval([r[column] for r in rows]) for column in accuracy]
        for column in ("greedy", "sampled"):
            cells.append("" if variant == "off" else _with_interval([r[column] - e[column] for r, e in pairs], "+"))
        cells.append(f"{statistics.fmean(r['token_passes'] for r in rows) / 1e6:.1f}")
        cells.append(f"{statistics.median(r['cpu_seconds'] / e['cpu_seconds'] for r, e in pairs):.2f}")
        cells += [_behaviour(rows, name) for name in BEHAVIOUR]
        lines.append(f"| {variant} | {len(rows)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _with_interval(values: list[float], sign: str = "") -> str:
    if len(values) < 2:
        return f"{values[0]:{sign}.3f}"
    mean, half = mean_interval(values)
    return f"{mean:{sign}.3f} ± {half:.3f}"


def _behaviour(rows: list[dict[str, Any]], name: str) -> str:
    """Return the mean over seeds of a metric of the ratios, or the largest value; empty without
    ratios."""
    values = [r[name] for r in rows if name in r]
    return f"{(max if name.endswith('_max') else statistics.fmean)(values):.3f}" if values else ""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--speed", action="store_true", help="measure the CPU time of rollouts and stop")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of --speed")
    parser.add_argument("--table", action="store_true", help="print the table of the results so far and stop")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if given.speed:
        print(speeds(given.rounds))
        return
    if not given.table:
        RESULTS.parent.mkdir(exist_ok=True)
        done = {(r["variant"], r["seed"]) for r in read()}
        for seed in range(given.seeds):
            for variant in given.variants:
                if (variant, seed) not in done:
                    with RESULTS.open("a") as file:
                        file.write(json.dumps(run_cell(variant, seed)) + "\n")
    print(table())


if __name__ == "__main__":
    main()

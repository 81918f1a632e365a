"""How accurate `unmask estimate` is: the peak memory of two training steps and the time of a step,
estimated and then measured, on three CPU-sized settings.

    OMP_NUM_THREADS=1 python -m benchmark.estimate    # a few minutes; writes benchmark/results/estimate.jsonl
    python -m benchmark.estimate --table              # only shows the results

The measured memory is the most that torch's CPU allocator had out at once while it loaded and made
two whole training steps, as torch's profiler recorded every allocation and release, plus the
weights that are mapped from their file and never allocated. The resident size of a process would
also count Python, libraries and unused pages.

Times are CPU seconds of one thread. The estimate is given what this machine sustains: the operations
of a bare forward pass, and of one with its backward pass, divided by their fastest time, and the
bandwidth of a copy. The measured time is the shortest of four training steps after the first. Each
measurement runs in its own process.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "estimate.jsonl"

REWARD = '''
from unmask.rewards import per_completion

@per_completion
def variety(prompts, completions, **columns):
    """Share of different characters."""
    return [len(set(text)) / max(1, len(text)) for text in completions]
'''

SETTINGS: dict[str, dict[str, Any]] = {
    "GPT-2, all weights, EGSPO-SA": {
        "model": {"class": "GPT2Config", "n_embd": 256, "n_layer": 8, "n_head": 4, "n_positions": 128},
        "vocabulary": 4096,
        "recipe": {
            "method": {"type": "egspo_sa", "num_selected": 4, "beta": 0.04},
            "sampler": {"max_completion_length": 64, "num_steps": 32},
            "num_prompts": 2, "num_generations": 4, "num_minibatches": 2, "views_per_forward": 8,
        },
    },
    "Qwen3, LoRA, checkpointing, ESPO": {
        "model": {
            "class": "Qwen3Config", "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "tie_word_embeddings": True,
        },
        "vocabulary": 2048,
        "recipe": {
            "method": {"type": "espo", "num_samples": 2},
            "sampler": {"max_completion_length": 64, "num_steps": 16, "block_length": 16},
            "num_prompts": 2, "num_generations": 2, "num_iterations": 2, "views_per_forward": 4,
            "lora": {"r": 16, "alpha": 16}, "gradient_checkpointing": True,
        },
    },
    "Llama, all weights, AGRPO": {
        "model": {
            "class": "LlamaConfig", "hidden_size": 320, "intermediate_size": 864, "num_hidden_layers": 6,
            "num_attention_heads": 5, "num_key_value_heads": 5, "tie_word_embeddings": False,
        },
        "vocabulary": 8192,
        "recipe": {
            "method": {"type": "agrpo", "mc_samples": 6},
            "sampler": {"max_completion_length": 64, "num_steps": 32, "order": "random", "top_k": 50, "top_p": 0.95},
            "num_prompts": 2, "num_generations": 4, "views_per_forward": 16,
        },
    },
}  # fmt: skip
"""Settings by name: a model with random weights, and a recipe."""


def prepare(name: str, folder: Path) -> Any:
    """Write the model, the rows and the reward function of a setting, and return its recipe."""
    import torch
    import transformers

    from unmask.models import Denoiser, char_tokenizer, save_model
    from unmask.recipes.load import validate
    from unmask.recipes.schema import TrainRecipe

    setting = SETTINGS[name]
    values = dict(setting["model"])
    tokenizer = char_tokenizer("".join(chr(0x4E00 + i) for i in range(setting["vocabulary"] - 3)))
    config = getattr(transformers, values.pop("class"))(vocab_size=len(tokenizer), **values)
    config.is_causal = False
    config.pad_token_id, config.eos_token_id, config.bos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id, None
    torch.manual_seed(0)
    backbone = transformers.AutoModelForCausalLM.from_config(config)
    ids = (tokenizer.mask_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    save_model(Denoiser(backbone, *ids), tokenizer, folder / "model")
    rows = [{"prompt": "".join(chr(0x4E00 + (7 * i + j) % 500) for j in range(32))} for i in range(64)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "reward.py").write_text(REWARD)
    fixed = {
        "model": str(folder / "model"),
        "task": {"type": "dataset", "path": str(folder / "rows.jsonl")},
        "reward_funcs": [f"{folder / 'reward.py'}:variety"],
        "max_steps": 2,
        "evaluation": {"num_rows": 1, "eval_steps": 0, "batch_size": 1},
        "log_rollouts_steps": 0,
        "output_dir": str(folder / "run"),
    }
    return validate(TrainRecipe, fixed | setting["recipe"])


def estimated(name: str, folder: Path) -> dict[str, float]:
    """Return the peak in bytes, the CPU seconds of a step and the number of parameters as `unmask
    estimate` has them, and the rates that it is given."""
    from unmask.cli.estimate import estimate

    recipe = prepare(name, folder)
    rates = sustained(folder / "model")
    found = estimate(recipe, **rates)
    assert found.durations is not None
    return {"bytes": found.memory.total, "parameters": found.memory.parameters, "seconds": found.durations.step} | rates


def sustained(model: Path) -> dict[str, float]:
    """Return the operations per second of forward passes with their backward passes, `flops`, and
    without them, `rollout_flops`, and the bytes per second of a copy, `bandwidth`."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from unmask.models import load_model

    denoiser, _ = load_model(model)
    ids = torch.randint(3, 500, (8, 96), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(32, 96).expand(8, -1)

    def forward() -> torch.Tensor:
        return denoiser.eval()(ids, None, positions)

    def both() -> None:
        forward().sum().backward()
        denoiser.zero_grad()

    def operations(work: Callable[[], object]) -> float:
        with FlopCounterMode(display=False) as counter:
            work()
        return float(counter.get_total_flops())

    source = torch.zeros(2**24)
    # As in an estimate, a backward pass has twice the operations of its forward pass.
    flops = 3 * operations(forward) / fastest(both)
    with torch.no_grad():
        return {
            "flops": flops,
            "rollout_flops": operations(forward) / fastest(forward),
            "bandwidth": 2 * source.nbytes / fastest(source.clone),
        }


def fastest(work: Callable[[], object], repeats: int = 5) -> float:
    """Return the CPU seconds of the fastest of some runs."""
    times = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times)


def measured_time(name: str, folder: Path) -> dict[str, float]:
    """Return the CPU seconds of the fastest of four training steps after the first."""
    from unmask.trainer import Trainer

    recipe = prepare(name, folder).model_copy(update={"max_steps": 6})
    marks: list[float] = []
    Trainer(recipe, observe=lambda step, metrics: marks.append(time.process_time())).train()
    # The last step comes with an evaluation.
    return {"seconds": min(after - before for before, after in itertools.pairwise(marks[:5]))}


def measured_memory(name: str, folder: Path) -> dict[str, float]:
    """Return the most bytes that torch's CPU allocator had out at once in two training steps, plus
    those of mapped weights."""
    import torch
    from torch._C._profiler import _EventType
    from torch.profiler import ProfilerActivity, profile

    from unmask.trainer import Trainer

    recipe = prepare(name, folder)
    marks: list[int] = []
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        trainer = Trainer(recipe, observe=lambda step, metrics: marks.append(time.time_ns()))
        trainer.train()
    roots = profiler.profiler.kineto_results.experimental_event_tree()  # type: ignore[union-attr]
    peak, allocated, stack = 0, set(), list(roots)
    while stack:
        event = stack.pop()
        stack += event.children
        # What comes after the second step saves the model.
        if event.tag == _EventType.Allocation and event.start_time_ns <= marks[1]:
            peak = max(peak, event.extra_fields.total_allocated)
            allocated.add(event.extra_fields.ptr)
    weights = [o for o in gc.get_objects() if isinstance(o, torch.nn.Parameter)]
    storages = {s.data_ptr(): s.nbytes() for s in (w.untyped_storage() for w in weights)}
    mapped = sum(size for pointer, size in storages.items() if pointer not in allocated)
    return {"bytes": peak + mapped, "mapped": mapped}


PARTS = {"estimated": estimated, "memory": measured_memory, "time": measured_time}


def run(name: str, part: str) -> dict[str, float]:
    """Run one part in a separate process."""
    command = [sys.executable, "-m", "benchmark.estimate", "--only", name, "--part", part]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{name}, {part}: {done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def table(lines: list[dict[str, Any]]) -> str:
    """Return the results as a Markdown table."""
    columns = "setting | parameters | peak, estimated | measured | off by | a step, estimated | measured | off by"
    rows = [f"| {columns} |", "|" + "---|" * 8]
    for line in lines:
        own, memory, seconds = line["estimated"], line["memory"]["bytes"], line["time"]["seconds"]
        rows.append(
            f"| {line['setting']} | {own['parameters'] / 1e6:.1f}M | {own['bytes'] / 1e6:.0f} MB | {memory / 1e6:.0f} MB | "
            f"{own['bytes'] / memory - 1:+.0%} | {own['seconds']:.2f} s | {seconds:.2f} s | "
            f"{own['seconds'] / seconds - 1:+.0%} |"
        )
    return "\n".join(rows)


def main(arguments: list[str] | None = None) -> None:
    """Measure all settings or one part of one of them, or show the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=SETTINGS, help="run one setting")
    parser.add_argument("--part", choices=PARTS, help="run this part of it, in this process")
    parser.add_argument("--table", action="store_true", help="show the recorded results")
    options = parser.parse_args(arguments)
    if options.part:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(PARTS[options.part](options.only, Path(folder))))
        return
    if not options.table:
        lines = [{"setting": name} | {part: run(name, part) for part in PARTS} for name in SETTINGS]
        RESULTS.write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(table([json.loads(line) for line in RESULTS.read_text().splitlines()]))


if __name__ == "__main__":
    main()

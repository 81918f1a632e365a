"""Check of a whole training step at 8B: time and memory of a published recipe, against `unmask
estimate`."""

from __future__ import annotations

import json
import re
import shutil
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmark.gpu.bench import LARGE, Bench
from benchmark.gpu.harness import Outcome, check
from benchmark.gpu.memory import RECIPE
from benchmark.gpu.runs import new_trainer
from unmask.cli.estimate import estimate
from unmask.models import Denoiser, save_model, word_tokenizer
from unmask.recipes.load import load_recipe
from unmask.recipes.schema import TrainRecipe
from unmask.rewards import per_completion
from unmask.runs.metrics import read_metrics

NUM_SPECIAL = 3
"""Padding, mask and end, which `word_tokenizer` adds."""


@per_completion
def share_of_even_characters(completions: list[list[dict[str, str]]], **_: Any) -> list[float]:
    """Reward completions of a model with random weights so that those of a prompt differ."""
    texts = [messages[-1]["content"] for messages in completions]
    return [sum(ord(letter) % 2 == 0 for letter in text) / max(1, len(text)) for text in texts]


@check(150)
def training_step(bench: Bench) -> Outcome:
    """A whole training step of EGSPO-SA with adapters, through the trainer: seconds of the rollout
    and of the update, the FLOP/s that they sustain, and the peak of the memory, which is within a
    tenth of the estimate."""
    started = time.perf_counter()
    folder = _saved(bench)
    seconds_to_save = time.perf_counter() - started
    recipe = _recipe(bench, folder)
    started = time.perf_counter()
    trainer = new_trainer(recipe)
    seconds_to_load = time.perf_counter() - started
    if bench.is_gpu:
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    trainer.train()
    seconds_to_train = time.perf_counter() - started
    last = next(line for line in read_metrics(Path(recipe.output_dir)) if "time/update" in line)
    prompt_length = _prompt_length(trainer)
    expected = estimate(recipe, prompt_length=prompt_length, on_gpu=True)
    costs = {each.name: expected.costs.total(each) for each in expected.work.passes}
    rollout = costs.pop("rollout")
    facts: dict[str, Any] = {
        "tokens of a prompt": prompt_length,
        "s, rollout": last["time/rollout"],
        "s, update": last["time/update"],
        "TFLOP/s, rollout": 1e-12 * rollout / last["time/rollout"],
        "TFLOP/s, update": 1e-12 * sum(costs.values()) / last["time/update"],
        "s, save the model": seconds_to_save,
        "s, load it": seconds_to_load,
        "s, step, evaluation, checkpoint and final model": seconds_to_train,
        "gradient norm": last.get("grad_norm"),
        "GB, estimated": expected.memory.total / 1e9,
    }
    passes = bool(last.get("grad_norm"))
    if bench.is_gpu:
        facts["GB, measured"] = torch.cuda.max_memory_allocated() / 1e9
        ratio = facts["GB, measured"] / facts["GB, estimated"]
        passes = passes and (0.9 < ratio < 1.1 or not bench.has_bounds)
    shutil.rmtree(folder)
    shutil.rmtree(recipe.output_dir)
    return Outcome(passes, facts)


def _recipe(bench: Bench, folder: Path) -> TrainRecipe:
    settings = [
        f"model={folder}",
        f"output_dir={bench.folder / 'steps'}",
        f"reward_funcs={__name__}:share_of_even_characters",
        "max_steps=1",
        "save_steps=1",
        "log_rollouts_steps=0",
        "evaluation={num_rows: 1, eval_steps: 0, split: test}",
        "reward_workers=0",
    ]
    if bench.scale is not LARGE:
        sizes = json.dumps(bench.scale.sampler)[1:-1].replace('"', "")
        settings += [f"sampler={{{sizes}, order: low_confidence, temperature: 0.9, cache: dual}}", "num_prompts=2"]
        settings += ["num_rows=20", "num_generations=4", "lora.r=8", "num_minibatches=2"]
    return load_recipe(RECIPE, settings)


def _saved(bench: Bench) -> Path:
    """Save the model with a tokenizer of its vocabulary, and return the folder."""
    bench.drop_model()
    folder = bench.folder / "large"
    pieces = {piece for text in _prompts() for piece in re.findall(r"\s*[A-Za-z]+|[\s\S]", text)}
    # Ids that no prompt has stand for letters that no prompt has, because the model draws them.
    letters = (chr(number) for number in range(0x3400, 0x30000) if not 0xD800 <= number < 0xE000)
    others = islice(letters, bench.scale.vocabulary - NUM_SPECIAL - len(pieces))
    tokenizer = word_tokenizer([*pieces, *others])
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    backbone = bench.made(bench.scale.layers).backbone
    ids = (tokenizer.mask_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    save_model(Denoiser(backbone, *ids), tokenizer, folder)
    del backbone
    bench.drop_model()
    return folder


def _prompts() -> list[str]:
    """Return prompts of the recipe's task, whose words are tokens."""
    return [row["prompt"][0]["content"] for row in load_recipe(RECIPE).task.rows("train", 8, 0)]


def _prompt_length(trainer: Any) -> int:
    """Return the number of tokens of the longest prompt."""
    return max(len(trainer.policy.tokenizer(text).input_ids) for text in _prompts())

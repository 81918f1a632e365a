"""Runs small enough for tests: settings whose whole run takes a fraction of a second, what it wrote, and processes to kill."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from unmask.cli import main
from unmask.recipes.load import load, load_recipe
from unmask.recipes.schema import PretrainRecipe, TrainRecipe
from unmask.runs.metrics import read_metrics

TRAIN = (
    "sampler.num_steps=4",
    "num_prompts=2",
    "num_generations=2",
    "max_steps=6",
    "save_steps=2",
    "log_rollouts_steps=0",
    "num_rows=20",
    "evaluation.num_rows=4",
    "evaluation.eval_steps=3",
    "optim.warmup_steps=2",
)
"""Overrides of `sudoku-tiny`: 6 steps of 4 completions, a checkpoint every 2 steps, an evaluation every 3."""

IN_PROCESS = "reward_workers=0"
"""Spares a worker process that would import the tests; tests/rewards/test_isolated.py has runs with one."""

PRETRAIN = (
    "max_steps=6",
    "batch_size=4",
    "num_rows=20",
    "save_steps=2",
    "tiny={num_layers: 1, width: 16, num_heads: 2, max_length: 34}",
    "optim.warmup_steps=2",
)
"""Overrides of `sudoku-tiny-base`."""

OWN_SETTINGS: dict[str, tuple[str, ...]] = {
    "agrpo": ("method.mc_samples=2",),
    "dispo": ("method.state_weight=4.0",),
    "egspo": ("method.num_selected=2", "method.beta=0.04"),
    "egspo_ca": ("method.num_selected=2",),
    "egspo_sa": ("method.num_selected=2", "method.beta=0.04"),
    "gdpo": ("method.beta=0.004",),
    "just_grpo": ("sampler.order=left_to_right", "sampler.num_steps=16"),
    "mask_aware": ("method.num_segments=0", "method.num_sampled=2", "sampler.order=plackett_luce"),
    "step_merge": ("method.num_segments=2",),
    "trace_rl": ("method.num_segments=2",),
}
"""Overrides that the run of a method adds: its own options at this size, or settings under which its reward rises."""

PRELOADED = [
    "unmask.trainer",
    "unmask.trainer.pretrain",
    "accelerate",
    "torch._dynamo",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.tokenization_utils_fast",
]
"""What a run imports, those imports included that wait until they are needed."""


def train_recipe(model: Path, output: Path, *overrides: str) -> TrainRecipe:
    return load_recipe("sudoku-tiny", [*TRAIN, IN_PROCESS, f"model={model}", f"output_dir={output}", *overrides])


def pretrain_recipe(output: Path, *overrides: str) -> PretrainRecipe:
    return load(PretrainRecipe, "sudoku-tiny-base", [*PRETRAIN, f"output_dir={output}", *overrides])


def unmask(*arguments: object) -> int:
    """Run the command line here and return its exit code."""
    with mock.patch.object(sys, "argv", ["unmask", *map(str, arguments)]):
        try:
            main()
        except SystemExit as stop:
            return int(stop.code or 0)
    return 0


def unmask_train(model: Path, output: Path, *overrides: str) -> int:
    """`unmask train sudoku-tiny` at this size."""
    return unmask("train", "sudoku-tiny", *TRAIN, f"model={model}", f"output_dir={output}", *overrides)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Return what a run logged for each step, without the times."""
    lines = read_metrics(folder)
    return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]


def weights(folder: Path) -> bytes:
    """The finished model's weights, to be compared bit for bit."""
    return (folder / "final" / "model.safetensors").read_bytes()


def steps_saved(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in sorted((folder / "checkpoints").glob("step-*"))]


def exit_code_of(target: Callable[..., object], *arguments: object, timeout: float = 120) -> int:
    """Run a function in a process of its own, as negative signal number where one killed it.

    A server that has imported the package forks it, so that it does not take the seconds of a fresh interpreter.
    """
    process = start(target, *arguments)
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"still running after {timeout} s")
    return process.exitcode


def start(target: Callable[..., object], *arguments: object) -> ForkServerProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_on_one_thread, args=(target, *arguments), daemon=True)
    process.start()
    return process


def _on_one_thread(target: Callable[..., object], *arguments: object) -> None:
    # As in the tests' own process: sums over several threads would differ in their last bits.
    torch.set_num_threads(1)
    target(*arguments)

"""Small runs: settings with which a run takes a fraction of a second, readers of its files, and processes to kill."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmark.cpu_ranks import PRELOADED
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
"""Overrides of `sudoku-tiny` for 6 steps of 4 completions, a checkpoint every 2 steps and an evaluation every 3."""

IN_PROCESS = "reward_workers=0"
"""Override that calls reward functions in the test's own process; tests/rewards/test_isolated.py uses a worker."""

PRETRAIN = (
    "max_steps=6",
    "batch_size=4",
    "num_rows=20",
    "save_steps=2",
    "tiny={num_layers: 1, width: 16, num_heads: 2, max_length: 34}",
    "optim.warmup_steps=2",
)
"""Overrides of `sudoku-tiny-base` for 6 steps of 4 rows."""

OWN_SETTINGS: dict[str, tuple[str, ...]] = {
    "agrpo": ("method.mc_samples=2",),
    "direct_advantage": ("method.beta=0.3",),
    "dispo": ("method.state_weight=4.0",),
    "dmpo": ("method.alpha=0.2",),
    "egspo": ("method.num_selected=2", "method.beta=0.04"),
    "egspo_ca": ("method.num_selected=2",),
    "egspo_sa": ("method.num_selected=2", "method.beta=0.04"),
    "gdpo": ("method.beta=0.004",),
    "gdsd": ("method.epsilon=0",),
    "just_grpo": ("sampler.order=left_to_right", "sampler.num_steps=16"),
    "mask_aware": ("method.num_segments=0", "method.num_sampled=2", "sampler.order=plackett_luce"),
    "rldf": ("method.num_selected=2",),
    "step_merge": ("method.num_segments=2",),
    "trace_rl": ("method.num_segments=2",),
}
"""Overrides that the run of a method adds: its own options at this size, or settings under which its reward rises."""

SWITCHES: dict[str, tuple[str, ...]] = {
    "direct_advantage-critic": ("method={type: direct_advantage, beta: 0.3, value: critic}",),
    "diffu_grpo-strata": ("method={type: diffu_grpo, num_strata: 2}", "optim.learning_rate=3.0e-3"),
    "egspo_ca-unique": ("method={type: egspo_ca, num_selected: 2, form: unique}",),
    "egspo-critic": ("method={type: egspo, num_selected: 2, baseline: critic}",),
    "egspo-dcolt": (
        "method={type: egspo, step_choice: all, epsilon_high: 0.2, beta: 0}",
        "sampler.order=learned",
        "sampler.order_temperature=1000000.0",
    ),
    "egspo-ibro": ("method={type: egspo, num_selected: 2, entropy_weight: 0.2}",),
    "egspo-rlpt": ("method={type: egspo, num_selected: 2, beta: 0.04}", "sampler.top_k=4"),
    "egspo-dppo": ("method={type: egspo, num_selected: 2, trust_region: divergence}",),
    "egspo_sa-value_steps": ("method={type: egspo_sa, num_selected: 2, value_steps: 2}",),
    "gdsd-tlc": ("method={type: gdsd, centred: true, beta: 0, epsilon: 0}",),
    "egspo-lightning": (
        "method={type: egspo, num_selected: 2, beta: 0.01}",
        "sampler.schedule=threshold=0.3",
        "sampler.num_steps=16",
        "sampler.order=max_probability",
        "speed={weight: 0.2, nll_weight: 0.1, min_range: 0.01, right_reward: 0.2}",
    ),
    "rldf-unbiased": ("method={type: rldf, num_selected: 2, step_choice: surprisal_sampled, targets: step}",),
    "trajectory_balance-subpaths": (
        "method={type: trajectory_balance, subpath_steps: 2}",
        "optim.learning_rate=3.0e-3",
    ),
    "step_merge-tv": ("method={type: step_merge, num_segments: 4, trust_region: divergence, divergence: tv}",),
}
"""Published works that are settings of a method, with their overrides. A name is that of a file in tests/golden."""


def method_overrides(name: str) -> tuple[str, ...]:
    """Return the overrides of a run of a method, or of a setting in `SWITCHES`."""
    return SWITCHES.get(name) or (f"method={{type: {name}}}", *OWN_SETTINGS.get(name, ()))


def train_recipe(model: Path, output: Path, *overrides: str) -> TrainRecipe:
    """Return the recipe of a small training run."""
    return load_recipe("sudoku-tiny", [*TRAIN, IN_PROCESS, f"model={model}", f"output_dir={output}", *overrides])


def pretrain_recipe(output: Path, *overrides: str) -> PretrainRecipe:
    """Return the recipe of a small pretraining run."""
    return load(PretrainRecipe, "sudoku-tiny-base", [*PRETRAIN, f"output_dir={output}", *overrides])


def unmask(*arguments: object) -> int:
    """Run the command line in this process and return its exit code."""
    with mock.patch.object(sys, "argv", ["unmask", *map(str, arguments)]):
        try:
            main()
        except SystemExit as stop:
            return int(stop.code or 0)
    return 0


def unmask_train(model: Path, output: Path, *overrides: str) -> int:
    """Run `unmask train sudoku-tiny` at this size and return its exit code."""
    return unmask("train", "sudoku-tiny", *TRAIN, f"model={model}", f"output_dir={output}", *overrides)


@contextlib.contextmanager
def without_report() -> Iterator[None]:
    """Run commands without the curve and the report at the end of a training run, which take half of the time
    of a small one. tests/cli and tests/report look at them."""
    with mock.patch("unmask.report.api.trainer.pictures", return_value={}):
        yield


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Return what a run logged for each step, without the times."""
    lines = read_metrics(folder)
    return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]


def weights(folder: Path) -> bytes:
    """Return the bytes of the final model's weights, with those of its position head if it has one."""
    return b"".join(path.read_bytes() for path in sorted((folder / "final").glob("*.safetensors")))


def steps_saved(folder: Path) -> list[int]:
    """Return the steps whose checkpoints a run folder holds."""
    return [int(path.name.removeprefix("step-")) for path in sorted((folder / "checkpoints").glob("step-*"))]


def exit_code_of(target: Callable[..., object], *arguments: object, timeout: float = 120) -> int:
    """Run a function in another process and return its exit code, which is negative if a signal ended the process.

    A server that has imported the package forks the process, which saves the start of an interpreter.
    """
    process = start(target, *arguments)
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"still running after {timeout} s")
    return process.exitcode


def start(target: Callable[..., object], *arguments: object) -> ForkServerProcess:
    """Start a function in another process; see `exit_code_of`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_on_one_thread, args=(target, *arguments), daemon=True)
    process.start()
    return process


def _on_one_thread(target: Callable[..., object], *arguments: object) -> None:
    # DeepSpeed collects garbage in full; what is imported, and shared with the server, is none.
    gc.freeze()
    # Sums over several threads would differ in their last bits from those of the test's own process.
    torch.set_num_threads(1)
    target(*arguments)

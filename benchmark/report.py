"""Time to build and to open a report, and its size, for synthetic runs that are made in seconds.

    python -m benchmark.report                    # about two minutes; writes benchmark/results/report.md

The run folders have the content of a real run: a line of metrics for each of 2,000 steps, and 200
saved rollouts with texts, one-step guesses and credit. Only their numbers are random. Opening is
measured in Debian's chromium, from the request for the file to the drawn page with film and curves.
The start of the browser is not included.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from unmask.core.config import SamplerConfig
from unmask.core.records import Rollout, Trajectory
from unmask.runs.saved_rollouts import Guesses, SavedRollout, TrainedViews

RESULTS = Path(__file__).parent / "results" / "report.md"


@dataclass(frozen=True)
class Shape:
    """Shape of a synthetic run."""

    name: str
    task: str
    length: int
    steps: int
    group_size: int
    num_guesses: int
    vocabulary: int
    num_groups: int = 2


SHAPES = (
    Shape("as the demo's: Sudoku", "sudoku", length=16, steps=8, group_size=4, num_guesses=8, vocabulary=9),
    Shape("as a language model's: code", "mbpp", length=256, steps=128, group_size=8, num_guesses=32, vocabulary=4000),
)


def made_up_run(folder: Path, shape: Shape, max_steps: int, num_kept: int) -> Path:
    """Write and return a run folder of that shape."""
    generator = torch.Generator().manual_seed(0)
    (folder / "rollouts").mkdir(parents=True)
    config = {
        "task": {"type": shape.task},
        "method": {"type": "egspo_sa", "num_selected": 8},
        "sampler": {"num_steps": shape.steps, "max_completion_length": shape.length},
        "max_steps": max_steps,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    noise = torch.rand(max_steps, 40 + 2 * shape.steps, generator=generator).tolist()
    (folder / "metrics.jsonl").write_text("".join(_line(i, shape, row) for i, row in enumerate(noise)))
    for i in range(1, num_kept + 1):
        step = i * max_steps // num_kept
        _kept(shape, generator).save(folder / "rollouts" / f"step-{step:08d}.safetensors")
    return folder


def _line(step: int, shape: Shape, noise: list[float]) -> str:
    """Return as many metrics as a real run logs."""
    keys = [
        "reward",
        "reward_std",
        "frac_reward_zero_std",
        "rewards/Reward/mean",
        "completions/mean_length",
        "loss",
        "kl",
    ]
    keys += ["completions/ended_share", "diffusion/path_entropy", "diffusion/one_step_reward", "diffusion/num_views"]
    keys += ["diffusion/mismatch_max", "advantage/abs_mean", "clip_ratio/region_mean", "clip_ratio/low_mean"]
    keys += ["clip_ratio/high_mean", "policy/ratio_max", "grad_norm", "learning_rate", "compute/token_passes"]
    keys += ["compute/reward_calls", "time/rollout", "time/update"]
    line: dict[str, Any] = {"step": step + 1} | dict(zip(keys, noise, strict=False))
    for name, start in (("entropy", 40), ("selected", 40 + shape.steps)):
        line[f"diffusion/{name}_by_step"] = [round(value, 6) for value in noise[start : start + shape.steps]]
    if step % 50 == 0:
        for temperature in ("0", "0.9"):
            line |= {
                f"eval/test@{temperature}/{k}": v for k, v in zip(("low", "accuracy", "high"), noise, strict=False)
            }
    return json.dumps(line) + "\n"


def _kept(shape: Shape, generator: torch.Generator) -> SavedRollout:
    """Return groups with possible trajectories, and guesses that approach the completion."""
    rows, length, steps = shape.num_groups * shape.group_size, shape.length, shape.steps
    tokens = _words(shape, (rows, length), generator)
    order = torch.rand(rows, length, generator=generator).argsort(-1).argsort(-1)
    when = order * steps // length
    entropy = torch.rand(rows, length, generator=generator) * torch.rand(rows, 1, generator=generator)
    path = Trajectory(
        prompt_ids=torch.randint(2, shape.vocabulary, (rows, 120), generator=generator),
        prompt_mask=torch.ones(rows, 120, dtype=torch.bool),
        tokens=tokens,
        unmask_step=when.int(),
        logprob=-entropy,
        entropy=entropy,
        seed=torch.arange(rows),
        sampler=SamplerConfig(max_completion_length=length, num_steps=steps),
        mask_id=0,
        eos_id=1,
    )
    at = torch.linspace(0, steps - 1, shape.num_guesses).round().long()
    is_other = torch.rand(rows, len(at), length, generator=generator) < 0.5
    drawn = _words(shape, tuple(is_other.shape), generator)
    is_other &= when.unsqueeze(1) >= at.view(1, -1, 1)
    guesses = Guesses(
        at.int(),
        torch.where(is_other, drawn, tokens.unsqueeze(1)).int(),
        torch.rand(rows, len(at), generator=generator),
    )
    row = torch.arange(rows).repeat_interleave(8)
    step = torch.randint(0, steps, (len(row),), generator=generator)
    credit = torch.randn(len(row), generator=generator)
    trained = TrainedViews(row.int(), step.int(), torch.zeros_like(row).int(), credit)
    words = ["return ", "    ", "\n", "for ", "x", " = ", "(", ")", ":", "0123456789"]
    pieces = {i: words[i % 10] if shape.task != "sudoku" else str(i - 1) for i in range(2, shape.vocabulary)}
    rewards = torch.rand(rows, generator=generator)
    texts = ["".join(pieces[i] for i in tokens[r].tolist()) for r in range(rows)]
    prompts = ["1002040001044031=" if shape.task == "sudoku" else "Write a function. " * 20] * shape.num_groups
    rollout = Rollout(path, shape.group_size, rewards)
    return SavedRollout(rollout, texts, prompts, [None] * shape.num_groups, pieces, guesses, trained)


def _words(shape: Shape, size: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Return tokens with the frequencies of words: the n-th in proportion to 1/n (Zipf)."""
    frequency = 1 / torch.arange(1, shape.vocabulary - 1).float()
    count = torch.Size(size).numel()
    return 2 + torch.multinomial(frequency, count, replacement=True, generator=generator).view(size)


def seconds_to_build(folder: Path, target: Path) -> tuple[float, float]:
    """Return wall-clock and CPU seconds of `unmask report` in a process, with its imports."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "unmask", "report", str(folder), "--output", str(target)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    core = spent.ru_utime + spent.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - started, core


def seconds_to_open(page: Path, repeats: int) -> list[tuple[float, float]]:
    """Return wall-clock and page-thread seconds from the request to the drawn page."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("there is no chromium to open the report with: apt-get install chromium")
    found = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(repeats):
            view = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
            session = view.context.new_cdp_session(view)
            session.send("Performance.enable", {"timeDomain": "threadTicks"})
            started = time.perf_counter()
            view.goto(page.as_uri())
            view.wait_for_selector("html[data-ready]", state="attached")
            view.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
            elapsed = time.perf_counter() - started
            metrics = {m["name"]: m["value"] for m in session.send("Performance.getMetrics")["metrics"]}
            found.append((elapsed, metrics["TaskDuration"]))
            view.context.close()
        browser.close()
    return found


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-steps", type=int, default=2000)
    parser.add_argument("--rollouts", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    lines = [
        f"A run of {options.max_steps:,} steps with {options.rollouts} kept rollouts, on {os.cpu_count()} cores with a load of "
        f"{os.getloadavg()[0]:.1f} from other work: the least of {options.repeats} times, and the most, on the clock and, as "
        "an idle machine would come near to, of a core and of the page's thread alone. `python -m benchmark.report`",
        "",
        "| run | completions | tokens x steps | built in, s | of a core | opened in, s | of the page's thread | size, MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for shape in SHAPES:
        with tempfile.TemporaryDirectory() as work:
            folder = made_up_run(Path(work) / "run", shape, options.max_steps, options.rollouts)
            target = Path(work) / "report.html"
            built = [seconds_to_build(folder, target) for _ in range(options.repeats)]
            opened = seconds_to_open(target, options.repeats)
            count = options.rollouts * shape.num_groups * shape.group_size
            times = [_range(values) for pairs in (built, opened) for values in zip(*pairs, strict=True)]
            size = target.stat().st_size / 1e6
            cells = [shape.name, f"{count:,}", f"{shape.length} x {shape.steps}", *times, f"{size:.1f}"]
            lines.append(f"| {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n"
    options.output.write_text(text)
    print(text)


if __name__ == "__main__":
    main()

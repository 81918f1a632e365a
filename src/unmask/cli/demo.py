"""The demo: pretrain a tiny model on 4x4 Sudoku, train it with EGSPO-SA, evaluate and plot."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from unmask.cli.tables import table
from unmask.recipes.load import load, load_recipe
from unmask.recipes.schema import PretrainRecipe
from unmask.report.api.trainer import Trainer
from unmask.report.progress import progress
from unmask.runs.metrics import evaluations, read_metrics
from unmask.trainer.distributed.stopping import RunStoppedError
from unmask.trainer.pretrain import pretrain

SHORT_BASE = ("max_steps=120", "num_rows=8000")
"""Overrides of the recipe of the base."""
SHORT = (
    # Rollouts in half the denoising steps of the recipe train as well; evaluations keep its number.
    "sampler.num_steps=4",
    "evaluation.num_steps=8",
    "max_steps=180",
    "optim.learning_rate=7e-4",
    "evaluation.eval_steps=90",
)
"""Overrides of the recipe of reinforcement learning."""


def run(output_dir: Path, seed: int) -> None:
    """Pretrain, train, evaluate and print the results. An interrupted demo continues where it
    stopped."""
    try:
        _run(output_dir, seed)
    except RunStoppedError as stop:
        # The demo always resumes, so the message must not suggest --resume.
        raise RunStoppedError(stop.step, stop.num_steps, stop.folder, stop.signal_number, needs_resume=False) from stop


def _run(output_dir: Path, seed: int) -> None:
    started = time.perf_counter()
    base = load(PretrainRecipe, "sudoku-tiny-base", [f"output_dir={output_dir / 'base'}", f"seed={seed}", *SHORT_BASE])
    with progress("pretrain", base.max_steps) as view:
        pretrain(base, resume=True, observe=view)
    recipe = load_recipe(
        "sudoku-tiny",
        [
            f"model={output_dir / 'base' / 'final'}",
            f"output_dir={output_dir / 'egspo_sa'}",
            f"seed={seed}",
            *SHORT,
        ],
    )
    trainer = Trainer(recipe, resume=True)
    folder = trainer.train()
    lines = read_metrics(folder)
    first, last = lines[0], lines[-1]
    rows = []
    for before, after in zip(evaluations(first), evaluations(last), strict=True):
        cells = [f"{point.accuracy:.3f} ({point.low:.3f} to {point.high:.3f})" for point in (before, after)]
        rows.append([before.sampling, *cells, f"{after.accuracy - before.accuracy:+.3f}"])
    table(
        ["sampling", "base", "trained", "rise"],
        rows,
        f"Sudoku 4x4, {recipe.evaluation.num_rows} held-out puzzles, no solution shared with training: "
        "solved share (95 % interval)",
    )
    Console().print(
        f"report   {trainer.pictures['report']}\n"
        f"curve    {trainer.pictures['curve']}\n"
        f"model    {folder / 'final'}\nmetrics  {folder / 'metrics.jsonl'}\n"
        f"time     {time.perf_counter() - started:.0f} s\n"
        f"watch    unmask sample {folder / 'final'} --task sudoku",
        highlight=False,
        soft_wrap=True,
    )

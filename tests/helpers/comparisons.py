"""Comparison that takes a few seconds, and records such as a comparison writes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from unmask.recipes.load import validate
from unmask.trainer.comparison.jobs import Record
from unmask.trainer.comparison.load import load_compare
from unmask.trainer.comparison.recipe import CompareRecipe

SMALL: dict[str, Any] = {
    "tasks": {
        "sudoku": {
            "base": "sudoku-tiny-base",
            "recipe": "sudoku-tiny",
            "base_overrides": {
                "max_steps": 4,
                "batch_size": 4,
                "num_rows": 20,
                "tiny": {"num_layers": 1, "width": 16, "num_heads": 2, "max_length": 34},
            },
            "overrides": {
                "sampler.num_steps": 4,
                "num_rows": 20,
                "num_prompts": 2,
                "num_generations": 2,
                "num_iterations": 1,
            },
            "budget": 6_000,
            "decoding_steps": [2, 8],
        }
    },
    "methods": {
        "entropy": {"settings": {"method.type": "egspo", "method.num_selected": 1, "method.beta": 0.0}},
        "late steps": {
            "settings": {"method": {"type": "egspo", "num_selected": 2, "step_choice": "last_k", "beta": 0.0}}
        },
    },
    "seeds": [0, 1],
    "tuning": {"grid": {"optim.learning_rate": [1.0e-2, 1.0e-4]}, "seeds": [100], "num_rows": 16},
    "baselines": ["late steps"],
    "evaluation": {"num_rows": 16, "curve_points": 2, "curve_rows": 4},
}
"""Recipe of two methods on one task: 2 x 2 trials of 3 to 5 steps, then 2 x 2 runs of 5 to 10 steps."""

PASSES = 33 * 4
"""Token passes of one forward pass over the 4 completions of a step: 17 prompt tokens and 16 more tokens each."""


def small(folder: Path, *overrides: str, name: str = "small", **changes: Any) -> CompareRecipe:
    """Return the small comparison with changed top-level keys and `key=value` overrides."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(SMALL | {"output_dir": str(folder / name)} | changes, sort_keys=False))
    return load_compare(str(path), overrides)


def of(tasks: Iterable[str] = ("t",), methods: Iterable[str] = ("a", "b"), **changes: Any) -> CompareRecipe:
    """Return a recipe that records can belong to; it is never run."""
    tree: dict[str, Any] = {
        "tasks": {task: {"recipe": "none", "model": "none", "budget": 1_000_000} for task in tasks},
        "methods": {method: {} for method in methods},
        "seeds": [0, 1, 2],
    }
    return validate(CompareRecipe, tree | changes)


def final(task: str, method: str, seed: int, sampled: float, greedy: float = 0.5, **changes: Any) -> Record:
    """Return a line of cells.jsonl for a run of the comparison, or for the untrained model."""
    curve = [
        {"step": 0, "token_passes": 0, "accuracy": {"0.9": 0.0, "0": 0.25}},
        {"step": 10, "token_passes": 990_000, "accuracy": {"0.9": sampled, "0": greedy}},
    ]
    return {
        "stage": "base" if method == "base" else "final",
        "task": task,
        "method": method,
        "seed": seed,
        "variant": "v",
        "settings": {},
        "steps": 10,
        "token_passes": 990_000,
        "reward_calls": 1_280,
        "seconds": 2.0,
        "accuracy": {"0.9": sampled, "0": greedy},
        "reward": {"0.9": 0.6, "0": 0.7},
        "decoding_accuracy": {"2": 0.125, "8": greedy},
        "decoding_reward": {"2": 0.25, "8": 0.75},
        "curve": [] if method == "base" else curve,
    } | changes


def trial(
    method: str, seed: int, rate: float, sampled: float, greedy: float, reward: float = 0.5, **changes: Any
) -> Record:
    """Return a line of cells.jsonl for a tuning run on task `t`."""
    return final("t", method, seed, sampled, greedy, **changes) | {
        "stage": "tuning",
        "settings": {"rate": rate},
        "variant": f"v{rate}",
        "reward": {"0.9": reward, "0": reward},
    }


def written(folder: Path, records: Iterable[Record], tail: str = "") -> Path:
    """Write records to the cells.jsonl of a folder and return the folder."""
    folder.mkdir(exist_ok=True)
    (folder / "cells.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + tail)
    return folder

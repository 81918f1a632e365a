"""Run folders for the tests of the report: one of a real run, and one with texts that the test chooses."""

from __future__ import annotations

import base64
import gzip
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from tests.helpers.records import make_trajectory
from tests.helpers.runs import train_recipe
from unmask.core.records import Rollout
from unmask.runs.saved_rollouts import Guesses, SavedRollout
from unmask.trainer import Trainer

KEEP_ALL = (
    "log_rollouts_steps=2",
    "log_rollouts_groups=2",
    "num_generations=3",
    "method.num_selected=2",
    "sampler.num_steps=8",
    "optim.learning_rate=1e-2",
)
"""Overrides with which a run saves whole rollouts, so that a test can compute the advantages again."""


def real_run(model: Path, folder: Path, *overrides: str) -> Path:
    """Train a small run that saves whole rollouts, and return its folder."""
    settings = [setting for setting in KEEP_ALL if "method" not in setting or not any("method" in o for o in overrides)]
    return Trainer(train_recipe(model, folder, *settings, *overrides)).train()


def page_data(page: Path) -> dict[str, Any]:
    """Return the data that the page carries as plain JSON."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), flags=re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def page_block(page: Path, name: str) -> Any:
    """Return a packed block of the page, with its arrays as nested lists under `arrays`."""
    found = re.search(f'<script type="text/plain" id="{name}">(.*?)</script>', page.read_text())
    assert found is not None, name
    whole = gzip.decompress(base64.b64decode(found[1]))
    length = int.from_bytes(whole[:4], "little")
    head = json.loads(whole[4 : 4 + length])
    start, arrays = 4 + length, {}
    for key, kind, shape in head["arrays"]:
        values = np.frombuffer(
            whole, {"u16": "<u2", "i16": "<i2", "i32": "<i4", "f32": "<f4"}[kind], math.prod(shape), start
        )
        arrays[key] = values.reshape(shape).tolist()
        start += -(-values.nbytes // 4) * 4
    return head["data"] | {"arrays": arrays} if arrays else head["data"]


def hand_made(folder: Path, prompts: Sequence[str], completions: Sequence[Sequence[str]], **config: Any) -> Path:
    """Write a run folder with one saved rollout, in which each step commits one piece of text.

    The one-step guess at every eighth step is the finished completion.

    Args:
        folder: folder of the run.
        prompts: prompts, one for each group.
        completions: pieces of each completion; every group has the same number of completions.
        config: settings of the run, in addition to those of a task with plain texts.
    """
    pieces = sorted({piece for row in completions for piece in row})
    ids = {piece: i + 2 for i, piece in enumerate(pieces)}
    length = max(map(len, completions))
    tokens = torch.tensor([[ids[p] for p in row] + [1] * (length - len(row)) for row in completions])
    shape = tokens.shape
    entropy = torch.linspace(0, 1, length).expand(shape).contiguous()
    path = make_trajectory(
        tokens, prompt_ids=torch.ones(len(tokens), 1).long(), logprob=torch.full(shape, -0.5), entropy=entropy, eos_id=1
    )
    size = len(completions) // len(prompts)
    rollout = Rollout(path, size, torch.linspace(0, 1, len(tokens)))
    texts = ["".join(row) for row in completions]
    (folder / "rollouts").mkdir(parents=True)
    steps = torch.arange(0, length, 8).int()
    guesses = Guesses(
        steps, tokens[:, None].expand(-1, len(steps), -1).int().contiguous(), torch.ones(len(tokens), len(steps))
    )
    pieces_by_id = {i: p for p, i in ids.items()} | {1: "<eos>"}
    kept = SavedRollout(rollout, texts, list(prompts), [None] * len(prompts), pieces_by_id, guesses)
    kept.save(folder / "rollouts" / "step-00000001.safetensors")
    write_run(folder, [{"step": 1, "reward": 0.5}], {"task": {"type": "dataset"}, "method": {"type": "egspo"}} | config)
    return folder


def write_run(folder: Path, lines: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> Path:
    """Write the metrics and settings of a run, and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(dict(config)))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder

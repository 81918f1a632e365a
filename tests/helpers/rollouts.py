"""Trajectories and rollouts: random ones, and those of the local engine."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from unmask.core.config import SamplerConfig
from unmask.core.records import Rollout, Trajectory
from unmask.models import Policy, char_tokenizer
from unmask.rewards import per_completion
from unmask.sampling.engine import BatchLimits, LocalEngine
from unmask.tasks import Sudoku
from unmask.trainer.collect import Collector
from unmask.trainer.metrics import Tally

MASK, EOS = 1, 2
T = 3
TOKENIZER = char_tokenizer(Sudoku().alphabet)
ROWS = Sudoku().rows("train", 4)


@per_completion
def count_ones(completions: list[str], **_: Any) -> list[float]:
    """Return rewards that differ for nearly any two different completions."""
    return [text.count("1") + 0.1 * len(text) for text in completions]


def trajectory(num_rows=4, prompt_length=3, greedy=True, seed=0):
    """Return a random trajectory with T = 3 steps and L = 5 positions."""
    generator = torch.Generator().manual_seed(seed)

    def integers(low, high, *shape):
        return torch.randint(low, high, shape, generator=generator)

    return Trajectory(
        prompt_ids=integers(3, 9, num_rows, prompt_length),
        prompt_mask=integers(0, 2, num_rows, prompt_length).bool(),
        tokens=integers(2, 9, num_rows, 5),
        unmask_step=integers(-1, T + 1, num_rows, 5).int(),
        logprob=-torch.rand(num_rows, 5, generator=generator),
        entropy=torch.rand(num_rows, 5, generator=generator),
        seed=integers(0, 2**62, num_rows),
        sampler=SamplerConfig(
            max_completion_length=5, num_steps=T, order="random", temperature=0.9, top_k=4, top_p=0.95, guidance=0.5
        ),
        mask_id=MASK,
        eos_id=EOS,
        selected_step=integers(-1, T, num_rows, 2).int() if greedy else None,
        one_step_tokens=integers(2, 9, num_rows, 2, 5).int() if greedy else None,
    )


def assert_same(one, other):
    """Assert that two trajectories hold the same values in the same types."""
    assert one.tensors().keys() == other.tensors().keys()
    for name, value in one.tensors().items():
        assert value.dtype == other.tensors()[name].dtype, name
        assert torch.equal(value, other.tensors()[name]), name
    names = [f.name for f in fields(one) if f.name not in one.tensors()]
    assert [getattr(one, name) for name in names] == [getattr(other, name) for name in names]


def rollout(greedy=True):
    """Return a random rollout of three groups of two completions."""
    path = trajectory(6, greedy=greedy)
    return Rollout(path, 2, torch.arange(6.0), torch.arange(12.0).view(6, 2) if greedy else None)


def as_version(file: Path, version: int) -> None:
    """Rewrite the file of a saved rollout as another schema version, without notes."""
    with safe_open(file, framework="pt") as opened:
        facts: dict[str, Any] = json.loads(opened.metadata()["unmask"])
        tensors = {name: opened.get_tensor(name) for name in opened.keys() if "note/" not in name}  # noqa: SIM118 (not a dict)
    facts["trajectory"]["schema_version"] = version
    if version == 1:
        for name in ("prompts", "answers", "pieces"):
            del facts[name]
    if version < 4:
        sampler = facts["trajectory"].pop("sampler")
        length = sampler.pop("max_completion_length")
        # Those versions wrote what the settings stand for.
        facts["trajectory"] |= sampler | {"block_length": sampler["block_length"] or length}
        del facts["trajectory"]["policy_version"]
    if version < 5:
        old = {"selected_step": "greedy_step", "one_step_tokens": "greedy_tokens"}
        old |= {"branch_tokens": "fill_tokens", "branch_reward": "fill_reward"}
        tensors = {old.get(name, name): tensor for name, tensor in tensors.items()}
    save_file(tensors, file, {"unmask": json.dumps(facts)})


def generate(denoiser, tokenizer, prompts, sampler, seeds, *, batch_size=256, max_tokens=None, **options):
    """Return the trajectory of one completion for each prompt."""
    engine = LocalEngine(Policy(denoiser, tokenizer), BatchLimits(batch_size, max_tokens))
    return engine.rollout(prompts, sampler, seeds, **options)


def collect(denoiser, tokenizer, scorer, recipe, rows, step=0, share=slice(None), tally=None, max_tokens=None):
    """Return the scored rollout of one training step."""
    engine = LocalEngine(Policy(denoiser, tokenizer), BatchLimits(recipe.rollout_batch_size, max_tokens))
    return Collector(engine, scorer, recipe).collect(rows, step, share, tally or Tally())

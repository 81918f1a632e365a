"""What is kept of a rollout reads back whole, and files of earlier versions still do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.test_records import assert_same, rollout
from unmask.errors import RunError
from unmask.records import SCHEMA_VERSION, Rollout
from unmask.runs.saved_rollouts import Guesses, Kept, Trained


def kept(advantage: torch.Tensor) -> Kept:
    return Kept(
        rollout(),
        completions=["a\nb", "", "ü", "x", "</script>", "\ud800"],
        prompts=["p", [{"role": "user", "content": "q"}], "r"],
        answers=["1", None, "3"],
        pieces={2: "<eos>", 7: "\x00"},
        guesses=Guesses(torch.tensor([0, 2], dtype=torch.int32), torch.ones(6, 2, 5).int(), torch.rand(6, 2)),
        trained=Trained(*(torch.tensor([0, 3], dtype=torch.int32) for _ in range(3)), advantage),
    )


@pytest.mark.parametrize("advantage", [torch.tensor([0.5, -0.5]), torch.rand(2, 4)])
def test_what_is_kept_reads_back(tmp_path: Path, advantage: torch.Tensor) -> None:
    saved, file = kept(advantage), tmp_path / "r.safetensors"
    saved.save(file)
    again = Kept.load(file)
    assert_same(again.rollout.trajectory, saved.rollout.trajectory)
    for name in ("completions", "prompts", "answers", "pieces"):
        assert getattr(again, name) == getattr(saved, name)
    for record in ("guesses", "trained"):
        ours, theirs = getattr(saved, record), getattr(again, record)
        assert all(torch.equal(getattr(ours, name), getattr(theirs, name)) for name in ours.__slots__)
    # Whoever wants the rollout alone finds it.
    assert_same(Rollout.load(file)[0].trajectory, saved.rollout.trajectory)


def test_guesses_without_rewards_read_back_so(tmp_path: Path) -> None:
    whole = kept(torch.zeros(2))
    assert whole.guesses is not None
    bare = Guesses(whole.guesses.step, whole.guesses.tokens)
    Kept(rollout(), [], [], [], {}, bare).save(tmp_path / "r.safetensors")
    again = Kept.load(tmp_path / "r.safetensors")
    assert again.guesses is not None
    assert again.guesses.reward is None
    assert again.trained is None


def as_version(file: Path, version: int) -> None:
    """Rewrite a rollout's file as one of another version, without notes."""
    with safe_open(file, framework="pt") as opened:
        facts: dict[str, Any] = json.loads(opened.metadata()["unmask"])
        tensors = {name: opened.get_tensor(name) for name in opened.keys() if "note/" not in name}  # noqa: SIM118 (not a dict)
    facts["trajectory"]["schema_version"] = version
    if version < 4:
        sampler = facts["trajectory"].pop("sampler")
        length = sampler.pop("max_completion_length")
        # Those versions wrote what the settings stand for.
        facts["trajectory"] |= sampler | {"block_length": sampler["block_length"] or length}
        del facts["trajectory"]["policy_version"]
    save_file(tensors, file, {"unmask": json.dumps(facts)})


def test_a_file_of_version_1_is_read_without_what_it_lacks(tmp_path: Path) -> None:
    file = tmp_path / "r.safetensors"
    rollout().save(file, {"completions": ["a"] * 6})
    as_version(file, 1)
    old = Kept.load(file)
    path, new = old.rollout.trajectory, rollout().trajectory
    assert (path.sampler.block, path.num_steps) == (new.sampler.block, new.num_steps)
    assert_same(replace(path, sampler=new.sampler), new)
    assert old.rollout.trajectory.schema_version == SCHEMA_VERSION
    assert (old.completions, old.prompts, old.pieces, old.guesses, old.trained) == (["a"] * 6, [], {}, None, None)


def test_a_file_of_a_later_version_and_a_damaged_one_are_told(tmp_path: Path) -> None:
    file = tmp_path / "r.safetensors"
    rollout().save(file, {})
    as_version(file, SCHEMA_VERSION + 1)
    with pytest.raises(RunError, match=f"schema version {SCHEMA_VERSION + 1}; this is version {SCHEMA_VERSION}"):
        Kept.load(file)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(RunError, match=r"r\.safetensors cannot be read"):
        Kept.load(file)

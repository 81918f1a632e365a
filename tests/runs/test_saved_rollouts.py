"""A saved rollout reads back whole, and so do files of earlier versions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.helpers.messages import raises
from tests.helpers.rollouts import as_version, assert_same, rollout
from unmask.core.errors import RunError
from unmask.runs.saved_rollouts import SCHEMA_VERSION, Guesses, SavedRollout, TrainedViews, saved_path, saved_steps


def saved_rollout(advantage: torch.Tensor) -> SavedRollout:
    return SavedRollout(
        rollout(),
        completions=["a\nb", "", "ü", "x", "</script>", "\ud800"],
        prompts=["p", [{"role": "user", "content": "q"}], "r"],
        answers=["1", None, "3"],
        pieces={2: "<eos>", 7: "\x00"},
        guesses=Guesses(torch.tensor([0, 2], dtype=torch.int32), torch.ones(6, 2, 5).int(), torch.rand(6, 2)),
        trained=TrainedViews(*(torch.tensor([0, 3], dtype=torch.int32) for _ in range(3)), advantage),
    )


@pytest.mark.parametrize("advantage", [torch.tensor([0.5, -0.5]), torch.rand(2, 4)])
def test_a_saved_rollout_reads_back(tmp_path: Path, advantage: torch.Tensor) -> None:
    saved, file = saved_rollout(advantage), tmp_path / "r.safetensors"
    saved.save(file)
    again = SavedRollout.load(file)
    assert_same(again.rollout.trajectory, saved.rollout.trajectory)
    for name in ("completions", "prompts", "answers", "pieces"):
        assert getattr(again, name) == getattr(saved, name)
    for record in ("guesses", "trained"):
        ours, theirs = getattr(saved, record), getattr(again, record)
        assert all(torch.equal(getattr(ours, name), getattr(theirs, name)) for name in ours.__slots__)
    assert again.rollout.group_size == saved.rollout.group_size
    assert again.rollout.rewards().keys() == saved.rollout.rewards().keys()
    for name, value in saved.rollout.rewards().items():
        assert torch.equal(again.rollout.rewards()[name], value)


@pytest.mark.parametrize("greedy", [True, False])
def test_only_the_groups_and_tensors_that_a_rollout_has_are_saved(tmp_path: Path, greedy: bool) -> None:
    part = rollout(greedy).groups(slice(0, 1))
    SavedRollout(part, [], [], [], {}).save(tmp_path / "r.safetensors")
    again = SavedRollout.load(tmp_path / "r.safetensors").rollout
    assert_same(again.trajectory, part.trajectory)
    assert (again.one_step_reward is None) == (not greedy)


def test_the_saved_steps_of_a_run_are_found_by_the_names_of_the_files(tmp_path: Path) -> None:
    assert saved_steps(tmp_path) == []
    for step in (12, 3):
        SavedRollout(rollout(), [], [], [], {}).save(saved_path(tmp_path, step))
    (tmp_path / "rollouts" / "step-x.safetensors").write_text("")
    assert saved_steps(tmp_path) == [3, 12]


def test_guesses_without_rewards_read_back_so(tmp_path: Path) -> None:
    whole = saved_rollout(torch.zeros(2))
    assert whole.guesses is not None
    bare = Guesses(whole.guesses.step, whole.guesses.tokens)
    SavedRollout(rollout(), [], [], [], {}, bare).save(tmp_path / "r.safetensors")
    again = SavedRollout.load(tmp_path / "r.safetensors")
    assert again.guesses is not None
    assert again.guesses.reward is None
    assert again.trained is None


def test_a_file_of_version_1_is_read_without_what_it_lacks(tmp_path: Path) -> None:
    file = tmp_path / "r.safetensors"
    SavedRollout(rollout(), ["a"] * 6, [], [], {}).save(file)
    as_version(file, 1)
    old = SavedRollout.load(file)
    path, new = old.rollout.trajectory, rollout().trajectory
    assert (path.sampler.block, path.num_steps) == (new.sampler.block, new.num_steps)
    assert_same(replace(path, sampler=new.sampler), new)
    assert (old.completions, old.prompts, old.pieces, old.guesses, old.trained) == (["a"] * 6, [], {}, None, None)


def test_a_file_of_a_later_version_and_a_damaged_one_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "r.safetensors"
    SavedRollout(rollout(), [], [], [], {}).save(file)
    as_version(file, SCHEMA_VERSION + 1)
    with raises(RunError, str(SCHEMA_VERSION + 1), str(SCHEMA_VERSION)):
        SavedRollout.load(file)
    file.write_bytes(file.read_bytes()[:100])
    with raises(RunError, "r.safetensors"):
        SavedRollout.load(file)

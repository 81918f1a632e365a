"""The records: states derived from what and when, rows and groups picked and joined, and a file that reads back."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from unmask.config import SamplerConfig
from unmask.errors import RunError
from unmask.records import GIVEN, SCHEMA_VERSION, Rollout, Trajectory, Views

MASK, EOS = 1, 2
T = 3


def trajectory(num_rows=4, prompt_length=3, greedy=True, seed=0):
    """Random but plausible: T = 3 steps, L = 5."""
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
        greedy_step=integers(-1, T, num_rows, 2).int() if greedy else None,
        greedy_tokens=integers(2, 9, num_rows, 2, 5).int() if greedy else None,
    )


def assert_same(one, other):
    assert one.tensors().keys() == other.tensors().keys()
    for name, value in one.tensors().items():
        assert value.dtype == other.tensors()[name].dtype, name
        assert torch.equal(value, other.tensors()[name]), name
    assert replace(one, **dict.fromkeys(one.tensors())) == replace(other, **dict.fromkeys(other.tensors()))


# Trajectory


def test_the_state_before_a_step_hides_what_that_step_and_later_ones_commit():
    path = replace(
        trajectory(2),
        tokens=torch.tensor([[3, 4, 5, 6, EOS], [7, 8, 3, 4, 5]]),
        unmask_step=torch.tensor([[GIVEN, 0, 2, 1, T], [2, 1, 0, 0, 1]], dtype=torch.int32),
    )
    states = [path.state_before(k).tolist() for k in range(T + 1)]
    assert [state[0] for state in states] == [
        [3, MASK, MASK, MASK, MASK],
        [3, 4, MASK, MASK, MASK],
        [3, 4, MASK, 6, MASK],
        [3, 4, 5, 6, MASK],
    ]
    assert [state[1] for state in states] == [
        [MASK, MASK, MASK, MASK, MASK],
        [MASK, MASK, 3, 4, MASK],
        [MASK, 8, 3, 4, 5],
        [7, 8, 3, 4, 5],
    ]


def test_each_row_may_be_shown_before_a_step_of_its_own():
    path = trajectory(4)
    steps = torch.tensor([2, 0, 3, 1])
    together = path.state_before(steps)
    for row, step in enumerate(steps.tolist()):
        assert torch.equal(together[row], path.state_before(step)[row])


def test_text_ends_before_the_first_eos():
    path = replace(trajectory(3), tokens=torch.tensor([[3, 4, EOS, 5, EOS], [EOS, 3, 3, 3, 3], [3, 4, 5, 6, 7]]))
    assert path.is_text().int().tolist() == [[1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]]


def test_rows_are_picked_from_every_tensor():
    path = trajectory(4)
    picked = path.rows(torch.tensor([3, 1]))
    assert len(picked) == 2
    for name, value in path.tensors().items():
        assert torch.equal(picked.tensors()[name], value[[3, 1]]), name
    assert_same(path.rows(slice(1, 3)), path.rows(torch.tensor([1, 2])))


@pytest.mark.parametrize("greedy", [True, False])
def test_joined_parts_come_apart_again(greedy):
    whole = trajectory(6, greedy=greedy)
    parts = [whole.rows(slice(0, 1)), whole.rows(slice(1, 4)), whole.rows(slice(4, 6))]
    assert_same(Trajectory.cat(parts), whole)


def test_joining_pads_shorter_prompts_on_the_left():
    long, short = trajectory(1, prompt_length=4), trajectory(2, prompt_length=2, seed=1)
    joined = Trajectory.cat([long, short])
    assert joined.prompt_ids.shape == joined.prompt_mask.shape == (3, 4)
    assert torch.equal(joined.prompt_ids[1:, 2:], short.prompt_ids)
    assert torch.equal(joined.prompt_mask[1:, 2:], short.prompt_mask)
    assert not joined.prompt_mask[1:, :2].any()
    assert torch.equal(joined.prompt_ids[:1], long.prompt_ids)


def test_moving_to_a_device_keeps_every_field():
    assert_same(trajectory().to("cpu"), trajectory())
    assert trajectory().to("meta").greedy_tokens.device.type == "meta"


def test_a_completion_token_takes_twenty_bytes():
    path = trajectory(greedy=False)
    per_token = [path.tokens, path.unmask_step, path.logprob, path.entropy]
    assert sum(value.element_size() for value in per_token) == 20


# Rollout


def rollout(greedy=True):
    path = trajectory(6, greedy=greedy)
    return Rollout(path, 2, torch.arange(6.0), torch.arange(12.0).view(6, 2) if greedy else None)


@pytest.mark.parametrize("greedy", [True, False])
def test_whole_groups_are_picked(greedy):
    whole = rollout(greedy)
    part = whole.groups(slice(1, 3))
    assert part.group_size == 2
    assert part.reward.tolist() == [2.0, 3.0, 4.0, 5.0]
    assert_same(part.trajectory, whole.trajectory.rows(slice(2, 6)))
    if greedy:
        assert part.one_step_reward.tolist() == [[4.0, 5.0], [6.0, 7.0], [8.0, 9.0], [10.0, 11.0]]
    else:
        assert part.one_step_reward is None


@pytest.mark.parametrize("greedy", [True, False])
def test_a_saved_rollout_reads_back_with_its_facts(greedy, tmp_path):
    saved, facts = rollout(greedy), {"step": 7, "texts": ["a", "ü"], "nested": {"x": None}}
    saved.save(tmp_path / "r.safetensors", facts)
    again, read = Rollout.load(tmp_path / "r.safetensors")
    assert read == facts
    assert again.group_size == 2
    assert_same(again.trajectory, saved.trajectory)
    assert torch.equal(again.reward, saved.reward)
    if greedy:
        assert torch.equal(again.one_step_reward, saved.one_step_reward)
    else:
        assert again.one_step_reward is None


def test_a_rollout_of_picked_rows_saves_those_rows_only(tmp_path):
    part = rollout().groups(slice(0, 1))
    part.save(tmp_path / "r.safetensors", {})
    assert_same(Rollout.load(tmp_path / "r.safetensors")[0].trajectory, part.trajectory)


def test_a_file_of_another_schema_version_is_refused(tmp_path):
    file = tmp_path / "r.safetensors"
    rollout().save(file, {})
    with safe_open(file, framework="pt") as opened:
        facts = json.loads(opened.metadata()["unmask"])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
    facts["trajectory"]["schema_version"] = SCHEMA_VERSION + 1
    save_file(tensors, file, {"unmask": json.dumps(facts)})
    with pytest.raises(RunError, match=f"schema version {SCHEMA_VERSION + 1}; this is version {SCHEMA_VERSION}"):
        Rollout.load(file)


# Views


@pytest.mark.parametrize("index", [torch.tensor([2, 0]), slice(1, 3)])
@pytest.mark.parametrize("with_prompt", [True, False])
def test_views_are_picked_from_every_field(index, with_prompt):
    hidden = torch.arange(15).view(3, 5) % 2 == 0
    views = Views(
        row=torch.tensor([4, 5, 6]),
        hidden=hidden,
        target=hidden & (torch.arange(5) < 3),
        weight=torch.tensor([0.1, 0.2, 0.3]),
        slot=torch.tensor([7, 8, 9]),
        prompt_hidden=torch.eye(3, dtype=torch.bool) if with_prompt else None,
    )
    part = views.take(index)
    assert len(part) == 2
    for name in ("row", "hidden", "target", "weight", "slot", "prompt_hidden"):
        value = getattr(views, name)
        assert getattr(part, name) is None if value is None else torch.equal(getattr(part, name), value[index])

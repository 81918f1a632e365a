"""Tests of the records: derived states, and picking, joining and moving of rows and groups."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.helpers.rollouts import EOS, MASK, T, assert_same, rollout, trajectory
from unmask.core.records import GIVEN, Trajectory, Views

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


def test_each_row_can_have_its_own_step():
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
def test_concatenated_parts_can_be_split_again(greedy):
    whole = trajectory(6, greedy=greedy)
    parts = [whole.rows(slice(0, 1)), whole.rows(slice(1, 4)), whole.rows(slice(4, 6))]
    assert_same(Trajectory.cat(parts), whole)


def test_concatenation_pads_shorter_prompts_on_the_left():
    long, short = trajectory(1, prompt_length=4), trajectory(2, prompt_length=2, seed=1)
    joined = Trajectory.cat([long, short])
    assert joined.prompt_ids.shape == joined.prompt_mask.shape == (3, 4)
    assert torch.equal(joined.prompt_ids[1:, 2:], short.prompt_ids)
    assert torch.equal(joined.prompt_mask[1:, 2:], short.prompt_mask)
    assert not joined.prompt_mask[1:, :2].any()
    assert torch.equal(joined.prompt_ids[:1], long.prompt_ids)


def test_moving_to_a_device_keeps_every_field():
    assert_same(trajectory().to("cpu"), trajectory())
    assert trajectory().to("meta").one_step_tokens.device.type == "meta"


def test_a_completion_token_takes_twenty_bytes():
    path = trajectory(greedy=False)
    per_token = [path.tokens, path.unmask_step, path.logprob, path.entropy]
    assert sum(value.element_size() for value in per_token) == 20


# Rollout


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

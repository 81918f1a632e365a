"""The number of views in a forward pass of an update, and the passes that follow from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.helpers.rollouts import trajectory
from tests.helpers.runs import train_recipe
from unmask.core.records import Rollout, Views
from unmask.trainer.passes import CACHED_STATES, UpdatePasses


def rollout_and_views(per_completion: int) -> tuple[Rollout, Views]:
    """Return 8 completions of 5 tokens with prompts of 3, and views of them."""
    path = trajectory(8)
    row = torch.arange(8).repeat_interleave(per_completion)
    everything = torch.ones(len(row), 5, dtype=torch.bool)
    views = Views(row, everything, everything, torch.ones(len(row)), torch.zeros_like(row))
    return Rollout(path, 2, torch.zeros(8)), views


def sizes(passes: UpdatePasses, per_completion: int = 5) -> list[int]:
    rollout, views = rollout_and_views(per_completion)
    by_completion = passes.by_completion(views, rollout)
    return [len(index) for index in passes.batches(views, rollout, by_completion=by_completion).indices]


def test_a_cpu_gets_as_many_views_as_its_cache_holds_in_batches_of_similar_size(tmp_path: Path) -> None:
    recipe = train_recipe(tmp_path, tmp_path)
    assert recipe.views_per_forward is None
    assert sizes(UpdatePasses(recipe)) == [40]
    # A view has 8 tokens.
    assert sizes(UpdatePasses(recipe, width=CACHED_STATES // 8 // 18)) == [14, 14, 12]
    assert sizes(UpdatePasses(recipe, width=CACHED_STATES)) == [1] * 40
    assert sizes(UpdatePasses(train_recipe(tmp_path, tmp_path, "views_per_forward=30"), width=CACHED_STATES)) == [
        30,
        10,
    ]


@pytest.mark.parametrize(
    ("settings", "width", "expected", "has_first"),
    [
        # Whole completions, of 5 views each.
        (("method.type=espo",), CACHED_STATES // 8 // 18, [10, 10, 10, 10], False),
        (("method.type=espo",), CACHED_STATES, [5] * 8, False),
        (("method.type=espo", "views_per_forward=5"), None, [5] * 8, False),
        (("method.type=espo", "views_per_forward=4"), None, [4] * 10, True),
        # Pairs need the whole group.
        (("method.type=vrpo",), CACHED_STATES, [40], False),
        (("method.type=vrpo", "views_per_forward=5"), None, [5] * 8, True),
        (("method.type=wd1",), CACHED_STATES // 8 // 18, [14, 14, 12], False),
    ],
)
def test_a_sum_over_completions_has_one_pass_if_a_completion_fits(
    settings: tuple[str, ...], width: int | None, expected: list[int], has_first: bool, tmp_path: Path
) -> None:
    passes = UpdatePasses(train_recipe(tmp_path, tmp_path, *settings), width=width)
    rollout, views = rollout_and_views(5)
    assert sizes(passes) == expected
    assert passes.has_first_pass(len(expected), views, rollout) == has_first


@pytest.mark.parametrize(("max_tokens", "whole"), [(40, True), (39, False)])
def test_a_limit_on_tokens_decides_by_the_widest_completion(max_tokens: int, whole: bool, tmp_path: Path) -> None:
    passes = UpdatePasses(train_recipe(tmp_path, tmp_path, "method.type=espo"), max_tokens)
    rollout, views = rollout_and_views(5)
    path = replace(rollout.trajectory, prompt_mask=torch.ones(8, 3, dtype=torch.bool))
    assert passes.by_completion(views, replace(rollout, trajectory=path)) == whole


def test_a_mean_over_all_weights_keeps_the_views_without_a_gradient(tmp_path: Path) -> None:
    advantage = torch.tensor([0.0, 1.0])
    settings = ("method.type=egspo", "method.beta=0", "method.num_selected=2")
    averaging = ("behaviour={level: step, normalise: true}",)
    for more, kept in (((), [False, True]), (averaging, [True, True])):
        passes = UpdatePasses(train_recipe(tmp_path, tmp_path, *settings, *more))
        assert passes.is_kept(advantage).tolist() == kept

"""Batches of views: their sizes, dummy batches, and results in the order of the views."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.helpers.rollouts import trajectory
from unmask.core.records import Trajectory, ViewLogprobs, Views
from unmask.trainer.view_batches import ViewBatches


def prompts_of_lengths(*lengths: int) -> Trajectory:
    """Return a trajectory whose prompts have the given numbers of tokens, at most 3."""
    mask = torch.arange(3) >= 3 - torch.tensor(lengths).unsqueeze(-1)
    return replace(trajectory(len(lengths)), prompt_mask=mask)


def views_of(row: Tensor, num_targets: Tensor) -> Views:
    """Return views that hide five positions and read the first `num_targets` of them."""
    hidden = torch.ones(len(row), 5, dtype=torch.bool)
    target = torch.arange(5) < num_targets.unsqueeze(-1)
    return Views(row, hidden, target, torch.ones(len(row)), torch.zeros(len(row), dtype=torch.long))


VIEWS = views_of(torch.tensor([0, 1, 2, 0]), torch.tensor([1, 2, 3, 1]))


def logprobs_of(views: Views) -> ViewLogprobs:
    """Return log-probabilities that name the completion of each view, and a distribution for each
    target."""
    logprob = -views.row.float().unsqueeze(-1).expand(-1, 5)
    by_target = views.row.repeat_interleave(views.target.sum(-1)).float().unsqueeze(-1)
    return ViewLogprobs(logprob, choice=logprob - 1.0, distribution=by_target.expand(-1, 7))


@pytest.mark.parametrize(
    ("max_tokens", "indices"),
    [
        (None, [[0, 1, 2], [3]]),
        # Rows have 3 + 5, 1 + 5 and 2 + 5 tokens. The shortest come first, and each batch keeps the
        # order of the views.
        (14, [[1, 2], [0], [3]]),
        (16, [[1, 2], [0, 3]]),
    ],
)
def test_batches_hold_a_number_of_views_or_of_tokens(max_tokens: int | None, indices: list[list[int]]) -> None:
    batches = ViewBatches.of(VIEWS, prompts_of_lengths(3, 1, 2), 3, max_tokens)
    assert [index.tolist() for index in batches.indices] == indices
    assert [batch.row.tolist() for _, batch in batches] == [VIEWS.row[index].tolist() for index in indices]


@pytest.mark.parametrize(
    ("size", "max_tokens", "indices"),
    [
        (3, None, [[0, 2, 3], [1]]),
        # The two views of completion 0 stay together although they are more than one.
        (1, None, [[0, 2], [3], [1]]),
        # Rows have 3 + 5, 1 + 5 and 2 + 5 tokens.
        (3, 14, [[1, 3], [0, 2]]),
    ],
)
def test_the_views_of_a_completion_can_stay_together(
    size: int, max_tokens: int | None, indices: list[list[int]]
) -> None:
    views = views_of(torch.tensor([0, 2, 0, 1]), torch.tensor([1, 2, 3, 1]))
    batches = ViewBatches.of(views, prompts_of_lengths(3, 1, 2), size, max_tokens, by_completion=True)
    assert [index.tolist() for index in batches.indices] == indices


@pytest.mark.parametrize("max_tokens", [None, 14])
def test_results_are_in_the_order_of_the_views(max_tokens: int | None) -> None:
    batches = ViewBatches.of(VIEWS, prompts_of_lengths(3, 1, 2), 3, max_tokens).padded(5)
    joined = batches.in_order([logprobs_of(batch) for index, batch in batches if len(index)])
    expected = logprobs_of(VIEWS)
    for name in ("logprob", "choice", "distribution"):
        assert torch.equal(getattr(joined, name), getattr(expected, name)), name


def test_a_dummy_batch_reads_one_position() -> None:
    batches = ViewBatches.of(VIEWS.take(slice(0, 0)), prompts_of_lengths(3, 1, 2), 3, None)
    assert len(batches) == 0
    assert batches.in_order([]).logprob.shape == (0, 5)
    [(index, views)] = batches.padded(1)
    assert len(index) == 0
    assert (views.hidden.sum(), views.target.sum(), len(views)) == (1, 1, 1)

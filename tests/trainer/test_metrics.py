"""Metrics of a training step: means over all values, largest values, and token passes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from unmask.models import Denoiser
from unmask.trainer.metrics import Tally, TokenPasses

ALONE: Any = SimpleNamespace(num_processes=1)


def test_every_value_has_the_same_weight_in_the_mean() -> None:
    tally = Tally()
    tally.add("loss", torch.tensor([1.0, 2.0, 3.0]))
    tally.add("loss", 10.0)
    tally.add("reward", torch.tensor([[True, False], [False, False]]))
    assert tally.reduce(ALONE) == {"loss": 4.0, "reward": 0.25}


def test_a_name_that_ends_in_max_keeps_the_largest_value() -> None:
    tally = Tally()
    for values in ([-3.0, -1.0], [-2.0]):
        tally.add("policy/ratio_max", torch.tensor(values))
    assert tally.reduce(ALONE) == {"policy/ratio_max": -1.0}


def test_a_metric_without_values_is_not_reported() -> None:
    tally = Tally()
    tally.add("diffusion/one_step_reward", torch.zeros(0))
    assert tally.reduce(ALONE) == {}


def test_sums_are_taken_in_double_precision() -> None:
    tally = Tally()
    tally.add("reward", torch.full((10_000,), 0.1))
    assert tally.reduce(ALONE)["reward"] == pytest.approx(float(torch.tensor(0.1)), rel=1e-12)


def test_ranks_are_weighted_by_their_number_of_values(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = Tally(), Tally()
    for tally, rewards, ratio in ((here, [1.0, 1.0, 1.0], 2.0), (there, [0.0], 3.0)):
        tally.add("reward", torch.tensor(rewards))
        tally.add("policy/ratio_max", ratio)
        tally.add("effective_share", torch.tensor(rewards) + 1)
    there.add("only/there", 5.0)

    def gather(parts: list[Any]) -> list[Any]:
        return [*parts, (there._sum, there._squares, there._count)]

    monkeypatch.setattr("accelerate.utils.gather_object", gather)
    two: Any = SimpleNamespace(num_processes=2)
    # The weights 2, 2, 2 and 1: 7² / (4 x 13).
    wanted = {"effective_share": 49 / 52, "only/there": 5.0, "policy/ratio_max": 3.0, "reward": 0.75}
    assert here.reduce(two) == wanted


def test_a_token_counts_once_in_a_forward_and_three_times_with_a_backward(lively: Denoiser) -> None:
    meter = TokenPasses(lively)
    ids, positions = torch.ones(3, 7, dtype=torch.long), torch.zeros(3, 1, dtype=torch.long)
    with torch.no_grad():
        lively(ids, None, positions)
    assert (meter.take(), meter.take()) == (21, 0)
    lively(ids, None, positions)
    assert meter.take() == 63

"""Tests of the self-normalised weights of a group."""

from __future__ import annotations

import torch

from unmask.functional.advantage import softmax_advantage
from unmask.functional.tilted import softmax_by_group, tilted_weights

GROUP = torch.tensor([4, 4, 4, 7, 7, 7])
VALUES = torch.tensor([0.3, -1.0, 2.0, 50.0, 51.0, -400.0], dtype=torch.float64)


def test_the_softmax_is_that_of_each_group():
    expected = VALUES.view(2, 3).softmax(-1).flatten()
    torch.testing.assert_close(softmax_by_group(VALUES, GROUP), expected, rtol=0, atol=1e-15)
    order = torch.tensor([3, 0, 4, 2, 1, 5])
    torch.testing.assert_close(softmax_by_group(VALUES[order], GROUP[order]), expected[order], rtol=0, atol=1e-15)


def test_without_a_log_ratio_the_weights_are_those_of_wd1():
    reward = torch.tensor([0.1, 0.9, 0.4, 1.0, 1.0, 0.0], dtype=torch.float64)
    weight, _ = tilted_weights(torch.zeros(6, dtype=torch.float64), reward, GROUP, 1.0)
    torch.testing.assert_close(3 * weight, softmax_advantage(reward, 3), rtol=0, atol=1e-12)


def test_the_first_softmax_weighs_samples_of_one_policy_as_those_of_the_tilted_other():
    # Over all outcomes, each as often as the sampling policy draws it, the weights are the target's.
    reference, sampling = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.6, 0.2]], dtype=torch.float64)
    reward = torch.tensor([1.0, 0.0, -0.5], dtype=torch.float64)
    target = reference * reward.exp() / (reference * reward.exp()).sum()
    outcome = torch.repeat_interleave(torch.arange(3), torch.tensor([2, 6, 2]))
    log_ratio = (reference / sampling).log()[outcome]
    _, wanted = tilted_weights(log_ratio, reward[outcome], torch.zeros(10, dtype=torch.long), 1.0)
    found = torch.zeros(3, dtype=torch.float64).index_add(0, outcome, wanted)
    torch.testing.assert_close(found, target, rtol=0, atol=1e-12)


def test_the_second_softmax_is_subtracted_with_its_weight():
    reward = torch.tensor([0.1, 0.9, 0.4, 1.0, 1.0, 0.0], dtype=torch.float64)
    weight, wanted = tilted_weights(VALUES, reward, GROUP, 0.5)
    unwanted = (VALUES - reward).view(2, 3).softmax(-1).flatten()
    torch.testing.assert_close(weight, wanted - 0.5 * unwanted, rtol=0, atol=1e-15)
    flat, _ = tilted_weights(VALUES, torch.ones(6), GROUP, 1.0)
    assert flat.abs().max() < 1e-15, "equal rewards have no effect, whatever the log-ratios"

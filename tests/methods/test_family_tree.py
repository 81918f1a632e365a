"""Tests of the equalities on docs/methods/family-tree.md: a method is a setting of another one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.helpers.any_order import many
from unmask.methods.egspo import EGSPO
from unmask.methods.rldf import RLDF


def plan(method, rollout):
    return method.plan(rollout, torch.Generator().manual_seed(0))


def same_views(one, other):
    """Return whether two plans have the same views with the same weights."""
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("row", "hidden", "target", "slot"))


def test_rldf_without_temperature_is_egspo_with_surprisal_in_place_of_entropy(toy):
    rollout = many(toy(), 40)
    rldf = plan(RLDF(targets="step", num_selected=2, choice_temperature=0.0), rollout)
    surprising = replace(rollout, trajectory=replace(rollout.trajectory, entropy=-rollout.trajectory.logprob))
    egspo = plan(EGSPO(num_selected=2), surprising)
    assert same_views(rldf, egspo)
    torch.testing.assert_close(rldf.weight, egspo.weight)
    assert not same_views(rldf, plan(EGSPO(num_selected=2), rollout)), "entropy selects other steps"


@pytest.mark.parametrize("rule", ["surprisal", "surprisal_sampled"])
def test_the_rules_of_rldf_are_rules_of_egspo(toy, rule):
    rollout = many(toy(), 40)
    rollout = replace(rollout, trajectory=replace(rollout.trajectory, seed=torch.arange(40)))
    rldf = plan(RLDF(targets="step", num_selected=2, step_choice=rule), rollout)
    egspo = plan(EGSPO(num_selected=2, step_choice=rule), rollout)
    assert same_views(rldf, egspo)
    torch.testing.assert_close(rldf.weight, egspo.weight)
    other = plan(EGSPO(num_selected=2, step_choice=rule, choice_temperature=5.0), rollout)
    assert not same_views(rldf, other), "the temperature counts"

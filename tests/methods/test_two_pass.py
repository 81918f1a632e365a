"""Losses that are not a sum over views: two passes give the update of one graph, with the memory of
one chunk."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from tests.helpers.any_order import another, loss_of, many
from tests.helpers.mean_field import Watched
from tests.helpers.toy import TEMPERATURE
from unmask.core.config import OptimConfig, SamplerConfig
from unmask.methods.espo import ESPO
from unmask.methods.gdpo import GDPO
from unmask.methods.vrpo import VRPO
from unmask.recipes.schema import TrainRecipe
from unmask.tasks.sudoku import Sudoku
from unmask.trainer.learn import Learner
from unmask.trainer.metrics import Tally
from unmask.trainer.reference import FrozenCopy

METHODS = [
    ESPO(beta=0.3),
    ESPO(beta=0.0, trust_region="none"),
    ESPO(beta=0.0, epsilon=0.0, epsilon_high=0.0),
    GDPO(beta=0.3),
    VRPO(num_samples=3),
]
NUM_ITERATIONS = 3


def update(small, reference, method, rollout, views_per_forward, learning_rate=1.0):
    """Return the events of the trainer's update and its metrics; the table changes."""
    accelerator = Accelerator()
    recipe = TrainRecipe(
        task=Sudoku(),
        model="none",
        method=method,
        sampler=SamplerConfig(max_completion_length=small.L, num_steps=small.num_steps, temperature=TEMPERATURE),
        optim=OptimConfig(max_grad_norm=1e9, learning_rate=learning_rate, warmup_steps=0, lr_schedule="constant"),
        num_generations=rollout.group_size,
        num_iterations=NUM_ITERATIONS,
        views_per_forward=views_per_forward,
    )
    model = Watched(small.denoiser)
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    tally = Tally()
    learner = Learner(accelerator, model, optimizer, FrozenCopy(reference.denoiser), recipe)
    learner.update(rollout, 0, torch.Generator().manual_seed(3), tally)
    return model.events, tally.reduce(accelerator)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("views_per_forward", [1, 5, 1000])
def test_the_update_equals_that_of_one_graph_over_new_views_and_no_graph_outlives_its_chunk(
    toy, table_denoiser, method, views_per_forward
):
    small = toy(num_tokens=2, length=4, num_steps=2)
    by_hand = copy.deepcopy(small)
    start, reference = copy.deepcopy(small), another(small, table_denoiser)
    rollout = many(small, 8, group_size=4)
    events, _ = update(small, reference, method, rollout, views_per_forward)

    generator = torch.Generator().manual_seed(3)
    plans = [method.plan(rollout, generator) for _ in range(NUM_ITERATIONS)]
    assert not torch.equal(plans[0].hidden, plans[1].hidden)
    for views in plans:
        loss = loss_of(by_hand, method, rollout, views, old=start, reference=reference).loss.sum() / 8
        gradient = by_hand.gradient(loss)
        with torch.no_grad():
            by_hand.denoiser.table -= gradient
    moved = small.denoiser.table - start.denoiser.table
    assert moved.norm() > 1e-3
    torch.testing.assert_close(small.denoiser.table, by_hand.denoiser.table, rtol=0, atol=1e-12)

    assert events[1::2] == ["backward"] * (len(events) // 2)
    assert max(events[::2]) <= views_per_forward
    assert sum(events[::2]) == sum(len(views) for views in plans)


def test_the_comparison_can_fail(toy, table_denoiser):
    # A separate loss for each chunk, which the two passes avoid, is different.
    small = toy(num_tokens=2, length=4, num_steps=2)
    reference, rollout = another(small, table_denoiser), many(small, 8, group_size=4)
    method = ESPO(beta=0.3)
    views = method.plan(rollout, torch.Generator())
    whole = small.gradient(loss_of(small, method, rollout, views, reference=reference).loss.sum())
    halves = [views.take(slice(start, None, 2)) for start in (0, 1)]
    parts = [small.gradient(loss_of(small, method, rollout, half, reference=reference).loss.sum()) for half in halves]
    assert (sum(parts) - whole).norm() / whole.norm() > 0.1


@pytest.mark.parametrize("method", [ESPO(), GDPO()], ids=repr)
def test_the_ratio_is_one_until_the_policy_moves(toy, table_denoiser, method):
    small = toy(num_tokens=2, length=4, num_steps=2)
    rollout, reference = many(small, 8, group_size=4), another(small, table_denoiser)
    _, metrics = update(small, reference, method, rollout, 5, learning_rate=1e-13)
    assert metrics["policy/ratio_max"] == pytest.approx(1.0, abs=1e-6)
    _, metrics = update(small, reference, method, rollout, 5, learning_rate=5.0)
    assert metrics["policy/ratio_max"] > 1.01


def test_a_batch_without_a_pair_changes_nothing(toy, table_denoiser):
    small = toy(num_tokens=2, length=4, num_steps=2)
    start, reference = small.denoiser.table.detach().clone(), another(small, table_denoiser)
    rollout = replace(many(small, 8, group_size=4), reward=torch.ones(8))
    events, _ = update(small, reference, VRPO(), rollout, 5)
    assert events == []
    assert torch.equal(small.denoiser.table, start)

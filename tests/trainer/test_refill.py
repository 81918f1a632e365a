"""Tests of groups without signal: which they are, what replaces them, and that a run that replaces
them resumes bit for bit."""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.interrupted import Interrupted
from tests.helpers.messages import raises
from tests.helpers.rollouts import rollout as random_rollout
from tests.helpers.runs import metrics, train_recipe, weights
from unmask.core.errors import RewardError
from unmask.core.records import Rollout, Row
from unmask.methods import METHODS
from unmask.methods.egspo import EGSPO, EGSPOSA
from unmask.methods.egspo_ca import EGSPOCA
from unmask.rewards import per_completion
from unmask.runs.saved_rollouts import SavedRollout, saved_path
from unmask.trainer import Trainer
from unmask.trainer.collect import prompts_of_step
from unmask.trainer.metrics import Tally
from unmask.trainer.refill import NO_SIGNAL_STEPS, SignalWatch, further_prompts, refilled

ROWS: list[Row] = [{"prompt": str(i)} for i in range(10)]


def groups(*rewards: tuple[float, float]) -> Rollout:
    """Return groups of two with these rewards; each group begins with a prompt token of its own
    number."""
    whole = random_rollout(greedy=False)
    count = len(rewards)
    path = whole.trajectory.rows(torch.arange(2 * count) % 6)
    return Rollout(path, 2, torch.tensor(rewards, dtype=torch.float32).flatten())


def numbered(rollout: Rollout, first: int) -> Rollout:
    """Return the rollout with the number of each group as the seed of its completions."""
    number = first + torch.arange(len(rollout.trajectory)) // 2
    return replace(rollout, trajectory=replace(rollout.trajectory, seed=number))


# Prompts


def test_further_prompts_are_those_that_the_step_does_not_show_and_then_all_again():
    shown = prompts_of_step(ROWS, 3, 4, seed=5)
    found = list(islice(further_prompts(ROWS, 3, 4, seed=5), 26))
    ids = [row["prompt"] for row in found]
    assert sorted(ids[:6]) == sorted({row["prompt"] for row in ROWS} - {row["prompt"] for row in shown})
    assert sorted(ids[6:16]) == sorted(ids[16:26]) == sorted(row["prompt"] for row in ROWS)
    assert ids[6:16] != ids[16:26]


def test_further_prompts_depend_on_the_seed_and_the_step_alone():
    orders = {
        (seed, step): tuple(row["prompt"] for row in islice(further_prompts(ROWS, step, 4, seed), 16))
        for seed in (0, 1)
        for step in (0, 1, 2)
    }
    again = tuple(row["prompt"] for row in islice(further_prompts(ROWS, 1, 4, 1), 16))
    assert orders[1, 1] == again
    assert len(set(orders.values())) == 6


# Which groups have signal


def test_groups_of_equal_rewards_have_no_signal_for_a_group_relative_method():
    has_signal = EGSPO(beta=0.04).has_signal(groups((1, 0), (0.1, 0.1), (0, 0), (0, 1)))
    assert has_signal.tolist() == [True, False, False, True]


def test_stepwise_advantages_give_groups_of_equal_rewards_signal():
    whole = random_rollout()
    path = replace(whole.trajectory, selected_step=torch.zeros(6, 2, dtype=torch.int32))
    value = torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.5, 0.5], [0.0, 0.0], [0.0, 0.0]])
    flat = replace(whole, trajectory=path, reward=torch.ones(6), one_step_reward=value)
    assert EGSPOSA(num_selected=2).has_signal(flat).tolist() == [True, False, False]
    assert EGSPO(num_selected=2).has_signal(flat).tolist() == [False] * 3


def test_branches_give_groups_of_equal_rewards_signal():
    path = replace(random_rollout(greedy=False).trajectory, selected_step=torch.zeros(6, 1, dtype=torch.int32))
    value = torch.zeros(6, 1, 4)
    value[3, 0, 2] = 1.0
    flat = Rollout(path, 2, torch.ones(6), branch_reward=value)
    assert EGSPOCA(num_actions=4).has_signal(flat).tolist() == [False, True, False]


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"dispo", "egspo_ca", "egspo_sa"}))
def test_no_method_has_signal_in_a_group_of_equal_rewards_alone(name: str):
    options = {"num_sampled": 1} if name == "mask_aware" else {}
    method = METHODS[name](**options)
    if method.needs().greedy or not method.needs().group:
        return
    assert method.has_signal(groups((0.3, 0.3), (1, 0), (0.3, 0.3))).tolist() == [False, True, False]


# Replacement


class Sampled:
    """Gives groups with the rewards of a list, and records what was asked."""

    def __init__(self, *rounds: list[tuple[float, float]]) -> None:
        self.rounds, self.asked = list(rounds), []

    def __call__(self, prompts: list[Row], number: int) -> Rollout:
        self.asked.append(([row["prompt"] for row in prompts], number))
        rewards = self.rounds.pop(0)
        assert len(rewards) == len(prompts)
        return numbered(groups(*rewards), 100 * number)


def run(first: list[tuple[float, float]], sample: Sampled, max_rounds: int) -> tuple[Rollout, list[str], Any]:
    tally, prompts = Tally(), [{"prompt": f"first {i}"} for i in range(len(first))]
    further = iter([{"prompt": f"other {i}"} for i in range(20)])
    start = numbered(groups(*first), 0)
    whole, rows = refilled(start, prompts, EGSPO(beta=0.0), further, max_rounds, sample, tally)
    means = {name: total / tally._count[name] for name, total in tally._sum.items()}
    return whole, [row["prompt"] for row in rows], means


def test_groups_without_signal_are_replaced_in_their_places():
    sample = Sampled([(1, 1), (0, 1)], [(1, 0)])
    whole, prompts, found = run([(1, 0), (0, 0), (0, 1), (1, 1)], sample, max_rounds=5)
    assert whole.trajectory.seed[::2].tolist() == [0, 200, 2, 101]
    assert whole.reward.view(-1, 2).tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]
    assert prompts == ["first 0", "other 2", "first 2", "other 1"]
    assert sample.asked == [(["other 0", "other 1"], 1), (["other 2"], 2)]
    assert found == {"advantage/frac_flat_groups": 0.0, "refill/rounds": 2.0, "refill/extra_share": 0.75}


def test_the_number_of_extra_rollouts_is_limited():
    whole, prompts, found = run([(0, 0), (0, 1)], Sampled([(1, 1)], [(0, 0)]), max_rounds=2)
    assert whole.reward.tolist() == [0, 0, 0, 1]
    assert prompts == ["other 1", "first 1"]
    assert found == {"advantage/frac_flat_groups": 0.5, "refill/rounds": 2.0, "refill/extra_share": 1.0}


def test_nothing_is_sampled_without_need():
    start = [(0.0, 1.0), (1.0, 0.0)]
    assert run(start, Sampled(), max_rounds=3)[2]["refill/rounds"] == 0
    whole, prompts, found = run([(0, 0), (0, 1)], Sampled(), max_rounds=0)
    assert (prompts, found) == (["first 0", "first 1"], {"advantage/frac_flat_groups": 0.5})
    assert whole.trajectory.seed.tolist() == [0, 0, 1, 1]


# Runs


SETTINGS = (
    "method={type: egspo, num_selected: 2, beta: 0}",
    "max_steps=4",
    "save_steps=1",
    "num_prompts=4",
    "num_iterations=2",
    "refill_rounds=2",
    "evaluation.eval_steps=0",
    "evaluation.num_rows=2",
    "optim.learning_rate=1.0e-3",
    "log_rollouts_steps=1",
    "log_rollouts_groups=4",
)


@per_completion
def sparse(completions: list[str], **_: Any) -> list[float]:
    return [float(text.count("1") > 2) for text in completions]


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that refills groups."""
    folder = tmp_path_factory.mktemp("refill") / "whole"
    return Trainer(train_recipe(tiny_model, folder, *SETTINGS), [sparse]).train()


@pytest.mark.slow
def test_a_run_that_was_cut_off_in_an_extra_rollout_ends_as_one_that_was_not(
    whole: Path, tiny_model: Path, tmp_path: Path
) -> None:
    recipe = train_recipe(tiny_model, tmp_path / "cut", *SETTINGS)
    first = int(metrics(whole)[1]["refill/rounds"])
    assert first > 0
    # One call for the rollout of the first step, one for each of its extra rollouts, and then those
    # of the second step.
    with raises(RewardError, "answers", snapshot=False):
        Trainer(recipe, [Interrupted(sparse, 1 + first + 2)]).train()
    resumed = Trainer(recipe, [sparse], resume=True).train()
    assert weights(resumed) == weights(whole)


@pytest.mark.slow
def test_extra_rollouts_cost_token_passes_and_reward_calls_and_leave_fewer_groups_without_signal(
    whole: Path, tiny_model: Path, tmp_path: Path
) -> None:
    plain = Trainer(train_recipe(tiny_model, tmp_path / "plain", *SETTINGS, "refill_rounds=0"), [sparse]).train()
    first, other = metrics(whole)[1], metrics(plain)[1]
    assert first["reward"] == other["reward"], "the metrics describe the first rollout"
    assert first["advantage/frac_flat_groups"] < other["advantage/frac_flat_groups"] == other["frac_reward_zero_std"]
    for name in ("compute/token_passes", "compute/reward_calls"):
        assert first[name] > other[name]
    assert "refill/rounds" not in other
    assert weights(plain) != weights(whole)


@pytest.mark.slow
def test_saved_rollouts_show_the_groups_that_were_trained(whole: Path) -> None:
    for step in (1, 2):
        saved = SavedRollout.load(saved_path(whole, step))
        path = saved.rollout.trajectory
        for group, prompt in enumerate(saved.prompts):
            ids = path.prompt_ids[group * saved.rollout.group_size][path.prompt_mask[group * saved.rollout.group_size]]
            assert len(ids) == len(str(prompt))


# The warning


def test_a_run_without_signal_is_told_once_with_the_share_of_identical_texts(caplog):
    watch = SignalWatch()
    with caplog.at_level(logging.WARNING, "unmask"):
        for step in range(3 * NO_SIGNAL_STEPS):
            watch.see(1.0, 0.5 if step % 2 else 0.0)
    (record,) = caplog.records
    assert "In 20% of the groups all completions are the same text." in record.message


def test_a_step_with_signal_starts_the_count_again(caplog):
    watch = SignalWatch()
    for step in range(20):
        watch.see(0.99 if step % NO_SIGNAL_STEPS == NO_SIGNAL_STEPS - 1 else 1.0, 1.0)
    assert not caplog.records

"""A reward for few denoising steps in a run: it reaches the update, and the metrics of rewards stay those of the task."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.messages import raises
from tests.helpers.rollouts import rollout
from tests.helpers.runs import metrics, train_recipe, weights
from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError
from unmask.recipes.speed import SpeedConfig
from unmask.rewards import per_completion
from unmask.trainer import Trainer
from unmask.trainer.collect import with_speed_reward
from unmask.trainer.metrics import Tally

ADAPTIVE = ("sampler.schedule=threshold=0.05", "sampler.num_steps=16", "sampler.order=max_probability")
METHOD = "method={type: egspo, num_selected: 2}"
BY_BATCH = "method={type: egspo, num_selected: 2, baseline: batch_leave_one_out}"


@per_completion
def ones(completions: list[str], **_: Any) -> list[float]:
    return [float(text.count("1")) for text in completions]


def test_the_update_gets_both_rewards_and_a_fixed_schedule_none() -> None:
    given = rollout(greedy=False)
    sampler = SamplerConfig(
        max_completion_length=5, num_steps=3, order="max_probability", schedule="threshold=0.5", temperature=0.9
    )
    adaptive = replace(given, trajectory=replace(given.trajectory, sampler=sampler))
    rewarded = with_speed_reward(adaptive, SpeedConfig(weight=2.0, scale="none"), Tally())
    path = adaptive.trajectory
    speed = [
        sum(path.is_text()[row].tolist()) / max(1, len({s for s in path.unmask_step[row].tolist() if 0 <= s < 3}))
        for row in range(6)
    ]
    assert len(set(speed)) > 2
    torch.testing.assert_close(rewarded.reward, given.reward + 2 * torch.tensor(speed))
    assert with_speed_reward(adaptive, SpeedConfig(), Tally()) is adaptive
    assert with_speed_reward(given, SpeedConfig(weight=2.0), Tally()) is given


@pytest.mark.slow
def test_a_run_is_trained_for_speed_and_logs_the_reward_of_the_task(tiny_model: Path, tmp_path: Path) -> None:
    settings = ("max_steps=2", "evaluation.eval_steps=0", "num_generations=4", *ADAPTIVE, METHOD)
    plain, fast = (
        Trainer(train_recipe(tiny_model, tmp_path / str(weight), *settings, f"speed.weight={weight}"), [ones]).train()
        for weight in (0, 1)
    )
    first, other = metrics(plain)[0], metrics(fast)[0]
    for name in ("reward", "reward_std", "completions/text_tokens_per_step"):
        assert first[name] == other[name]
    assert first["completions/text_tokens_per_step"] > 0
    assert first["advantage/abs_mean"] != other["advantage/abs_mean"]
    assert weights(plain) != weights(fast)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ((METHOD,), "Set an adaptive schedule"),
        (
            ("method={type: egspo_sa, num_selected: 2}", *ADAPTIVE),
            "compares their rewards with those of unfinished ones",
        ),
        (("method={type: egspo_ca}", "num_generations=1", *ADAPTIVE), "num_generations = 1"),
    ],
)
def test_a_reward_for_speed_without_effect_or_meaning_is_refused(
    settings: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    with raises(ConfigError, "speed.weight", words):
        train_recipe(tmp_path, tmp_path, *settings, "speed.weight=0.5")


def test_groups_that_are_left_out_have_equal_rewards() -> None:
    given = rollout(greedy=False)
    sampler = SamplerConfig(
        max_completion_length=5, num_steps=3, order="max_probability", schedule="threshold=0.5", temperature=0.9
    )
    adaptive = replace(given, trajectory=replace(given.trajectory, sampler=sampler))
    plain = with_speed_reward(adaptive, SpeedConfig(weight=1.0), Tally())
    bound = float(adaptive.reward.view(-1, adaptive.group_size).max(-1).values.median()) + 1e-3
    settings = SpeedConfig(weight=1.0, needs_right=True, right_reward=bound)
    groups = with_speed_reward(adaptive, settings, Tally()).reward.view(-1, adaptive.group_size)
    is_right = (adaptive.reward >= bound).view(-1, adaptive.group_size).any(-1)
    assert is_right.any()
    assert not is_right.all()
    assert (groups[~is_right] == 0).all()
    assert torch.equal(groups[is_right], plain.reward.view_as(groups)[is_right])
    assert (with_speed_reward(adaptive, SpeedConfig(weight=1.0, min_range=100.0), Tally()).reward == 0).all()


@per_completion
def always_one(completions: list[str], **_: Any) -> list[float]:
    return [1.0] * len(completions)


@pytest.mark.slow
def test_the_likelihood_of_right_completions_is_trained_without_any_advantage(tiny_model: Path, tmp_path: Path) -> None:
    # All groups are left out, so the likelihood alone has a gradient.
    settings = ("max_steps=2", "evaluation.eval_steps=0", "optim.learning_rate=1e-2", *ADAPTIVE, METHOD)
    settings = (*settings, "method.beta=0", "speed.weight=1", "speed.min_range=100")
    runs = {
        name: Trainer(train_recipe(tiny_model, tmp_path / name, *settings, *own), [always_one]).train()
        for name, own in {
            "none": (),
            "right": ("speed.nll_weight=0.5",),
            "wrong": ("speed.nll_weight=0.5", "speed.right_reward=2"),
        }.items()
    }
    before = (tiny_model / "model.safetensors").read_bytes()
    assert weights(runs["none"]) == weights(runs["wrong"]) == before
    assert weights(runs["right"]) != before
    first, *_ = (line for line in metrics(runs["right"]) if "speed/nll" in line)
    assert first["speed/frac_left_out"] == 1
    # The untrained model is nearly uniform over nine tokens.
    assert 1 < first["speed/nll"] < 3
    assert first["loss"] > 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("speed.weight=0.5", "speed.nll_weight=0.1", "method={type: espo}"), "sum over denoising steps"),
        (("speed.weight=0.5", "speed.min_range=0.01", BY_BATCH), "completions of a whole training step"),
        (("speed.nll_weight=0.1", METHOD), "no effect without a reward for speed"),
        (("speed.needs_right=true", METHOD), "no effect without a reward for speed"),
    ],
)
def test_options_of_a_reward_for_speed_that_do_not_fit_are_refused(
    settings: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    with raises(ConfigError, "speed.", words):
        train_recipe(tmp_path, tmp_path, *ADAPTIVE, *settings)

"""A reward that compares the completions of a prompt, under every method: the same values, or a refusal before the first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.messages import raises
from tests.helpers.rollouts import collect
from tests.helpers.runs import OWN_SETTINGS, metrics, train_recipe
from unmask.core.errors import ConfigError
from unmask.methods import METHODS
from unmask.models import Denoiser, char_tokenizer
from unmask.recipes.scorer import scorer_of
from unmask.rewards.protocol import RewardFunc, per_completion
from unmask.sampling.encoding import decode
from unmask.tasks import Sudoku
from unmask.trainer import Trainer
from unmask.trainer.collect import check_rewards
from unmask.trainer.metrics import Tally

G = 3
SETTINGS = (f"num_generations={G}", "num_prompts=4", "sampler.max_completion_length=4", "sampler.num_steps=4")


def longest(completions: list[str], **_: Any) -> list[float]:
    """1 for the longest completions of each prompt, found by reshaping to (-1, G)."""
    assert len(completions) % G == 0
    groups = [completions[i : i + G] for i in range(0, len(completions), G)]
    return [float(len(text) == max(map(len, group))) for group in groups for text in group]


@per_completion
def length(completions: list[str], **_: Any) -> list[float]:
    """What each completion earns by itself."""
    return [float(len(text)) for text in completions]


def rewards_under(
    method: str, denoiser: Denoiser, folder: Path, reward: RewardFunc = longest
) -> tuple[list[str], list[float]]:
    """The texts of one step and what they earn."""
    tokenizer = char_tokenizer(Sudoku().alphabet)
    own = [setting for setting in OWN_SETTINGS.get(method, ()) if not setting.startswith("sampler.num_steps")]
    recipe = train_recipe(folder, folder, f"method={{type: {method}}}", *own, *SETTINGS)
    scorer, rows = scorer_of(recipe, [reward]), Sudoku().rows("train", 4)
    check_rewards(scorer, recipe.method)
    rollout = collect(denoiser, tokenizer, scorer, recipe, rows, 0, slice(None), Tally())
    return decode(tokenizer, rollout.trajectory.tokens), rollout.reward.tolist()


def scores_unfinished(method: str) -> bool:
    needs = METHODS[method]().needs()
    return needs.greedy or needs.branches is not None


@pytest.mark.parametrize("method", METHODS)
def test_a_group_has_its_winner_under_every_method_that_takes_the_reward(
    method: str, lively: Denoiser, tmp_path: Path
) -> None:
    if scores_unfinished(method):
        with raises(ConfigError, method, '"longest"'):
            rewards_under(method, lively, tmp_path)
        # The remedy that the message names: a reward that judges each independently is the same for finished completions.
        texts, rewards = rewards_under(method, lively, tmp_path, length)
        assert rewards == length(texts)
        assert len(set(rewards)) > 1
        return
    texts, rewards = rewards_under(method, lively, tmp_path)
    assert rewards == longest(texts)
    assert len(set(texts)) > 4
    assert 4 <= sum(rewards) < len(rewards), "each group has a winner, and some group a loser"
    if not any(setting.startswith("sampler.") for setting in OWN_SETTINGS.get(method, ())):
        assert (texts, rewards) == rewards_under("diffu_grpo", lively, tmp_path), "the same paths, and the same rewards"


def test_both_kinds_of_method_are_there() -> None:
    kinds = [scores_unfinished(method) for method in METHODS]
    assert sum(kinds) >= 2
    assert len(kinds) - sum(kinds) >= 8


@pytest.mark.parametrize("num_rows", [4, 5])
@pytest.mark.slow
def test_a_run_with_its_evaluations_only_calls_with_whole_groups(
    tiny_model: Path, tmp_path: Path, num_rows: int
) -> None:
    settings = (
        "method={type: diffu_grpo}",
        *SETTINGS,
        "num_prompts=2",
        f"evaluation.num_rows={num_rows}",
        "max_steps=2",
    )
    folder = Trainer(train_recipe(tiny_model, tmp_path / "run", *settings), [longest]).train()
    lines = metrics(folder)
    # A lone completion is the longest of a group of its equals.
    assert {line[key] for line in lines for key in line if key.startswith("eval/") and key.endswith("/reward")} == {1.0}
    assert all(line["rewards/longest/mean"] >= 1 / G for line in lines if "rewards/longest/mean" in line)


def test_the_default_method_refuses_it_before_a_model_is_loaded(tmp_path: Path) -> None:
    with raises(ConfigError, "from unmask.rewards import per_completion"):
        Trainer(train_recipe(tmp_path / "no-model", tmp_path / "run"), [longest])

"""The first half of a training step: the prompts that it takes, and its scored rollout."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.messages import raises
from tests.helpers.rollouts import ROWS, TOKENIZER, collect, count_ones
from tests.helpers.runs import train_recipe
from unmask.core.errors import ConfigError
from unmask.core.records import Rollout
from unmask.models import Denoiser
from unmask.recipes.schema import TrainRecipe
from unmask.rewards import per_completion
from unmask.rewards.scorer import Scorer
from unmask.sampling.encoding import decode
from unmask.trainer.collect import check_rewards, describe_groups, entropy_by_step, prompts_of_step
from unmask.trainer.metrics import Tally

# --- prompts ---


def numbered(count: int) -> list[dict[str, Any]]:
    return [{"prompt": str(i)} for i in range(count)]


def names(rows: list[dict[str, Any]]) -> list[int]:
    return [int(row["prompt"]) for row in rows]


@settings(max_examples=50)
@given(count=st.integers(1, 12), num_prompts=st.integers(1, 15), seed=st.integers(0, 3))
def test_every_row_is_taken_once_an_epoch(count: int, num_prompts: int, seed: int) -> None:
    rows = numbered(count)
    taken = [i for step in range(3 * count) for i in names(prompts_of_step(rows, step, num_prompts, seed))]
    assert len(taken) == 3 * count * num_prompts
    epochs = [taken[start : start + count] for start in range(0, len(taken), count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)


def test_a_step_depends_on_its_number_and_the_seed_alone() -> None:
    rows = numbered(50)
    in_order = [names(prompts_of_step(rows, step, 7, 0)) for step in range(20)]
    assert [names(prompts_of_step(rows, step, 7, 0)) for step in reversed(range(20))] == in_order[::-1]
    assert [names(prompts_of_step(rows, step, 7, 1)) for step in range(20)] != in_order


def test_steps_of_another_size_take_the_same_rows_in_the_same_order() -> None:
    rows = numbered(10)
    by_two = [i for step in range(15) for i in names(prompts_of_step(rows, step, 2, 0))]
    by_three = [i for step in range(10) for i in names(prompts_of_step(rows, step, 3, 0))]
    assert by_two == by_three


def test_epochs_are_shuffled_each_in_its_own_order() -> None:
    epochs = [tuple(names(prompts_of_step(numbered(10), epoch, 10, 0))) for epoch in range(5)]
    assert len({*epochs, tuple(range(10))}) == 6


# --- rollouts ---


@pytest.fixture
def rolled(lively: Denoiser, tmp_path: Path) -> Any:
    """Return a function of overrides and a share: the rollout of a step with 4 prompts by 3, and
    its metrics."""

    def _rolled(
        *overrides: str, share: slice = slice(None), reward: Any = count_ones
    ) -> tuple[Rollout, dict[str, float]]:
        selected = () if "method.type=diffu_grpo" in overrides else ("method.num_selected=2",)
        recipe = train_recipe(tmp_path, tmp_path, "num_generations=3", "num_prompts=4", *selected, *overrides)
        tally = Tally()
        scorer = Scorer({"ones": reward})
        rollout = collect(lively, TOKENIZER, scorer, recipe, ROWS, 5, share, tally)
        if share == slice(None):
            describe_groups(rollout, tally)
        alone: Any = SimpleNamespace(num_processes=1)
        return rollout, tally.reduce(alone)

    return _rolled


def test_the_completions_of_a_prompt_are_neighbours_and_differ(rolled: Any) -> None:
    rollout, _ = rolled()
    path = rollout.trajectory
    assert rollout.group_size == 3
    prompts = decode(TOKENIZER, path.prompt_ids)
    assert prompts == [row["prompt"] for row in ROWS for _ in range(3)]
    assert len(set(decode(TOKENIZER, path.tokens)[:3])) == 3
    assert len(set(path.seed.tolist())) == 12


def test_rewards_are_those_of_the_texts_and_of_the_one_step_texts(rolled: Any) -> None:
    @per_completion
    def reward(completions: list[str], **_: Any) -> list[float]:
        return [5.0 + value for value in count_ones(completions)]

    # From left to right some completions end before the fourth step, so some slots are empty.
    rollout, _ = rolled("sampler.order=left_to_right", "method.num_selected=4", reward=reward)
    path = rollout.trajectory
    assert rollout.reward.tolist() == pytest.approx(reward(decode(TOKENIZER, path.tokens)))
    filled = path.selected_step >= 0
    expected = torch.tensor(reward(decode(TOKENIZER, path.one_step_tokens.flatten(0, 1)))).view(12, 4)
    assert 12 < filled.sum() < 48
    assert torch.equal(rollout.one_step_reward, expected.masked_fill(~filled, 0.0))


def test_finished_and_one_step_completions_are_scored_in_calls_of_their_own_and_no_text_twice(rolled: Any) -> None:
    calls: list[list[tuple[str, str]]] = []

    @per_completion
    def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        calls.append(list(zip(prompts, completions, strict=True)))
        return [0.0] * len(completions)

    rollout, _ = rolled(reward=reward)
    first, second = calls
    path = rollout.trajectory
    prompts = [row["prompt"] for row in ROWS for _ in range(3)]
    finished = set(zip(prompts, decode(TOKENIZER, path.tokens), strict=True))
    one_step = set(
        zip([p for p in prompts for _ in range(2)], decode(TOKENIZER, path.one_step_tokens.flatten(0, 1)), strict=True)
    )
    assert Counter(first) == Counter(finished)
    assert Counter(second) == Counter(one_step - finished)


def test_a_function_that_compares_sees_whole_groups_in_order_with_repeated_texts(rolled: Any) -> None:
    calls: list[list[tuple[str, str]]] = []

    def longest(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        calls.append(list(zip(prompts, completions, strict=True)))
        groups = [completions[i : i + 3] for i in range(0, len(completions), 3)]
        return [float(len(text) == max(map(len, group))) for group in groups for text in group]

    # Completions have two tokens at most, so that texts repeat.
    small = ("sampler.max_completion_length=2", "sampler.num_steps=2", "sampler.temperature=0.1")
    rollout, _ = rolled("method.type=diffu_grpo", *small, reward=longest)
    texts = decode(TOKENIZER, rollout.trajectory.tokens)
    assert len(set(texts)) < 12
    assert calls == [list(zip([row["prompt"] for row in ROWS for _ in range(3)], texts, strict=True))]
    assert (rollout.reward.view(4, 3).max(dim=1).values == 1).all()


def test_a_function_that_compares_is_refused_for_a_method_that_scores_unfinished_completions(tmp_path: Path) -> None:
    scorer = Scorer({"ones": lambda completions, **_: [0.0] * len(completions)})
    with raises(ConfigError, '"ones"', "egspo_sa", "@per_completion"):
        check_rewards(scorer, train_recipe(tmp_path, tmp_path).method)
    check_rewards(scorer, train_recipe(tmp_path, tmp_path, "method.type=diffu_grpo").method)


def test_a_method_without_one_step_rewards_gets_none(rolled: Any) -> None:
    rollout, metrics = rolled("method.type=egspo")
    assert rollout.one_step_reward is None
    assert rollout.trajectory.selected_step is None
    assert "diffusion/one_step_reward" not in metrics


@pytest.mark.parametrize("share", [slice(6, 12), slice(4, 11)], ids=["whole groups", "parts of groups"])
def test_a_share_of_the_completions_gives_the_same_rollout_as_among_all(rolled: Any, share: slice) -> None:
    whole, _ = rolled()
    part, _ = rolled(share=share)
    for name, value in part.trajectory.tensors().items():
        assert torch.equal(value, whole.trajectory.tensors()[name][share]), name
    assert torch.equal(part.reward, whole.reward[share])


def test_the_batch_size_changes_no_token(rolled: Any) -> None:
    whole, _ = rolled()
    parts, _ = rolled("rollout_batch_size=5")
    assert torch.equal(whole.trajectory.tokens, parts.trajectory.tokens)
    assert torch.equal(whole.trajectory.unmask_step, parts.trajectory.unmask_step)


def test_metrics_describe_the_rollout(rolled: Any) -> None:
    rollout, metrics = rolled()
    groups = rollout.reward.view(4, 3)
    assert metrics["reward"] == pytest.approx(float(groups.mean()))
    assert metrics["reward_std"] == pytest.approx(float(groups.var(dim=1, unbiased=False).sqrt().mean()))
    assert metrics["rewards/ones/mean"] == metrics["reward"]
    assert metrics["frac_reward_zero_std"] == sum(len(set(g)) == 1 for g in groups.tolist()) / 4
    eos = rollout.trajectory.eos_id
    lengths = [row.index(eos) if eos in row else 16 for row in rollout.trajectory.tokens.tolist()]
    assert metrics["completions/mean_length"] == pytest.approx(sum(lengths) / 12)
    assert metrics["completions/ended_share"] == sum(n < 16 for n in lengths) / 12
    filled = rollout.trajectory.selected_step >= 0
    assert metrics["diffusion/one_step_reward"] == pytest.approx(float(rollout.one_step_reward[filled].mean()))
    assert metrics["diffusion/path_entropy"] == pytest.approx(
        float(rollout.trajectory.entropy.sum(-1).mean()), rel=1e-6
    )


@pytest.mark.parametrize("schedule", ["fixed", "entropy_bound=2"])
def test_the_forward_passes_of_a_completion_are_counted(rolled: Any, schedule: str) -> None:
    rollout, metrics = rolled(f"sampler.schedule={schedule}", "sampler.num_steps=16")
    steps = [sorted({k for k in row if 0 <= k < 16}) for row in rollout.trajectory.unmask_step.tolist()]
    committed = [sum(0 <= k < 16 for k in row) for row in rollout.trajectory.unmask_step.tolist()]
    assert metrics["diffusion/forwards"] == pytest.approx(sum(map(len, steps)) / 12)
    each = [n / len(k) for n, k in zip(committed, steps, strict=True)]
    assert metrics["diffusion/tokens_per_forward"] == pytest.approx(sum(each) / 12, rel=1e-6)
    assert (metrics["diffusion/tokens_per_forward"] > 1) == (schedule != "fixed")


def test_groups_of_one_reward_are_counted(rolled: Any) -> None:
    _, metrics = rolled(reward=per_completion(lambda completions, **_: [1.0] * len(completions)))
    assert (metrics["frac_reward_zero_std"], metrics["reward_std"]) == (1.0, 0.0)


def test_a_function_that_abstains_lowers_no_mean(rolled: Any) -> None:
    abstains = per_completion(lambda completions, **_: [None if len(text) % 2 else 2.0 for text in completions])
    _, metrics = rolled(reward=abstains)
    assert metrics["rewards/ones/mean"] == 2.0
    assert 0.0 < metrics["reward"] < 2.0


def test_entropy_by_step_is_the_mean_joint_entropy_of_what_each_step_committed(rolled: Any) -> None:
    rollout, _ = rolled()
    path = rollout.trajectory
    by_hand = [float(torch.where(path.unmask_step == k, path.entropy, 0.0).sum(-1).mean()) for k in range(4)]
    assert entropy_by_step(rollout).tolist() == pytest.approx(by_hand, rel=1e-6)
    assert min(by_hand) > 0


# --- branches of the selected states ---


def recipe_of(folder: Path, method: str) -> TrainRecipe:
    return train_recipe(folder, folder, "num_prompts=4", "num_generations=3", "sampler.num_steps=8", method)


@pytest.mark.parametrize(("method", "extra"), [("scope: all", 0), ("form: unbiased", 1)])
def test_branches_are_scored_like_completions_and_equal_texts_of_a_prompt_once(
    lively: Denoiser, tmp_path: Path, method: str, extra: int
) -> None:
    recipe = recipe_of(tmp_path, f"method={{type: egspo_ca, num_selected: 2, num_actions: 3, {method}}}")
    scorer = Scorer({"ones": count_ones})
    rollout = collect(lively, TOKENIZER, scorer, recipe, ROWS, 0, slice(None), Tally())
    branches = rollout.trajectory.branch_tokens
    assert branches is not None
    assert rollout.branch_reward is not None
    assert branches.shape == (len(rollout.reward), 2, 3 + extra, 16)
    expected = count_ones(decode(TOKENIZER, branches.flatten(0, 2).long()))
    is_slot = (rollout.trajectory.selected_step >= 0).unsqueeze(-1).expand(rollout.branch_reward.shape)
    assert rollout.branch_reward[is_slot].tolist() == torch.tensor(expected).view(is_slot.shape)[is_slot].tolist()
    assert rollout.one_step_reward is None, "the method does not use rewards of one-step completions"
    texts = decode(TOKENIZER, torch.cat([rollout.trajectory.tokens, branches.flatten(0, 2).long()]))
    per_row = recipe.num_generations
    owner = [b // per_row for b in range(len(rollout.reward))]
    owner += [b // per_row for b in range(len(rollout.reward)) for _ in range(2 * (3 + extra))]
    assert scorer.take() == len(set(zip(owner, texts, strict=True)))
    assert scorer.take() == 0

"""The first half of a step: prompts, rollout, rewards. What comes out is a scored `Rollout` of whole groups."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unmask.functional.advantage import constant_group_share
from unmask.functional.noise import BRANCH_STREAM, counter_uniform, named_generator
from unmask.functional.selection import step_sum
from unmask.methods import Method
from unmask.models import Denoiser
from unmask.recipe import TrainRecipe
from unmask.records import Rollout, Row, Trajectory
from unmask.rollout import decode, generate, row_seeds
from unmask.score import Scorer
from unmask.trainer.metrics import Tally

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prompts_of_step(rows: Sequence[Row], step: int, num_prompts: int, seed: int) -> list[Row]:
    """The rows that step `step` (from 0) trains on: epoch after epoch, each in an order of its own.

    A function of its arguments alone, so a resumed run sees what the uninterrupted one would have seen.
    """
    picked: list[Row] = []
    for position in range(step * num_prompts, (step + 1) * num_prompts):
        epoch, offset = divmod(position, len(rows))
        if not picked or offset == 0:
            order = torch.randperm(len(rows), generator=named_generator(seed, "epoch", epoch))
        picked.append(rows[int(order[offset])])
    return picked


def check_rewards(scorer: Scorer, method: Method) -> None:
    """Refuse reward functions that compare completions, under a method that also scores unfinished ones.

    Raises:
        ConfigError: names the function and says what to do.
    """
    needs = method.needs()
    if needs.greedy or needs.fills:
        scorer.check_unfinished(method.type)


def collect(
    denoiser: Denoiser,
    tokenizer: PreTrainedTokenizerBase,
    scorer: Scorer,
    recipe: TrainRecipe,
    rows: Sequence[Row],
    step: int,
    share: slice,
    tally: Tally,
    max_tokens: int | None = None,
    lockstep: AbstractContextManager[None] | None = None,
) -> Rollout:
    """Roll out and score one step's groups.

    Args:
        denoiser: the policy.
        tokenizer: its tokenizer.
        scorer: the reward functions.
        recipe: the run's settings.
        rows: the step's prompts, of all processes.
        step: from 0.
        share: which of them this process owns; it owns whole groups.
        tally: takes the metrics.
        max_tokens: rows times tokens that are denoised together; default `rollout_batch_size` rows.
        lockstep: open around the forwards, so that every process runs as many.

    Raises:
        ConfigError: a reward function that compares completions, under a method that also scores unfinished ones.
        RewardError: a reward function that failed.
    """
    group_size = recipe.num_generations
    # Seeds are drawn for all processes' rows, so that the number of processes does not change a rollout.
    seeds = row_seeds(len(rows) * group_size, named_generator(recipe.seed, "rollout", step))
    own = [row for row in rows[share] for _ in range(group_size)]
    own_seeds = seeds.view(len(rows), group_size)[share].reshape(-1)
    check_rewards(scorer, recipe.method)
    needs = recipe.method.needs()
    with lockstep or nullcontext():
        trajectory = generate(
            denoiser,
            tokenizer,
            [row["prompt"] for row in own],
            recipe.sampler,
            own_seeds,
            batch_size=recipe.rollout_batch_size,
            max_tokens=max_tokens,
            needs=needs,
            entropy_temperature=None if recipe.logprob_temperature == "sampling" else recipe.logprob_temperature,
        )
        if needs.fills and needs.fills.finish == "rollout":
            trajectory = _branched(denoiser, tokenizer, own, recipe, trajectory, max_tokens)
    # Whole groups of finished completions first, in a call of their own.
    scores = scorer(own, decode(tokenizer, trajectory.tokens))
    reward = torch.tensor(scores.total, device=trajectory.tokens.device)
    rewards = _unfinished_rewards(tokenizer, scorer, own, trajectory, bool(needs.greedy), tally)
    rollout = Rollout(trajectory, group_size, reward, **rewards)
    _describe(rollout, scores.by_function, tally)
    for name, reasons in scores.reasons.items():
        for reason, happened in reasons.items():
            tally.add(f"rewards/{name}/{reason}", torch.tensor(happened))
    return rollout


def _unfinished_rewards(
    tokenizer: PreTrainedTokenizerBase,
    scorer: Scorer,
    rows: Sequence[Row],
    path: Trajectory,
    has_greedy: bool,
    tally: Tally,
) -> dict[str, Tensor]:
    """Rewards of one-step completions, fills and branches, by their field of `Rollout`; 0 in empty slots."""
    parts = {"one_step_reward": path.greedy_tokens if has_greedy else None, "fill_reward": path.fill_tokens}
    there = {name: tokens for name, tokens in parts.items() if tokens is not None}
    if not there:
        return {}
    is_filled = {name: _filled(tokens, path.greedy_step) for name, tokens in there.items()}
    chosen = {name: tokens[is_filled[name]].long() for name, tokens in there.items()}
    of_row = [rows[int(i)] for filled in is_filled.values() for i in filled.nonzero()[:, 0]]
    texts = decode(tokenizer, torch.cat(list(chosen.values())))
    total = torch.tensor(scorer.unfinished(of_row, texts).total, device=path.tokens.device)
    rewards = {}
    for name, values in zip(there, total.split([len(tokens) for tokens in chosen.values()]), strict=True):
        rewards[name] = total.new_zeros(is_filled[name].shape).masked_scatter(is_filled[name], values)
        tally.add(f"diffusion/{name}", values)
    return rewards


def _filled(tokens: Tensor, greedy_step: Tensor | None) -> Tensor:
    """Which completions of [B, K, ..., L] tokens there are: those of slots that hold a step."""
    shape = tokens.shape[:-1]
    if greedy_step is None:
        return torch.ones(shape, dtype=torch.bool, device=tokens.device)
    return (greedy_step >= 0).view(*greedy_step.shape, *[1] * (len(shape) - 2)).expand(shape)


def _branched(
    denoiser: Denoiser,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    recipe: TrainRecipe,
    path: Trajectory,
    max_tokens: int | None,
) -> Trajectory:
    """The trajectory with each fill denoised on from the state that its step leaves behind, instead of finished at once.

    A branch shares its state with the path, so it costs the T - k - 1 forwards that are left.
    """
    assert path.greedy_step is not None
    assert path.fill_tokens is not None
    row, slot = (path.greedy_step >= 0).nonzero(as_tuple=True)
    num = path.fill_tokens.shape[2]
    step = path.greedy_step[row, slot].unsqueeze(-1)
    when, shown = path.unmask_step[row], path.tokens[row].masked_fill(path.unmask_step[row] > step, path.mask_id)
    state = torch.where((when == step).unsqueeze(1), path.fill_tokens[row, slot].long(), shown.unsqueeze(1))
    draw = torch.arange(num, device=state.device)
    # A branch's draws are its own: a hash of the path's seed, the slot's step and the number of the fill.
    seed = (counter_uniform(path.seed[row].unsqueeze(-1), BRANCH_STREAM, step, draw) * 2**53).long()
    branches = generate(
        denoiser,
        tokenizer,
        [rows[int(i)]["prompt"] for i in row for _ in range(num)],
        recipe.sampler,
        seed.flatten().cpu(),
        batch_size=recipe.rollout_batch_size,
        max_tokens=max_tokens,
        completion=state.flatten(0, 1),
        first_step=(step + 1).expand(-1, num).flatten(),
    )
    fill_tokens = path.fill_tokens.clone()
    fill_tokens[row, slot] = branches.tokens.view(state.shape).int()
    return replace(path, fill_tokens=fill_tokens)


def _describe(rollout: Rollout, by_function: dict[str, list[float | None]], tally: Tally) -> None:
    """TRL's rollout metrics, and the path's own."""
    path, reward = rollout.trajectory, rollout.reward
    groups = reward.view(-1, rollout.group_size)
    tally.add("reward", reward)
    if rollout.group_size > 1:
        tally.add("reward_std", groups.std(dim=1, unbiased=False))
        tally.add("frac_reward_zero_std", constant_group_share(reward, rollout.group_size))
    for name, values in by_function.items():
        tally.add(f"rewards/{name}/mean", torch.tensor([v for v in values if v is not None]))
    length = path.is_text().sum(-1)
    tally.add("completions/mean_length", length)
    tally.add("completions/ended_share", (length < path.tokens.shape[1]).float())
    entropy = step_sum(path.entropy, path.unmask_step, path.num_steps)
    tally.add("diffusion/path_entropy", entropy.sum(-1))


def entropy_by_step(rollout: Rollout) -> Tensor:
    """[T] mean joint entropy of each step over the completions, nats."""
    path = rollout.trajectory
    return step_sum(path.entropy, path.unmask_step, path.num_steps).mean(0)

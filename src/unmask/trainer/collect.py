"""The first half of a training step, which samples completions and scores them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unmask.core.errors import ConfigError
from unmask.core.records import Rollout, Row, Trajectory
from unmask.functional.advantage import constant_group_share
from unmask.functional.noise import named_generator
from unmask.functional.selection import step_sum
from unmask.functional.speed import lacks_contrast, tokens_per_forward, with_speed
from unmask.methods import Method
from unmask.recipes.schema import TrainRecipe
from unmask.recipes.speed import SpeedConfig
from unmask.rewards.scorer import Scorer
from unmask.sampling.encoding import decode, row_seeds
from unmask.sampling.engine import RolloutEngine
from unmask.trainer.continuations import with_denoised_branches, with_denoised_values
from unmask.trainer.metrics import Tally

_METRICS = {"one_step_reward": "diffusion/one_step_reward", "branch_reward": "diffusion/branch_reward"}
"""Names of the metrics for the rewards of unfinished completions. A key is the field of `Rollout`
that holds these rewards."""


def prompts_of_step(rows: Sequence[Row], step: int, num_prompts: int, seed: int) -> list[Row]:
    """Return the examples of the training step `step`, counted from 0. The order of the examples
    differs between epochs.

    The result depends on the arguments alone, so a resumed run sees the same examples as an
    uninterrupted run.
    """
    return [rows[i] for i in indices_of_step(len(rows), step, num_prompts, seed)]


def indices_of_step(num_rows: int, step: int, num_prompts: int, seed: int) -> list[int]:
    """Return the indices of the examples of a training step; see `prompts_of_step`."""
    picked: list[int] = []
    for position in range(step * num_prompts, (step + 1) * num_prompts):
        epoch, offset = divmod(position, num_rows)
        if not picked or offset == 0:
            order = torch.randperm(num_rows, generator=named_generator(seed, "epoch", epoch))
        picked.append(int(order[offset]))
    return picked


def check_sharing(recipe: TrainRecipe, scorer: Scorer, ranks: int) -> None:
    """Refuse a number of ranks that does not fit the completions of a training step.

    Ranks share completions, and so may own parts of groups. That needs rewards that judge each
    completion independently and a loss that is a sum over completions, because a rank scores and
    back-propagates only its own completions. All ranks have all rewards before they compute
    advantages.

    Raises:
        ConfigError: there are more ranks than completions, or whole groups are needed. All ranks
            raise it, because all have the same settings.
    """
    prompts, group_size, method = recipe.num_prompts, recipe.num_generations, recipe.method
    if prompts * group_size < ranks:
        raise ConfigError(
            f"num_prompts = {prompts} and num_generations = {group_size} make {prompts * group_size} completions in a "
            f"training step, fewer than the {ranks} ranks that share them. Raise num_prompts, or use fewer ranks.",
            agreed=True,
        )
    if prompts % ranks == 0:
        # Every rank owns whole groups.
        return
    reason = None
    if not (method.separable or method.by_completion):
        reason = f"the loss of {method.type} compares the completions of a group"
    elif not scorer.judges_each:
        reason = (
            "a reward function compares the completions of a group (rewards that do not can say so: @per_completion)"
        )
    if reason:
        raise ConfigError(
            f"num_prompts = {prompts} cannot be divided among {ranks} ranks in whole groups, and {reason}. Use a multiple of "
            f"{ranks}.",
            agreed=True,
        )


def check_rewards(scorer: Scorer, method: Method) -> None:
    """Refuse reward functions that compare completions if the method also scores unfinished ones.

    Raises:
        ConfigError: a reward function does not declare that it judges each completion
            independently.
    """
    needs = method.needs()
    if needs.greedy or needs.branches:
        scorer.check_unfinished(method.type)


@dataclass(frozen=True, slots=True)
class Sampled:
    """Completions of a training step that have no rewards yet."""

    rows: list[Row]
    """One example for each completion."""
    trajectory: Trajectory
    """Paths of the completions."""


class Collector:
    """Samples and scores the completions of a training step. `Learner` does the second half of the step.

    Args:
        engine: samples the completions.
        scorer: reward functions, which `check_rewards` has accepted.
        recipe: settings of the run.
    """

    def __init__(self, engine: RolloutEngine, scorer: Scorer, recipe: TrainRecipe) -> None:
        self.engine, self.scorer, self.recipe = engine, scorer, recipe
        self.needs = recipe.method.needs()

    def collect(self, rows: Sequence[Row], step: int, share: slice, tally: Tally) -> Rollout:
        """Return the scored rollout of this rank's completions; see `sample` and `score`."""
        return self.score(self.sample(rows, step, share), tally)

    def sample(self, rows: Sequence[Row], step: int, share: slice, *, refill: int = 0) -> Sampled:
        """Return this rank's completions; see `check_sharing`.

        Args:
            rows: examples of the training step, for all ranks.
            step: index of the training step, from 0.
            share: slice of the completions that this rank owns, at least one.
            refill: 0 for the rollout of the step, or the number of an extra rollout, which has other
                random draws.
        """
        rows = [row for row in rows for _ in range(self.recipe.num_generations)]
        # Every rank draws the seeds of all ranks, so that the number of ranks does not change a
        # rollout.
        purpose = ("rollout", step, "refill", refill) if refill else ("rollout", step)
        seeds = row_seeds(len(rows), named_generator(self.recipe.seed, *purpose))
        own = rows[share]
        return Sampled(own, self._rollout(own, seeds[share]))

    def score(self, sampled: Sampled, tally: Tally) -> Rollout:
        """Return the rollout of sampled completions with their rewards.

        Args:
            sampled: completions of this rank.
            tally: object to which the metrics are added.

        Raises:
            RewardError: a reward function failed.
        """
        own, trajectory = sampled.rows, sampled.trajectory
        # A call of its own scores the finished completions, so that a reward function sees whole
        # groups.
        scores = self.scorer(own, decode(self.engine.tokenizer, trajectory.tokens))
        reward = torch.tensor(scores.total, device=trajectory.tokens.device)
        rewards = self._unfinished_rewards(own, trajectory, tally)
        rollout = Rollout(trajectory, self.recipe.num_generations, reward, **rewards)
        _describe(rollout, scores.by_function, tally)
        for name, reasons in scores.reasons.items():
            for reason, happened in reasons.items():
                tally.add(f"rewards/{name}/{reason}", torch.tensor(happened))
        return rollout

    def _rollout(self, rows: Sequence[Row], seeds: Tensor) -> Trajectory:
        recipe = self.recipe
        with self.engine.session():
            trajectory = self.engine.rollout(
                [row["prompt"] for row in rows],
                recipe.sampler,
                seeds,
                # The rollout stores no one-step completions where longer ones take their place.
                needs=replace(self.needs, greedy=False) if self.needs.value_steps else self.needs,
                entropy_temperature=None if recipe.logprob_temperature == "sampling" else recipe.logprob_temperature,
            )
            if self.needs.branches and self.needs.branches.finish == "rollout":
                trajectory = with_denoised_branches(self.engine, rows, trajectory, recipe.sampler)
            if self.needs.greedy and self.needs.value_steps:
                trajectory = with_denoised_values(self.engine, rows, trajectory, recipe.sampler, self.needs)
        return trajectory

    def _unfinished_rewards(self, rows: Sequence[Row], path: Trajectory, tally: Tally) -> dict[str, Tensor]:
        """Return the rewards of one-step completions and branches, as a dict by field of `Rollout`.
        The reward in an empty slot is 0."""
        greedy = path.one_step_tokens if self.needs.greedy else None
        parts = {"one_step_reward": greedy, "branch_reward": path.branch_tokens}
        present = {name: tokens for name, tokens in parts.items() if tokens is not None}
        if not present:
            return {}
        is_filled = {name: _is_filled(tokens, path.selected_step) for name, tokens in present.items()}
        chosen = {name: tokens[is_filled[name]].long() for name, tokens in present.items()}
        of_row = [rows[int(i)] for filled in is_filled.values() for i in filled.nonzero()[:, 0]]
        texts = decode(self.engine.tokenizer, torch.cat(list(chosen.values())))
        total = torch.tensor(self.scorer.unfinished(of_row, texts).total, device=path.tokens.device)
        rewards = {}
        for name, values in zip(present, total.split([len(tokens) for tokens in chosen.values()]), strict=True):
            rewards[name] = total.new_zeros(is_filled[name].shape).masked_scatter(is_filled[name], values)
            tally.add(_METRICS[name], values)
        return rewards


def _is_filled(tokens: Tensor, selected_step: Tensor | None) -> Tensor:
    """[B, K, ...] bool: True for the completions among [B, K, ..., L] tokens whose slot holds a
    denoising step."""
    shape = tokens.shape[:-1]
    if selected_step is None:
        return torch.ones(shape, dtype=torch.bool, device=tokens.device)
    return (selected_step >= 0).view(*selected_step.shape, *[1] * (len(shape) - 2)).expand(shape)


def _describe(rollout: Rollout, by_function: dict[str, list[float | None]], tally: Tally) -> None:
    """Log the metrics of a rollout under the names that TRL uses, and further metrics of its
    trajectories."""
    path, reward = rollout.trajectory, rollout.reward
    tally.add("reward", reward)
    for name, values in by_function.items():
        tally.add(f"rewards/{name}/mean", torch.tensor([v for v in values if v is not None]))
    length = path.is_text().sum(-1)
    tally.add("completions/mean_length", length)
    tally.add("completions/ended_share", (length < path.tokens.shape[1]).float())
    entropy = step_sum(path.entropy, path.unmask_step, path.num_steps)
    tally.add("diffusion/path_entropy", entropy.sum(-1))
    tally.add("diffusion/forwards", path.forwards)
    tally.add("diffusion/tokens_per_forward", path.tokens_committed / path.forwards.clamp(min=1))


def describe_groups(rollout: Rollout, tally: Tally) -> None:
    """Log metrics of whole groups under the names that TRL uses. Every rank logs those of all
    ranks."""
    if rollout.group_size > 1:
        groups = rollout.reward.view(-1, rollout.group_size)
        tally.add("reward_std", groups.std(dim=1, unbiased=False))
        tally.add("frac_reward_zero_std", constant_group_share(rollout.reward, rollout.group_size))
        tally.add("completions/frac_identical_groups", _is_identical(rollout).float())


def _is_identical(rollout: Rollout) -> Tensor:
    """[B / G] bool: True for the groups whose completions are all the same text."""
    path = rollout.trajectory
    text = path.tokens.masked_fill(~path.is_text(), path.eos_id).view(-1, rollout.group_size, path.tokens.shape[1])
    return (text == text[:, :1]).flatten(1).all(1)


def with_speed_reward(rollout: Rollout, speed: SpeedConfig, tally: Tally) -> Rollout:
    """Return the rollout of whole groups with the rewards that the update uses: those of the task,
    and a reward for speed if it is set."""
    path = rollout.trajectory
    if path.sampler.is_adaptive:
        measured = tokens_per_forward(path.is_text().sum(-1), path.steps_taken)
        tally.add("completions/text_tokens_per_step", measured)
        if speed.weight:
            size, is_right = rollout.group_size, rollout.reward >= speed.right_reward
            reward = with_speed(rollout.reward, measured, size, speed.weight, speed.scale)
            if speed.min_range or speed.needs_right:
                is_left_out = lacks_contrast(measured, is_right, size, speed.min_range, needs_right=speed.needs_right)
                tally.add("speed/frac_left_out", is_left_out.float())
                # Equal rewards are no signal, so such a group can be replaced like any other.
                reward = reward.masked_fill(is_left_out.repeat_interleave(size), 0.0)
            return replace(rollout, reward=reward, is_right=is_right if speed.nll_weight else None)
    return rollout


def entropy_by_step(rollout: Rollout) -> Tensor:
    """[T] float32, nats: joint entropy of each denoising step, mean over the completions."""
    path = rollout.trajectory
    return step_sum(path.entropy, path.unmask_step, path.num_steps).mean(0)

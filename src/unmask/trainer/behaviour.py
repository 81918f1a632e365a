"""Comparison of the policy that is trained with the behaviour policy that sampled the rollout: the
ratios of what was sampled, and the weights that they give the views (masked versions of the
completions)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unmask.core.records import LossInputs, Trajectory, ViewLogprobs, Views
from unmask.functional.behaviour import Level, behaviour_weight
from unmask.functional.completions import sum_by_completion
from unmask.methods.views import step_views
from unmask.recipes.behaviour import BehaviourConfig
from unmask.trainer.distributed.ranks import Ranks
from unmask.trainer.metrics import Tally

LARGEST_LOG_RATIO = 300.0
"""Log-ratio at which metrics stop counting, in nats, so that the sum of the squares is finite."""


@dataclass(frozen=True, slots=True)
class Ratios:
    """Ratios of the old to the behaviour policy, of units of one level: tokens, steps or
    completions."""

    log_ratio: Tensor
    """[N, L] nats by token, 0 outside the targets; otherwise [N] by view or [B] by completion."""
    num_tokens: Tensor
    """[N, L], [N] or [B] int64: number of sampled tokens of each unit; 0 where there is none."""
    by_token: Tensor
    """[N, L] nats: log-ratios of single tokens, whatever the level."""

    @classmethod
    def of(cls, path: Trajectory, row: Tensor, target: Tensor, logprobs: ViewLogprobs, level: Level) -> Ratios:
        """Compare the log-probabilities that the old policy gives to targets with those that the
        rollout recorded.

        Args:
            path: completions of the rollout.
            row: [N] int64: completions that the views show. Each view is a state of the path.
            target: [N, L] bool: the tokens that the step of each view committed.
            logprobs: log-probabilities of the targets, and of their position choices if these
                count. Of several token sequences, the first is the completion's own.
            level: level of the units. For `sequence`, the views are all states of some completions,
                and the units are those completions in ascending order.
        """
        own = logprobs.logprob[:, 0] if logprobs.logprob.dim() == 3 else logprobs.logprob
        by_token = own - path.logprob[row]
        if logprobs.choice is not None and path.choice_logprob is not None:
            by_token = by_token + logprobs.choice - path.choice_logprob[row]
        by_token = by_token.detach().masked_fill(~target, 0.0)
        if level == "token":
            return cls(by_token, target.long(), by_token)
        log_ratio, num_tokens = by_token.sum(-1), target.sum(-1)
        if level == "sequence":
            log_ratio, num_tokens = sum_by_completion(log_ratio, row), sum_by_completion(num_tokens, row)
        return cls(log_ratio, num_tokens, by_token)

    def weights(self, config: BehaviourConfig) -> Tensor:
        """Return the weight of each unit before normalisation; 0 where there is no unit."""
        weight, _, _ = behaviour_weight(self.log_ratio, self.num_tokens, config.cap, config.band)
        return weight.masked_fill(self.num_tokens == 0, 0.0)

    def record(self, config: BehaviourConfig, tally: Tally) -> None:
        """Add the metrics of the ratios to a tally."""
        is_unit = self.num_tokens > 0
        log_ratio, num_tokens = self.log_ratio[is_unit], self.num_tokens[is_unit]
        _, is_truncated, is_masked = behaviour_weight(log_ratio, num_tokens, config.cap, config.band)
        ratio = log_ratio.double().clamp(max=LARGEST_LOG_RATIO).exp()
        tally.add("behaviour/ratio_mean", ratio)
        tally.add("behaviour/ratio_max", ratio)
        tally.add("behaviour/truncated_share", is_truncated)
        tally.add("behaviour/masked_share", is_masked)
        tally.add("behaviour/effective_share", ratio)

    def excess(self, limit: float, row: Tensor) -> str:
        """Return a message if the ratio of a token, or its inverse, is above a limit; otherwise
        return an empty text.

        Args:
            limit: largest ratio; 0 for no limit.
            row: [N] int64: the completion of each view.
        """
        if not limit or not self.by_token.numel():
            return ""
        largest, view = self.by_token.abs().max(-1).values.max(0)
        # A value that is not a number is above every limit.
        if largest <= math.log(limit):
            return ""
        likely = "likely" if self.by_token[view].max() >= largest else "unlikely"
        return (
            f"a token of completion {int(row[view])} is {float(largest.exp()):.3g} times as {likely} under the policy that is "
            f"trained as under the policy that sampled it, more than behaviour.max_ratio = {limit:g}. Sample more exactly, or "
            "raise behaviour.max_ratio."
        )


@dataclass(frozen=True, slots=True)
class ViewWeights:
    """Weights of the views of one rank, by the ratio of the old to the behaviour policy."""

    config: BehaviourConfig
    level: Level
    path: Trajectory
    """Completions of all ranks."""
    by_completion: Tensor | None = None
    """[B] weights of completions, for the level `sequence`."""
    sampled: ViewLogprobs | None = None
    """Log-probabilities of the views' targets under the old policy in the sampling distribution;
    None if they are those that the loss compares with."""
    scale: float = 1.0
    """Factor that makes the mean weight of the training step 1, if weights are normalised."""

    def applied(self, inputs: LossInputs, index: Tensor) -> LossInputs:
        """Return the inputs of a loss with the weights of the views `index`.

        A weight multiplies the advantage. Every loss that is proportional to the advantage is then
        weighted as a whole, wherever its ratio is taken; the KL to the reference is not. The weight
        of a step is that of the completion's own tokens, the first of several token sequences.
        """
        if self.by_completion is not None:
            weight = self.by_completion[inputs.row]
        else:
            logprobs = ViewLogprobs(inputs.old, inputs.old_choice)
            if self.sampled is not None:
                choice = self.sampled.choice
                logprobs = ViewLogprobs(self.sampled.logprob[index], None if choice is None else choice[index])
            ratios = Ratios.of(self.path, inputs.row, inputs.target, logprobs, self.level)
            weight = self.scale * ratios.weights(self.config)
        if self.level == "token":
            return replace(inputs, token_weight=weight)
        if inputs.advantage.dim() == 2:
            weight = weight.unsqueeze(-1).repeat(1, inputs.advantage.shape[1])
            if self.level == "step":
                weight[:, 1:] = 1.0
        return replace(inputs, advantage=inputs.advantage * weight.to(inputs.advantage.dtype))


class Comparison:
    """Comparison of the old and the behaviour policy in one training step, on one rank.

    Args:
        config: settings of the correction.
        level: level at which the ratios are measured.
        is_weighted: True if the ratios weight the loss; otherwise they are only measured.
        path: completions of all ranks.
        ranks: exchange between the ranks of the run.
        tally: object to which the metrics are added.
    """

    def __init__(
        self, config: BehaviourConfig, level: Level, is_weighted: bool, path: Trajectory, ranks: Ranks, tally: Tally
    ) -> None:
        self.config, self.level, self.is_weighted = config, level, is_weighted
        self.path, self.ranks, self.tally = path, ranks, tally
        self.excess = ""
        """Message about a ratio above the limit; empty if there is none."""
        self.is_recorded = False
        """True if the metrics of all views, or of all completions, have been added."""
        self._by_completion: Tensor | None = None

    def record(self, row: Tensor, target: Tensor, logprobs: ViewLogprobs) -> Ratios:
        """Compare log-probabilities with those of the rollout, add the metrics, and check the
        limit; see `Ratios.of`."""
        ratios = Ratios.of(self.path, row, target, logprobs, self.level)
        ratios.record(self.config, self.tally)
        self.excess = self.excess or ratios.excess(self.config.max_ratio, row)
        return ratios

    def record_path(self, states: Views, logprobs: ViewLogprobs) -> None:
        """Compare all states of this rank's completions; see `path_views`."""
        ratios = self.record(states.row, states.target, logprobs)
        self.is_recorded = True
        weights = ratios.weights(self.config)
        of_all = weights.new_ones(len(self.path))
        of_all[states.row.unique()] = weights * self._scale(weights, ratios.num_tokens > 0)
        self._by_completion = of_all

    def weights(self, views: Views, old: ViewLogprobs | None, sampled: ViewLogprobs | None) -> ViewWeights | None:
        """Return the weights of a plan; None if the ratios are only measured.

        Args:
            views: views of this rank.
            old: log-probabilities that the loss compares with, if they are known already.
            sampled: log-probabilities in the sampling distribution, if they are others.

        Raises:
            ValueError: a view is not the state in which its targets were drawn.
        """
        if self.level != "sequence":
            step = self.path.shown_step(views).unsqueeze(-1)
            if (views.target & ((self.path.unmask_step[views.row] != step) | (step < 0))).any():
                raise ValueError(
                    f"behaviour.level = {self.level} needs views that are states of the path, with the tokens of one step as "
                    "targets. The method's plan has other views, so its behaviour_levels must not name this level."
                )
        scale, known = 1.0, sampled or old
        if self.level != "sequence" and known is not None:
            ratios = self.record(views.row, views.target, known)
            self.is_recorded = True
            scale = self._scale(ratios.weights(self.config), ratios.num_tokens > 0)
        if not self.is_weighted:
            return None
        return ViewWeights(self.config, self.level, self.path, self._by_completion, sampled, scale)

    def _scale(self, weights: Tensor, is_unit: Tensor) -> float:
        """Return the factor that makes the mean weight of all ranks 1; 1 if weights are not
        normalised."""
        if not self.config.normalise:
            return 1.0
        sums, counts = zip(*self.ranks.objects((float(weights.double().sum()), int(is_unit.sum()))), strict=True)
        return sum(counts) / sum(sums) if sum(sums) else 1.0


def path_views(path: Trajectory, row: Tensor) -> Views:
    """Return one view for each denoising step of the completions `row`: the state before it, with
    the tokens that it committed as targets."""
    steps = torch.arange(path.num_steps, device=row.device).expand(len(row), -1)
    views = step_views(path.rows(row), steps, torch.ones(steps.shape, device=row.device))
    return replace(views, row=row[views.row]).take(views.target.any(-1))

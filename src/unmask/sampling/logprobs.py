"""Log-probabilities of views: states of a trajectory seen again by any policy.

One function serves the sampling check, the old, the reference and the new policy, so that what is compared is comparable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unmask.core.records import DenoiserLike, Readout, Trajectory, ViewLogprobs, Views
from unmask.functional.distribution import token_logprobs
from unmask.functional.plackett_luce import plackett_luce_logprob
from unmask.sampling.orders import POSITION_LOGITS
from unmask.sampling.predict import predict, predict_in_chunks


@dataclass(frozen=True, slots=True)
class LogprobSettings:
    """The distribution that is differentiated."""

    temperature: float
    top_k: int
    top_p: float

    @staticmethod
    def of(trajectory: Trajectory, logprob_temperature: Literal["sampling"] | float) -> LogprobSettings:
        """That of the sampler (the unbiased choice), or a fixed temperature without top-k and top-p (published codes: 1)."""
        if logprob_temperature == "sampling":
            # A greedy rollout has no sampling distribution; it is recorded at temperature 1.
            return LogprobSettings(
                trajectory.sampler.temperature or 1.0, trajectory.sampler.top_k, trajectory.sampler.top_p
            )
        return LogprobSettings(logprob_temperature, 0, 1.0)


def view_logprobs(
    denoiser: DenoiserLike,
    trajectory: Trajectory,
    views: Views,
    scoring: LogprobSettings,
    *,
    choice: bool = False,
    distribution: bool = False,
    trim: bool = False,
    positions_at_once: int | None = None,
) -> ViewLogprobs:
    """Log-probabilities of the views' targets under `denoiser`, with graph if it is being trained.

    log p_θ(x_i | x with `hidden` masked), at the scoring temperature and support. The trunk runs once over the views; the head
    runs at the targets only, or at all hidden positions where the choice among them is asked for. A token that the new policy's
    top-k or top-p would drop stays in the support, so that no replayed token has probability zero.

    The probability of choosing the positions is a number of its own: of each target among the hidden positions of its block that
    were not committed before it.

    Args:
        denoiser: the policy; may be wrapped for training.
        trajectory: the rollout that the views index.
        views: N of them.
        scoring: temperature and support.
        choice: also return the log-probability of the choice of positions, if the trajectory's order has one.
        distribution: also return the whole distribution at each target.
        trim: leave out the prompt columns that are padding in all views.
        positions_at_once: for our own denoiser, of how many positions the logits may be there together; more are read in parts.
            Whole distributions and guided logits are not.
    """
    row = views.row
    completion = trajectory.tokens[row]
    prompt_ids, prompt_mask = trajectory.prompt_ids[row], trajectory.prompt_mask[row]
    if views.prompt_hidden is not None:
        prompt_ids = prompt_ids.masked_fill(views.prompt_hidden, trajectory.mask_id)
    if trim:
        width = int(prompt_mask.sum(-1).max())
        prompt_ids, prompt_mask = (t[:, t.shape[1] - width :] for t in (prompt_ids, prompt_mask))
    choice = choice and trajectory.choice_rank is not None
    positions, is_asked = wanted_columns(views.hidden if choice else views.target)
    is_target = views.target.gather(1, positions) & is_asked
    readings = completion.unsqueeze(1) if views.tokens is None else views.tokens.long()
    # [N, n, M]: the tokens of every reading at the positions.
    tokens = readings.gather(2, positions.unsqueeze(1).expand(-1, readings.shape[1], -1)).mT
    asked = (
        prompt_ids,
        prompt_mask,
        completion.masked_fill(views.hidden, trajectory.mask_id),
        positions,
        trajectory.mask_id,
    )
    position_logit = POSITION_LOGITS[trajectory.sampler.order] if choice else None

    def read_out(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Log-probabilities of tokens, of all tokens, and scores of positions, from [..., V] logits."""
        logprobs = token_logprobs(logits, scoring.temperature, scoring.top_k, scoring.top_p, keep=tokens)
        score = None if position_logit is None else position_logit(logits, trajectory.sampler.order_temperature)
        return logprobs.gather(-1, tokens), logprobs, score

    def numbers(logits: Tensor, tokens: Tensor) -> Tensor:
        chosen, _, score = read_out(logits, tokens)
        return chosen if score is None else torch.cat([chosen, score.unsqueeze(-1).to(chosen.dtype)], dim=-1)

    whole = distribution or bool(trajectory.sampler.guidance)
    if whole or positions_at_once is None or positions.numel() <= positions_at_once:
        chosen, logprobs, score = read_out(predict(denoiser, *asked, trajectory.sampler.guidance), tokens)
    else:
        found = predict_in_chunks(denoiser, *asked, Readout(numbers, tokens, positions_at_once))
        chosen, score = found[..., : tokens.shape[-1]], found[..., -1] if choice else None
    # Non-targets that only pad the width may hold MASK, whose log-probability is -inf.
    chosen = torch.where(is_target.unsqueeze(1), chosen.mT, torch.zeros_like(chosen.mT))
    dense = chosen.new_zeros(readings.shape).scatter(2, positions.unsqueeze(1).expand_as(chosen), chosen)
    return ViewLogprobs(
        dense.squeeze(1) if views.tokens is None else dense,
        None if score is None else _choice(trajectory, views, score, positions, is_asked, is_target),
        logprobs[is_target] if distribution else None,
    )


def wanted_columns(wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Wanted columns of each row, ascending, as wide as the fullest row: [N, n] and which of them are real."""
    width = max(1, int(wanted.sum(-1).max()))
    positions = (~wanted).int().argsort(dim=-1, stable=True)[:, :width]
    return positions, wanted.gather(1, positions)


def _choice(
    trajectory: Trajectory, views: Views, score: Tensor, positions: Tensor, is_hidden: Tensor, is_target: Tensor
) -> Tensor:
    """[N, L] log-probability of each target's place in the draw of positions, with graph."""
    assert trajectory.choice_rank is not None
    length = trajectory.tokens.shape[1]
    # Steps first, then places within a step: the order in which the path committed.
    turn = trajectory.unmask_step[views.row].long() * length + trajectory.choice_rank[views.row].long()
    block = positions // trajectory.sampler.block
    picked = plackett_luce_logprob(score, turn.gather(1, positions), is_hidden, block)
    picked = torch.where(is_target, picked, torch.zeros_like(picked))
    return picked.new_zeros(views.target.shape).scatter(1, positions, picked)

"""Log-probabilities of views: states of a trajectory seen again by any policy.

One function serves the sampling check, the old, the reference and the new policy, so that what is compared is comparable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from unmask.functional.distribution import token_logprobs
from unmask.records import DenoiserLike, Trajectory, Views, ViewScores
from unmask.samplers.predict import predict


@dataclass(frozen=True, slots=True)
class Scoring:
    """The distribution that is differentiated."""

    temperature: float
    top_k: int
    top_p: float

    @staticmethod
    def of(trajectory: Trajectory, logprob_temperature: Literal["sampling"] | float) -> Scoring:
        """That of the sampler (the unbiased choice), or a fixed temperature without top-k and top-p (published codes: 1)."""
        if logprob_temperature == "sampling":
            # A greedy rollout has no sampling distribution; it is recorded at temperature 1.
            return Scoring(trajectory.temperature or 1.0, trajectory.top_k, trajectory.top_p)
        return Scoring(logprob_temperature, 0, 1.0)


def score_views(
    denoiser: DenoiserLike, trajectory: Trajectory, views: Views, scoring: Scoring, *, distribution: bool = False
) -> ViewScores:
    """Log-probabilities of the views' targets under `denoiser`, with graph if it is being trained.

    log p_θ(x_i | x with `hidden` masked), at the scoring temperature and support. The trunk runs once over the views; the head
    runs at the targets only. A token that the new policy's top-k or top-p would drop stays in the support, so that no replayed
    token has probability zero.

    Not included: the probability of choosing the positions.

    Args:
        denoiser: the policy; may be wrapped for training.
        trajectory: the rollout that the views index.
        views: N of them.
        scoring: temperature and support.
        distribution: also return the whole distribution at each target.
    """
    row = views.row
    completion = trajectory.tokens[row]
    prompt_ids = trajectory.prompt_ids[row]
    if views.prompt_hidden is not None:
        prompt_ids = prompt_ids.masked_fill(views.prompt_hidden, trajectory.mask_id)
    width = max(1, int(views.target.sum(-1).max()))
    positions = (~views.target).int().argsort(dim=-1, stable=True)[:, :width]
    is_target = views.target.gather(1, positions)
    tokens = completion.gather(1, positions)
    logits = predict(
        denoiser,
        prompt_ids,
        trajectory.prompt_mask[row],
        completion.masked_fill(views.hidden, trajectory.mask_id),
        positions,
        trajectory.mask_id,
        trajectory.guidance,
    )
    logprobs = token_logprobs(logits, scoring.temperature, scoring.top_k, scoring.top_p, keep=tokens)
    chosen = logprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    # Non-targets that only pad the width may hold MASK, whose log-probability is -inf.
    chosen = torch.where(is_target, chosen, torch.zeros_like(chosen))
    dense = chosen.new_zeros(completion.shape).scatter(1, positions, chosen)
    return ViewScores(dense, logprobs[is_target] if distribution else None)

"""Replay of recorded paths: the log-probabilities and entropies that a policy gives to tokens whose
denoising steps are known, such as those of a rollout that another engine sampled."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unmask.core.denoising import DenoiserLike
from unmask.core.records import Trajectory
from unmask.functional.distribution import scaled_logits
from unmask.functional.masking import compact_columns
from unmask.sampling.predict import predict
from unmask.sampling.step_outputs import Proposer


@dataclass(frozen=True, slots=True)
class Replayed:
    """A path with the log-probabilities and entropies of a policy."""

    trajectory: Trajectory
    """The path. The log-probability of a token that the sampling distribution excludes is -inf."""
    is_likeliest: Tensor
    """[B, L] bool: True where the committed token is the most likely one."""
    largest: Tensor
    """[B, L] float32: probability of the most likely token in the sampling distribution; 0 where no
    token was sampled."""


@torch.no_grad()
def replayed(
    denoiser: DenoiserLike,
    path: Trajectory,
    *,
    entropy_temperature: float | None = None,
    batch_size: int = 64,
) -> Replayed:
    """Compute the log-probabilities and entropies of a path, with one full forward pass for each
    denoising step of each row.

    They are those of the distribution from which the sampler draws, at its temperature and support,
    as `denoise` records them. So are the supports under a top-k.

    Args:
        denoiser: policy in evaluation mode.
        path: B paths; their log-probabilities and entropies are not read.
        entropy_temperature: temperature of the entropies, without top-k and top-p; see `denoise`.
        batch_size: maximum number of states in a forward pass.
    """
    logprob, entropy, largest = (torch.zeros(path.tokens.shape, device=path.tokens.device) for _ in range(3))
    is_likeliest = torch.zeros(path.tokens.shape, dtype=torch.bool, device=path.tokens.device)
    proposer = Proposer(path.sampler, entropy_temperature)
    support = None
    if path.sampler.top_k:
        shape = (*path.tokens.shape, path.sampler.top_k)
        support = torch.full(shape, -1, dtype=torch.int32, device=path.tokens.device)
    steps = torch.arange(path.num_steps, device=path.tokens.device)
    row, step = (path.unmask_step.unsqueeze(-1) == steps).any(1).nonzero(as_tuple=True)
    for rows, at in zip(row.split(batch_size), step.split(batch_size), strict=True):
        sub = path.rows(rows)
        columns, is_valid = compact_columns(sub.unmask_step == at.unsqueeze(-1))
        state = sub.state_before(at)
        logits = predict(
            denoiser, sub.prompt_ids, sub.prompt_mask, state, columns, path.mask_id, path.sampler.guidance
        ).logits[is_valid]
        place = (rows.unsqueeze(-1).expand_as(columns)[is_valid], columns[is_valid])
        tokens = path.tokens[place].unsqueeze(-1)
        logprobs = _scaled(path, logits).log_softmax(-1)
        logprob[place] = logprobs.gather(-1, tokens).squeeze(-1).float()
        largest[place] = logprobs.max(-1).values.exp().float()
        is_likeliest[place] = logits.argmax(-1) == tokens.squeeze(-1)
        entropy[place] = proposer.entropy(logits)
        if support is not None:
            support[place] = proposer.support(logits)
    return Replayed(replace(path, logprob=logprob, entropy=entropy, support=support), is_likeliest, largest)


def _scaled(path: Trajectory, logits: Tensor) -> Tensor:
    """Return the logits of the sampling distribution; those at temperature 1 if the sampler is
    greedy."""
    sampler = path.sampler
    if sampler.temperature == 0:
        return scaled_logits(logits)
    return scaled_logits(logits, sampler.temperature, sampler.top_k, sampler.top_p)

"""Plain implementation of the published algorithm as a baseline, after the released codes.

It handles one completion and one step at a time, computes logits of the whole sequence, and keeps
every step's distribution. It is only for measurements.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unmask.models import Denoiser


@torch.no_grad()
def rollout(
    denoiser: Denoiser, prompts: Tensor, length: int, num_steps: int, temperature: float
) -> list[dict[str, Tensor]]:
    """Denoise each prompt [B, P] separately by low confidence, and keep all distributions."""
    paths = []
    for prompt in prompts:
        sequence = torch.cat([prompt, torch.full((length,), denoiser.mask_id)])
        everywhere = torch.arange(len(sequence)).unsqueeze(0)
        states, distributions, greedy = [sequence.clone()], [], []
        for _ in range(num_steps):
            logits = denoiser(sequence.unsqueeze(0), None, everywhere)[0]
            logits[:, denoiser.mask_id] = -torch.inf
            noise = -torch.log(-torch.log(torch.rand_like(logits)))
            proposed = (logits / temperature + noise).argmax(-1)
            probability = logits.softmax(-1)
            confidence = probability.gather(-1, proposed.unsqueeze(-1)).squeeze(-1)
            hidden = sequence == denoiser.mask_id
            greedy.append(torch.where(hidden, logits.argmax(-1), sequence))
            chosen = confidence.masked_fill(~hidden, -torch.inf).topk(length // num_steps).indices
            sequence[chosen] = proposed[chosen]
            states.append(sequence.clone())
            distributions.append(probability)
        paths.append(
            {"states": torch.stack(states), "distributions": torch.stack(distributions), "greedy": torch.stack(greedy)}
        )
    return paths


def step_logprob(denoiser: Denoiser, path: dict[str, Tensor], step: int) -> Tensor:
    """Return the log-probability of one step of one completion, from logits of all positions."""
    before, after = path["states"][step], path["states"][step + 1]
    logits = denoiser(before.unsqueeze(0), None, torch.arange(len(before)).unsqueeze(0))[0]
    committed = before != after
    return logits.log_softmax(-1)[committed].gather(-1, after[committed].unsqueeze(-1)).sum()

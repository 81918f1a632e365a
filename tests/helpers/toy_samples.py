"""What the real sampler and the real selection draw on the enumerable toy."""

from __future__ import annotations

import math

import torch

from unmask.core.config import SamplerConfig
from unmask.functional.selection import selection_noise
from unmask.sampling import denoise


def sampled_counts(small, num_rows, paths):
    """Return how often the real sampler takes each path."""
    sampler = SamplerConfig(
        max_completion_length=small.L,
        num_steps=small.num_steps,
        order=small.order,
        order_temperature=small.order_temperature,
        temperature=small.temperature,
        top_k=small.top_k,
        schedule=small.schedule,
    )
    prompt = torch.zeros(num_rows, 1, dtype=torch.long)
    path = denoise(small.denoiser, prompt, torch.ones_like(prompt, dtype=torch.bool), sampler, torch.arange(num_rows))
    places = torch.zeros_like(path.tokens) if path.choice_rank is None else path.choice_rank
    seen = torch.cat([path.tokens, path.unmask_step, places], dim=1)
    wanted = torch.tensor([p.seen for p in paths])
    column = {tuple(row): i for i, row in enumerate(wanted.tolist())}
    index = torch.tensor([column[tuple(row)] for row in seen.tolist()])
    return torch.bincount(index, minlength=len(paths)), path, index


def seeds_by_ranking(num_steps):
    """Return one seed for each ranking of the steps by their selection noise; all rankings are
    equally likely."""
    seeds = torch.arange(1000)
    ranking = selection_noise(seeds, num_steps).argsort(-1, descending=True)
    found = {tuple(row): seed for seed, row in zip(seeds.tolist(), ranking.tolist(), strict=True)}
    assert len(found) == math.factorial(num_steps)
    return list(found.values())

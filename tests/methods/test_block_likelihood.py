"""Tests that the views of a likelihood estimate Σ_b log p(x_b | x_1, ..., x_{b-1}) in a block-causal
model, against the average over all orders in which each block can be decoded."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import permutations, product

import pytest
import torch
from torch import Tensor

from tests.helpers.adapters import build
from tests.helpers.native_configs import MASK
from unmask.core.config import SamplerConfig
from unmask.core.records import Trajectory, Views
from unmask.functional.elbo import coupled_masks, elbo_weight
from unmask.methods.views import masked_views, mean_field_views, segment_views
from unmask.models import Denoiser
from unmask.sampling import LogprobSettings, denoise, view_logprobs

L, BLOCK = 4, 2


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    """Return a Qwen3 with blocks of two, whose logits depend on every input."""
    denoiser = build("Qwen3ForCausalLM")
    # No token is EOS.
    denoiser.block_length, denoiser.eos_id = BLOCK, -1
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for parameter in denoiser.parameters():
            if parameter.dim() > 1:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    return denoiser


@pytest.fixture(scope="module")
def path(denoiser: Denoiser) -> Trajectory:
    """Return five completions of one prompt."""
    prompt = torch.full((5, 3), 6)
    sampler = SamplerConfig(max_completion_length=L, num_steps=L, block_length=BLOCK, order="random")
    return denoise(denoiser, prompt, torch.ones_like(prompt, dtype=torch.bool), sampler, torch.arange(5))


def token_logprob(denoiser: Denoiser, path: Trajectory, masked: set[int], position: int) -> Tensor:
    """Return [5] log-probabilities of the tokens at a position, from a plain forward pass that masks
    some positions."""
    state = path.tokens.clone()
    state[:, sorted(masked)] = MASK
    ids = torch.cat([path.prompt_ids, state], dim=1)
    logits = denoiser(ids, None, torch.full((5, 1), 3 + position))[:, 0] / path.sampler.temperature
    logits[:, MASK] = -torch.inf
    return logits.log_softmax(-1).gather(1, path.tokens[:, position : position + 1]).squeeze(1)


@torch.no_grad()
def over_orders(denoiser: Denoiser, path: Trajectory) -> Tensor:
    """Return [5]: the mean log-likelihood over all orders within the blocks, which come one after the
    other."""
    total = torch.zeros(5)
    for start in range(0, L, BLOCK):
        block = range(start, start + BLOCK)
        for order in permutations(block):
            for i, position in enumerate(order):
                total += token_logprob(denoiser, path, set(order[i:]), position) / math.factorial(BLOCK)
    return total


@torch.no_grad()
def expected(denoiser: Denoiser, path: Trajectory, views: Views, chance: Tensor) -> Tensor:
    """Return [5]: the mean over all masks of the weighted sum of the targets' log-probabilities."""
    scores = view_logprobs(denoiser, path, views, LogprobSettings.of(path, "sampling")).logprob
    each = views.weight * chance * scores.sum(-1)
    return torch.zeros(5).index_add(0, views.row, each)


def all_masks(path: Trajectory, *, coupled: bool) -> tuple[Views, Tensor]:
    """Return the views of every set that the estimator of an ELBO may mask, with their
    probabilities: a size uniform on 1 to L, or on 0 to L for pairs, and a set of that size."""
    sets = [s for s in product([False, True], repeat=L) if any(s) or coupled]
    sizes = torch.tensor([sum(s) for s in sets])
    chance = torch.tensor([1 / math.comb(L, int(size)) for size in sizes]) / (L + int(coupled))
    masks = torch.tensor(sets).expand(5, -1, -1)
    everything = torch.ones(5, L, dtype=torch.bool)
    if coupled:
        masks, chance = coupled_masks(masks, everything), chance.repeat_interleave(2) / 2
    views = masked_views(masks, elbo_weight(masks, everything, coupled=coupled))
    return views, chance[views.slot]


@pytest.mark.parametrize("coupled", [False, True])
def test_the_elbo_of_all_blocks_is_the_sum_of_those_of_each_given_the_clean_past(denoiser, path, coupled):
    views, chance = all_masks(path, coupled=coupled)
    truth = over_orders(denoiser, path)
    torch.testing.assert_close(expected(denoiser, path, views, chance), truth, rtol=0, atol=1e-5)
    masked_past = replace(views, sees_clean_past=None)
    assert (expected(denoiser, path, masked_past, chance) - truth).abs().max() > 0.01


@torch.no_grad()
def test_the_mean_field_of_a_block_has_the_clean_past(denoiser, path):
    views = mean_field_views(path, torch.ones(5), 0.0, torch.Generator())
    truth = sum(
        token_logprob(denoiser, path, {start, start + 1}, start + i) for start in (0, BLOCK) for i in range(BLOCK)
    )
    found = expected(denoiser, path, views, torch.ones(5))
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_segments", [1, 2, 4])
@torch.no_grad()
def test_the_tokens_of_a_segment_follow_the_finished_blocks(denoiser, path, num_segments):
    segments = torch.arange(num_segments).expand(5, -1)
    views = segment_views(path, segments, num_segments, torch.ones(5, num_segments))
    found = expected(denoiser, path, views, torch.ones(len(views)))
    if num_segments == 4:
        torch.testing.assert_close(found, path.logprob.sum(-1), rtol=0, atol=1e-5)
        return
    # In one segment or two, the tokens of a block are evaluated in its fully masked state.
    mean_field = mean_field_views(path, torch.ones(5), 0.0, torch.Generator())
    torch.testing.assert_close(found, expected(denoiser, path, mean_field, torch.ones(5)), rtol=0, atol=1e-5)

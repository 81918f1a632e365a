"""Approximate caches of bidirectional models against a sampler that attends to stale keys by hand, and against exact rollouts."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.helpers.adapters import LORA, build, train_by_hand
from tests.helpers.messages import raises
from tests.helpers.stale_keys import StaleKeys
from unmask.core.branches import Branches
from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError, ModelError
from unmask.core.records import Needs
from unmask.models.adapters import Adapters
from unmask.models.native import NATIVE_CLASSES
from unmask.sampling import denoise
from unmask.sampling.one_step import completions_of, one_step_completions
from unmask.trainer.metrics import TokenPasses

L, P, B = 12, 5, 4
SETTINGS = {"max_completion_length": L, "num_steps": 9, "block_length": 4, "temperature": 0.9}
CACHED = [name for name, native in NATIVE_CLASSES.items() if native.has_cache]
PROMPTS = torch.randint(3, 11, (B, P), generator=torch.Generator().manual_seed(1))
MASK = torch.arange(P) >= torch.tensor([[0], [2], [0], [1]])
SEEDS = torch.arange(B)


def sampler_of(**options) -> SamplerConfig:
    return SamplerConfig(**SETTINGS | options)


def by_hand(denoiser, sampler, completion=None, first_step=None):
    """Return the tokens and log-probabilities of each row, sampled alone and without padding."""
    exact = sampler.model_copy(update={"cache": "off", "cache_refresh_steps": None})
    tokens, logprobs = [], []
    for i in range(B):
        prompt, first, given = PROMPTS[i : i + 1, MASK[i]], 0, {}
        if first_step is not None:
            first = int(first_step[i])
            given = {"completion": completion[i : i + 1], "first_step": first_step[i : i + 1]}
        model = StaleKeys(copy.deepcopy(denoiser), sampler, prompt.shape[1], first)
        path = denoise(model, prompt, torch.ones_like(prompt, dtype=torch.bool), exact, SEEDS[i : i + 1], **given)
        tokens.append(path.tokens)
        logprobs.append(path.logprob)
    return torch.cat(tokens), torch.cat(logprobs)


def check(denoiser, sampler, **given):
    path = denoise(denoiser, PROMPTS, MASK, sampler, SEEDS, **given)
    tokens, logprobs = by_hand(denoiser, sampler, **given)
    assert torch.equal(path.tokens, tokens)
    torch.testing.assert_close(path.logprob, logprobs, rtol=0, atol=2e-5)
    return path


@pytest.mark.parametrize("name", CACHED)
@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_a_cached_rollout_equals_attention_to_stale_keys_by_hand(name, cache):
    path = check(build(name), sampler_of(cache=cache))
    exact = denoise(build(name), PROMPTS, MASK, sampler_of(), SEEDS)
    assert (path.logprob - exact.logprob).abs().max() > 1e-3, "the check can fail"


OPTIONS = {
    "a refresh within the block": {"num_steps": 12, "cache_refresh_steps": 3},
    "guidance": {"guidance": 0.5},
    "one block": {"block_length": 12},
    "the order plackett_luce": {"order": "plackett_luce"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_options_of_the_sampler_keep_their_meaning(options, cache):
    check(build(), sampler_of(cache=cache, **options))


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_a_shifted_head_runs_the_column_before_the_block(cache):
    denoiser = build("Qwen2ForCausalLM")
    denoiser.logit_shift = True
    check(denoiser, sampler_of(cache=cache))


def test_rows_that_start_later_or_with_a_block_present_do_not_depend_on_the_others():
    denoiser = build()
    completion = torch.full((B, L), denoiser.mask_id)
    completion[1, :4] = 5
    completion[2, 4:8] = 6
    # Row 3 starts in the middle of the first block, beside rows whose keys are cached.
    completion[3, 0] = 7
    first_step = torch.tensor([0, 0, 0, 1])
    check(denoiser, sampler_of(cache="dual"), completion=completion, first_step=first_step)


def test_adapters_are_part_of_the_cached_keys():
    denoiser = build()
    before = denoise(denoiser, PROMPTS, MASK, sampler_of(cache="dual"), SEEDS)
    train_by_hand(Adapters(denoiser, LORA))
    after = check(denoiser, sampler_of(cache="dual"))
    assert (after.logprob - before.logprob).abs().max() > 1e-3


def test_prefix_and_dual_are_the_same_for_a_single_block():
    one, other = (
        denoise(build(), PROMPTS, MASK, sampler_of(block_length=L, cache=cache), SEEDS) for cache in ("prefix", "dual")
    )
    assert torch.equal(one.tokens, other.tokens)
    assert torch.equal(one.logprob, other.logprob)


def test_a_refresh_at_every_step_is_exact():
    exact = denoise(build(), PROMPTS, MASK, sampler_of(), SEEDS)
    for cache in ("prefix", "dual"):
        path = denoise(build(), PROMPTS, MASK, sampler_of(cache=cache, cache_refresh_steps=1), SEEDS)
        assert torch.equal(path.tokens, exact.tokens)
        torch.testing.assert_close(path.logprob, exact.logprob, rtol=0, atol=1e-5)


# Token passes


@pytest.mark.parametrize(
    ("options", "tokens_per_row"),
    [
        ({}, 9 * 17),
        # One full forward pass for each of three blocks. The other two steps of a block run 12, 8 or 4 columns, or 4.
        ({"cache": "prefix"}, 3 * 17 + 2 * (12 + 8 + 4)),
        ({"cache": "dual"}, 3 * 17 + 6 * 4),
        ({"cache": "dual", "guidance": 0.5}, 2 * (3 * 17 + 6 * 4)),
        ({"cache": "dual", "cache_refresh_steps": 2}, 6 * 17 + 3 * 4),
    ],
)
def test_token_passes_count_the_columns_that_run(options, tokens_per_row):
    denoiser = build()
    denoiser.eos_id = -1  # No row ends early.
    counter = TokenPasses(denoiser)
    denoise(denoiser, PROMPTS, MASK, sampler_of(**options), SEEDS)
    assert counter.count == B * tokens_per_row


class RandomLogits(nn.Module):
    """Denoiser that reads nothing, and never predicts EOS or MASK."""

    mask_id, eos_id = 0, 1

    def forward(self, ids, attention_mask, positions, **_):
        logits = torch.rand(*positions.shape, 12, generator=torch.Generator().manual_seed(ids.numel()))
        logits[..., :2] = -torch.inf
        return logits


@pytest.mark.parametrize(
    ("cache", "needs", "passes"),
    [
        ("off", None, 128 * 456),
        # Eight blocks: a full forward pass of 456 tokens each, and 15 steps of 32 tokens each.
        ("dual", None, 7488),
        ("prefix", None, 8 * 456 + 15 * sum(range(32, 257, 32))),
        # One-step completions cost nothing without a cache, and a full forward pass each with one.
        ("off", Needs(greedy=True, selection=("entropy_topk", 8)), 58368),
        ("dual", Needs(greedy=True, selection=("entropy_topk", 8)), 7488 + 8 * 456),
    ],
)
def test_token_passes_of_a_completion_at_the_published_setting(cache, needs, passes):
    denoiser = RandomLogits()
    counter = TokenPasses(denoiser)
    sampler = SamplerConfig(max_completion_length=256, num_steps=128, block_length=32, cache=cache)
    prompt = torch.full((1, 200), 5)
    denoise(denoiser, prompt, torch.ones_like(prompt, dtype=torch.bool), sampler, torch.tensor([3]), needs=needs)
    assert counter.count == passes


# One-step completions


BRANCHES = [None, Branches(2), Branches(2, scope="all", with_taken=True), Branches(1, finish="sampled")]


@pytest.mark.parametrize("branches", BRANCHES)
def test_one_step_completions_of_a_cached_rollout_come_from_full_forward_passes(branches):
    denoiser = build()
    needs = Needs(greedy=True, selection=("entropy_topk", 3), branches=branches)
    path = denoise(denoiser, PROMPTS, MASK, sampler_of(cache="dual"), SEEDS, needs=needs)
    every = one_step_completions(denoiser, path, range(9))
    steps = path.selected_steps.long()
    assert (steps >= 0).any()
    at = every.gather(1, steps.clamp_min(0).unsqueeze(-1).expand(-1, -1, L))
    assert torch.equal(path.one_step_tokens[steps >= 0], at[steps >= 0])
    assert (path.one_step_tokens[steps < 0] == 0).all()
    assert (path.branch_tokens is None) == (branches is None)


@pytest.mark.parametrize("branches", BRANCHES)
def test_branches_computed_afterwards_equal_those_of_an_exact_rollout(branches):
    denoiser = build()
    needs = Needs(greedy=True, selection=("entropy_topk", 3), branches=branches)
    path = denoise(denoiser, PROMPTS, MASK, sampler_of(top_k=4), SEEDS, needs=needs)
    again = completions_of(denoiser, path, path.selected_steps.long(), branches, batch_size=3)
    assert torch.equal(again[:, :, 0], path.one_step_tokens)
    if branches is not None:
        assert torch.equal(again[:, :, 1:], path.branch_tokens)
        assert (path.branch_tokens != path.one_step_tokens.unsqueeze(2)).any()


# Refused settings


def test_a_class_without_a_cache_is_refused():
    with raises(ModelError, "ModernBertForMaskedLM has no cache of keys and values. Set sampler.cache to off"):
        denoise(build("ModernBertForMaskedLM"), PROMPTS, MASK, sampler_of(cache="dual"), SEEDS)


def test_a_block_causal_model_is_refused():
    denoiser = build("Qwen3ForCausalLM")
    denoiser.block_length = 4
    with raises(ConfigError, "its cache of finished blocks is exact and always on", "Set sampler.cache to off"):
        denoise(denoiser, PROMPTS, MASK, sampler_of(cache="dual"), SEEDS)

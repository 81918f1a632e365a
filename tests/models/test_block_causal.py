"""Tests of block-causal attention and of the exact cache of finished blocks: logits to 1e-5, equal
trajectories."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.nn.functional import pad

from benchmark import blocks
from tests.helpers.messages import raises
from tests.helpers.minis import mini_checkpoint
from unmask.core.config import SamplerConfig
from unmask.core.denoising import KeyValueCache
from unmask.core.errors import ConfigError, ModelError
from unmask.core.records import Needs, Views
from unmask.models import Denoiser, check_bidirectional, convert, load_model
from unmask.models.block_causal import block_causal_mask
from unmask.sampling import LogprobSettings, denoise, view_logprobs

L, P = 12, 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a converted SDAR mini with blocks of four."""
    place = tmp_path_factory.mktemp("sdar")
    convert(mini_checkpoint("sdar", place / "original"), place / "native")
    return place / "native"


@pytest.fixture(params=["sdpa", "eager"])
def sdar(folder, request):
    denoiser, _ = load_model(folder)
    denoiser.backbone.set_attn_implementation(request.param)
    return denoiser


def random_ids(rows, length, seed=0):
    return torch.randint(0, 96, (rows, length), generator=torch.Generator().manual_seed(seed))


def everywhere(ids):
    return torch.arange(ids.shape[1]).expand(len(ids), -1)


class Unblocked(nn.Module):
    """Return the same model without its block length, so that every step recomputes all columns."""

    def __init__(self, denoiser):
        super().__init__()
        self.denoiser, self.mask_id, self.eos_id = denoiser, denoiser.mask_id, denoiser.eos_id
        self.columns = 0

    def forward(self, ids, attention_mask, positions):
        self.columns += ids.numel()
        return self.denoiser(ids, attention_mask, positions)


# The mask


def brute_force_mask(length, block_length, is_real):
    """Build the mask by a loop: a query attends to real keys of its own and earlier blocks, and to
    itself."""
    seen = torch.zeros(length, length, dtype=torch.bool)
    for q in range(length):
        for k in range(length):
            ends_q, ends_k = (length - 1 - q) // block_length, (length - 1 - k) // block_length
            seen[q, k] = q == k or (is_real[k] and ends_k >= ends_q)
    return seen


@pytest.mark.parametrize(("length", "block_length"), [(12, 4), (11, 4), (5, 2), (6, 6), (3, 8)])
def test_the_mask_equals_that_of_a_loop_over_positions(length, block_length):
    is_real = torch.arange(length) >= 2
    for start in (0, length // 2):
        whole = block_causal_mask(length, block_length, is_real[None], start, torch.float32, torch.device("cpu"))
        expected = brute_force_mask(length, block_length, is_real)[start:]
        assert torch.equal(whole[0, 0] == 0, expected)
        assert (whole[0, 0][~expected] == torch.finfo(torch.float32).min).all()


@torch.no_grad()
def test_a_position_attends_to_its_own_and_earlier_blocks_only(sdar):
    ids = random_ids(1, L)
    base = sdar(ids, None, everywhere(ids))
    for changed in range(L):
        other = ids.clone()
        other[0, changed] = (other[0, changed] + 1) % 96
        moved = (sdar(other, None, everywhere(ids)) - base).abs().amax(-1)[0] > 1e-5
        assert moved.tolist() == [i // 4 >= changed // 4 for i in range(L)]


@torch.no_grad()
def test_a_left_padded_row_equals_the_unpadded_row(sdar):
    ids = random_ids(3, L + P)
    for width in (1, 4, 9):
        wide, mask = pad(ids, (width, 0), value=7), pad(torch.ones_like(ids, dtype=torch.bool), (width, 0))
        padded = sdar(wide, mask, everywhere(ids) + width)
        torch.testing.assert_close(padded, sdar(ids, None, everywhere(ids)), rtol=0, atol=1e-5)
    blind = sdar(wide, None, everywhere(ids) + width)
    assert (blind - padded).abs().max() > 0.01, "the check can fail"


@torch.no_grad()
def test_a_padded_batch_is_finite_and_near_in_half_precision(sdar):
    ids = random_ids(3, L + P)
    mask = torch.arange(L + P) >= torch.tensor([[0], [3], [9]])
    exact = sdar(ids, mask, everywhere(ids))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = sdar(ids, mask, everywhere(ids)).float()
    assert torch.isfinite(half).all()
    assert (half - exact)[mask].abs().max() < 0.1 * exact.std()


@torch.no_grad()
def test_a_boolean_mask_would_leak_padding_under_eager(folder):
    """Eager attention adds True and False to the scores as 1 and 0, which is why the mask is
    additive."""
    denoiser, _ = load_model(folder)
    denoiser.backbone.set_attn_implementation("eager")
    ids = random_ids(1, 8)
    is_real = torch.arange(8)[None] >= 3
    additive = block_causal_mask(8, 4, is_real, 0, torch.float32, ids.device)
    run = denoiser.backbone.base_model
    hidden = [run(input_ids=ids, attention_mask=mask).last_hidden_state for mask in (additive, additive == 0)]
    assert (hidden[0] - hidden[1])[:, 3:].abs().max() > 0.01


# The cache


@pytest.mark.parametrize("padded", [0, 3])
@torch.no_grad()
def test_logits_with_a_cache_equal_those_of_the_whole_sequence(sdar, padded):
    ids = random_ids(4, padded + P + L)
    mask = (torch.arange(ids.shape[1]) >= padded * (torch.arange(4) % 2).unsqueeze(-1)) if padded else None
    prompt, final = padded + P, 0
    cache = KeyValueCache()
    for block in range(3):
        begin, end = prompt + 4 * block, prompt + 4 * (block + 1)
        here = torch.arange(begin, end).expand(4, -1)
        seen = None if mask is None else mask[:, :end]
        for first in (final, begin):
            cached = sdar(ids[:, first:end], seen, here, cache=cache, begin=first)
            torch.testing.assert_close(cached, sdar(ids, mask, here), rtol=0, atol=1e-5)
            assert cache.length == end
        final = begin
        some = cache.rows(torch.tensor([2, 0]))
        picked = sdar(ids[[2, 0], begin:end], None if seen is None else seen[[2, 0]], here[:2], cache=some, begin=begin)
        torch.testing.assert_close(picked, cached[[2, 0]], rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_shifted_head_uses_the_column_before_the_block(sdar):
    sdar.backbone.config.logit_shift = True
    shifted = Denoiser(sdar.backbone, sdar.mask_id, sdar.eos_id, sdar.pad_id).eval()
    sdar.backbone.config.logit_shift = False
    check_bidirectional(shifted)
    ids, cache = random_ids(2, P + 8), KeyValueCache()
    for begin, first in ((P, 0), (P + 4, P - 1)):
        here = torch.arange(begin, begin + 4).expand(2, -1)
        cached = shifted(ids[:, first : begin + 4], None, here, cache=cache, begin=first)
        torch.testing.assert_close(cached, shifted(ids, None, here), rtol=0, atol=1e-5)


# The loop


def same(one, other):
    for name, value in one.tensors().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, other.tensors()[name], rtol=0, atol=1e-5)
        else:
            assert torch.equal(value, other.tensors()[name]), name


SETTINGS = {
    "plain": {},
    "greedy": {"temperature": 0.0, "order": "low_confidence"},
    "guided": {"guidance": 0.5},
    "small blocks": {"block_length": 2, "num_steps": 6},
    "one a step": {"num_steps": 12, "order": "plackett_luce"},
    "adaptive": {"num_steps": 12, "order": "max_probability", "schedule": "threshold=0.3"},
    "adaptive, small blocks": {"block_length": 2, "num_steps": 12, "schedule": "entropy_bound=2"},
}


@pytest.mark.slow
@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("branches", [False, True])
def test_trajectories_equal_those_of_full_recomputation(sdar, options, branches):
    sampler = SamplerConfig(
        **({"max_completion_length": L, "num_steps": 6, "block_length": 4, "order": "random"} | options)
    )
    prompt = random_ids(8, P, seed=1)
    mask = torch.arange(P) >= torch.arange(8).unsqueeze(-1) % 3
    # Some rows end in the middle of a block, and one starts with a block present.
    completion = torch.full((8, L), sdar.mask_id)
    completion[1, 5] = completion[2, 1] = sdar.eos_id
    completion[3, :4] = 17
    completion[4, 4:7] = 18
    first = torch.zeros(8, dtype=torch.long)
    first[5] = 3 if options.get("num_steps", 6) == 6 else 6
    needs = Needs(greedy=True, selection=("entropy_topk", 2)) if branches else None
    seed = torch.arange(8)
    given = {"completion": completion, "first_step": first, "needs": needs}
    reference = Unblocked(sdar)
    slow = denoise(reference, prompt, mask, sampler, seed, **given)
    fast = denoise(sdar, prompt, mask, sampler, seed, **given)
    assert (slow.tokens[:, 4:] != sdar.eos_id).any()
    same(slow, fast)


@torch.no_grad()
def test_every_column_of_prompt_and_finished_blocks_is_run_once(sdar, monkeypatch):
    sampler = SamplerConfig(max_completion_length=L, num_steps=6, block_length=4, order="random")
    prompt, columns = random_ids(5, P), []
    run = sdar.backbone.base_model.forward

    def counted(*args, input_ids, **kwargs):
        columns.append(input_ids.numel())
        return run(*args, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(sdar.backbone.base_model, "forward", counted)
    # No token is EOS, so all rows run to the last step.
    monkeypatch.setattr(sdar, "eos_id", -1)
    denoise(sdar, prompt, torch.ones_like(prompt, dtype=torch.bool), sampler, torch.arange(5))
    # Two steps per block: the first also runs the columns that became final, the prompt or the
    # previous block.
    assert columns == [5 * n for n in (P + 4, 4, 8, 4, 8, 4)]


@pytest.mark.slow
def test_the_benchmark_compares_equal_trajectories():
    row = blocks.compare(blocks.model(), prompt_length=8, length=8)
    assert row[:3] == ["8", "8", "4"]
    assert float(row[-1]) < 1e-5


# Log-probabilities


def test_replayed_log_probabilities_equal_those_of_the_rollout(sdar):
    sampler = SamplerConfig(max_completion_length=L, num_steps=6, block_length=4, order="random", temperature=0.9)
    prompt = random_ids(6, P)
    mask = torch.arange(P) >= torch.arange(6).unsqueeze(-1) % 3
    path = denoise(sdar, prompt, mask, sampler, torch.arange(6))
    row = torch.arange(6).repeat_interleave(6)
    step = torch.arange(6).repeat(6).unsqueeze(-1)
    when = path.unmask_step[row]
    ones = torch.ones(36)
    views = Views(row, hidden=when >= step, target=when == step, weight=ones, slot=torch.zeros(36, dtype=torch.long))
    scores = view_logprobs(sdar, path, views, LogprobSettings.of(path, "sampling")).logprob
    torch.testing.assert_close(scores.view(6, 6, L).sum(1), path.logprob, rtol=0, atol=1e-5)


def test_gradients_go_through_the_mask(sdar):
    ids = random_ids(2, P + L)
    sdar(ids, None, everywhere(ids)).square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in sdar.parameters())
    sdar.zero_grad()


def test_checkpointed_gradients_equal_the_plain_ones(folder):
    ids = random_ids(2, P + L)
    gradients = []
    for checkpointed in (False, True):
        denoiser, _ = load_model(folder)
        if checkpointed:
            denoiser.checkpoint_gradients()
        denoiser(ids, None, everywhere(ids)).square().mean().backward()
        gradients.append([p.grad for p in denoiser.parameters()])
    assert all(torch.allclose(one, two, rtol=0, atol=1e-6) for one, two in zip(*gradients, strict=True))
    assert any(one.abs().max() > 1e-4 for one in gradients[0])


# Refused models and settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_completion_length": 10, "block_length": 2, "num_steps": 5}, "do not divide max_completion_length = 10"),
        ({}, r"block_length is 12 \(the whole completion, its default\).*Set block_length to 4"),
        ({"block_length": 6}, "the sampler's block_length is 6"),
    ],
)
def test_blocks_of_the_sampler_that_do_not_fit_the_models_are_refused(sdar, options, message):
    sampler = SamplerConfig(**({"max_completion_length": L, "num_steps": 6} | options))
    prompt = random_ids(1, P)
    with pytest.raises(ConfigError, match=message):
        denoise(sdar, prompt, torch.ones_like(prompt, dtype=torch.bool), sampler, torch.zeros(1, dtype=torch.long))


def test_a_model_that_is_causal_within_its_blocks_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "unmask.models.denoiser.block_causal_mask",
        lambda length, block, mask, start, dtype, device: block_causal_mask(length, 1, mask, start, dtype, device),
    )
    with raises(ModelError, "is causal: the first logits do not depend on the last token"):
        load_model(folder)


def test_blocks_of_one_position_are_refused(folder, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    config = json.loads((copy / "config.json").read_text()) | {"block_length": 1}
    (copy / "config.json").write_text(json.dumps(config))
    with raises(ModelError, "block_length in config.json is 1"):
        load_model(copy)

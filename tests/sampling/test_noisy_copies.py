"""Tests of views as noisy copies behind one clean completion: log-probabilities and gradients are
those of one view at a time, each in a plain sequence."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.helpers.denoisers import add_lively_head
from tests.helpers.minis import mini_checkpoint
from unmask.core.config import SamplerConfig
from unmask.core.records import Trajectory, ViewLogprobs, Views
from unmask.methods.views import masked_views, step_views
from unmask.models import Denoiser, convert, load_model
from unmask.models import block_causal as masks
from unmask.sampling import LogprobSettings, denoise, view_logprobs
from unmask.sampling.noisy_copies import PackedViews, Packing

L, P, BLOCK = 12, 7, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a converted SDAR mini with blocks of four."""
    place = tmp_path_factory.mktemp("sdar")
    convert(mini_checkpoint("sdar", place / "original"), place / "native")
    return place / "native"


@pytest.fixture(scope="module")
def sdar(folder) -> Denoiser:
    denoiser, _ = load_model(folder)
    # No token is EOS, so every step of a path commits tokens.
    denoiser.eos_id = -1
    add_lively_head(denoiser)
    return denoiser


def rollout(denoiser: Denoiser, **options: object) -> Trajectory:
    """Return completions of left-padded prompts of 5 to 7 tokens."""
    settings = {"max_completion_length": L, "num_steps": 6, "block_length": BLOCK, "order": "random"} | options
    prompt = torch.randint(0, 96, (4, P), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(P) >= torch.arange(4).unsqueeze(-1) % 3
    return denoise(denoiser, prompt, mask, SamplerConfig(**settings), torch.arange(4))


def steps_of(path: Trajectory) -> Views:
    """Return all states of the path, those of a completion not one after the other."""
    steps = torch.arange(path.num_steps).expand(len(path), -1)
    views = step_views(path, steps, torch.ones(steps.shape))
    return views.take(torch.randperm(len(views), generator=torch.Generator().manual_seed(1)))


def bounds_of(path: Trajectory) -> Views:
    """Return three random masks of each completion, and some without any target."""
    drawn = torch.rand(len(path), 3, L, generator=torch.Generator().manual_seed(2))
    views = masked_views(drawn < torch.tensor([0.2, 0.5, 1.1]).unsqueeze(-1), torch.ones(len(path), 3))
    target = views.target & (torch.arange(len(views)) % 5 > 0).unsqueeze(-1)
    return replace(views, target=target)


def one_at_a_time(denoiser: Denoiser, path: Trajectory, views: Views) -> Tensor:
    """Return the log-probabilities of the targets from plain forward passes, one for each view and
    block: the earlier blocks are clean if the view says so, and masked as in the view otherwise."""
    scores = torch.zeros(views.target.shape)
    for i, row in enumerate(views.row.tolist()):
        is_real = path.prompt_mask[row]
        prompt = path.prompt_ids[row]
        if views.prompt_hidden is not None:
            prompt = prompt.masked_fill(views.prompt_hidden[i], path.mask_id)
        noisy = path.tokens[row].masked_fill(views.hidden[i], path.mask_id)
        for start in range(0, L, BLOCK):
            shown = noisy.clone()
            if views.sees_clean_past is not None and views.sees_clean_past[i]:
                shown[:start] = path.tokens[row, :start]
            ids = torch.cat([prompt[is_real], shown]).unsqueeze(0)
            here = torch.arange(start, start + BLOCK)
            logits = denoiser(ids, None, (here + int(is_real.sum())).unsqueeze(0))[0]
            logits = logits / path.sampler.temperature
            logits[:, path.mask_id] = -torch.inf
            chosen = logits.log_softmax(-1)[torch.arange(BLOCK), path.tokens[row, here]]
            scores[i, here] = torch.where(views.target[i, here], chosen, torch.zeros(BLOCK))
    return scores


def packed(path: Trajectory, views: Views) -> Views:
    """Return the views with those of a completion in one pack, whatever it costs."""
    context = views.row if views.prompt_hidden is None else views.row * 2 + views.prompt_hidden.any(-1)
    return replace(views, pack=context + 7)


def scored(denoiser: Denoiser, path: Trajectory, views: Views, **options: object) -> ViewLogprobs:
    return view_logprobs(denoiser, path, views, LogprobSettings.of(path, "sampling"), **options)


def gradient_of(denoiser: Denoiser, scores: Tensor) -> Tensor:
    denoiser.zero_grad()
    (scores * torch.linspace(-1, 1, scores.numel()).view(scores.shape)).sum().backward()
    return torch.cat([p.grad.flatten() for p in denoiser.parameters() if p.grad is not None])


PLANS = {"states of the path": steps_of, "masks of the whole completion": bounds_of}


# Exactness


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("at_once", [None, 5])
def test_packed_views_are_scored_as_one_view_at_a_time(sdar, plan, attention, at_once):
    sdar.backbone.set_attn_implementation(attention)
    path = rollout(sdar, temperature=0.8)
    views = plan(path)
    with torch.no_grad():
        expected = one_at_a_time(sdar, path, views)
        for given in (views, packed(path, views)):
            result = scored(sdar, path, given, positions_at_once=at_once).logprob
            torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
    assert expected[views.target].std() > 0.1


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("checkpointed", [False, True])
def test_gradients_are_those_of_one_view_at_a_time(folder, plan, checkpointed):
    denoiser, _ = load_model(folder)
    path = rollout(denoiser)
    views = plan(path)
    expected = gradient_of(denoiser, one_at_a_time(denoiser, path, views))
    if checkpointed:
        denoiser.checkpoint_gradients()
    result = gradient_of(denoiser, scored(denoiser, path, packed(path, views), positions_at_once=9).logprob)
    assert expected.norm() > 1
    assert (result - expected).norm() < 1e-5 * expected.norm()


def test_hidden_prompt_tokens_are_hidden_from_the_clean_completion_too(sdar):
    path = rollout(sdar)
    views = bounds_of(path)
    hidden = torch.zeros(len(views), P, dtype=torch.bool)
    hidden[::2, -2] = True
    views = replace(views, prompt_hidden=hidden)
    with torch.no_grad():
        result = scored(sdar, path, packed(path, views)).logprob
        torch.testing.assert_close(result, one_at_a_time(sdar, path, views), rtol=0, atol=1e-5)
        shown = scored(sdar, path, packed(path, replace(views, prompt_hidden=None))).logprob
    assert (result - shown)[::2].abs().max() > 0.01


def test_a_state_whose_targets_lie_in_several_blocks_sees_its_own_masks(sdar):
    path = rollout(sdar)
    views = replace(bounds_of(path), sees_clean_past=None)
    with torch.no_grad():
        result = scored(sdar, path, packed(path, views)).logprob
        torch.testing.assert_close(result, one_at_a_time(sdar, path, views), rtol=0, atol=1e-5)
        clean = scored(sdar, path, bounds_of(path)).logprob
    later = views.target & (torch.arange(L) >= BLOCK)
    assert (result - clean)[later].abs().max() > 0.01


def test_a_shifted_head_reads_the_last_clean_column_before_a_copy(folder):
    denoiser, _ = load_model(folder)
    denoiser.backbone.config.logit_shift = True
    shifted = Denoiser(denoiser.backbone, denoiser.mask_id, denoiser.eos_id, denoiser.pad_id).eval()
    path = rollout(shifted)
    for views in (steps_of(path), bounds_of(path)):
        with torch.no_grad():
            result = scored(shifted, path, packed(path, views)).logprob
            torch.testing.assert_close(result, one_at_a_time(shifted, path, views), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{"guidance": 0.7}, {"top_k": 5, "top_p": 0.9}, {"order": "plackett_luce"}, {"order": "learned"}],
    ids=str,
)
def test_guidance_support_and_position_choice_do_not_depend_on_the_pack(sdar, options):
    path = rollout(sdar, **options)
    views = steps_of(path)
    with torch.no_grad():
        alone = scored(sdar, path, views, choice=True, distribution=True)
        together = scored(sdar, path, packed(path, views), choice=True, distribution=True)
        chunked = scored(sdar, path, packed(path, views), choice=True, positions_at_once=3)
    recorded = path.logprob[views.row]
    torch.testing.assert_close(together.logprob[views.target], recorded[views.target], rtol=0, atol=1e-5)
    torch.testing.assert_close(together.distribution, alone.distribution, rtol=0, atol=1e-5)
    torch.testing.assert_close(chunked.logprob, alone.logprob, rtol=0, atol=1e-5)
    if path.choice_logprob is not None:
        assert together.choice is not None
        by_row = torch.zeros(path.tokens.shape).index_add(0, views.row, together.choice)
        torch.testing.assert_close(by_row, path.choice_logprob, rtol=0, atol=1e-5)
        torch.testing.assert_close(chunked.choice, alone.choice, rtol=0, atol=2e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_views_in_bfloat16_are_as_near_as_rounding_allows(folder, attention):
    exact, half = (load_model(folder)[0] for _ in range(2))
    half.to(torch.bfloat16).backbone.set_attn_implementation(attention)
    path = rollout(exact)
    for views in (steps_of(path), bounds_of(path)):
        with torch.no_grad():
            expected = scored(exact, path, views).logprob
            alone = scored(half, path, views, positions_at_once=5).logprob
            together = scored(half, path, packed(path, views), positions_at_once=5).logprob
        assert together.dtype == torch.float32
        rounding = (alone - expected).abs().mean()
        assert 0 < (together - expected).abs().mean() < 1.5 * rounding
        assert (together - alone).abs().mean() < rounding


# Negative controls


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_copy_that_sees_its_own_clean_block_is_found(sdar, plan, monkeypatch):
    sdar.backbone.set_attn_implementation("sdpa")
    path = rollout(sdar)
    views = plan(path)
    right = masks.copies_mask

    def leaking(copies, block_length, attention_mask, dtype):
        further = torch.where(copies.copy > 0, copies.start + block_length, copies.start)
        return right(replace(copies, start=further), block_length, attention_mask, dtype)

    monkeypatch.setattr("unmask.models.denoiser.copies_mask", leaking)
    with torch.no_grad():
        gap = scored(sdar, path, packed(path, views)).logprob - one_at_a_time(sdar, path, views)
    assert gap.abs().max() > 0.01


def test_a_copy_that_sees_another_copy_is_found(sdar, monkeypatch):
    path = rollout(sdar)
    views = steps_of(path)
    right = masks.copies_mask

    def mixing(copies, block_length, attention_mask, dtype):
        return right(replace(copies, copy=copies.copy.clamp(max=1)), block_length, attention_mask, dtype)

    monkeypatch.setattr("unmask.models.denoiser.copies_mask", mixing)
    with torch.no_grad():
        gap = scored(sdar, path, packed(path, views)).logprob - one_at_a_time(sdar, path, views)
    assert gap.abs().max() > 0.01


# Layout and packing


def test_the_doubled_sequence_is_the_pack_of_one_mask_of_everything(sdar):
    path = rollout(sdar)
    everything = torch.ones(len(path), 1, L, dtype=torch.bool)
    layout = PackedViews.of(masked_views(everything, torch.ones(len(path), 1)), path, BLOCK)
    # The last clean block is not needed: no copy comes after it.
    assert layout.tokens.shape == (len(path), L - BLOCK + L)
    assert torch.equal(layout.tokens[:, : L - BLOCK], path.tokens[:, : L - BLOCK])
    assert (layout.tokens[:, L - BLOCK :] == path.mask_id).all()
    assert layout.copies.position[0].tolist() == [*range(L - BLOCK), *range(L)]
    assert layout.copies.copy[0].tolist() == [0] * (L - BLOCK) + [1] * 4 + [2] * 4 + [3] * 4


def test_a_pack_costs_the_clean_columns_once(sdar):
    path = rollout(sdar)
    views = steps_of(path)
    pack, sizes = Packing(BLOCK, width=64).packs(views, path, max_views=100)
    # Six steps, two in each block: two clean blocks, and a copy of a block for each step.
    assert sorted(sizes) == [(5, 32), (6, 32), (7, 32), (7, 32)]
    for row in range(len(path)):
        assert len(pack[views.row == row].unique()) == 1
    layout = PackedViews.of(replace(views, pack=pack), path, BLOCK)
    assert layout.tokens.shape == (4, 32)


@pytest.mark.parametrize(
    ("max_views", "max_columns", "width", "expected"),
    [
        (100, None, 64, [6]),
        (4, None, 64, [4, 2]),
        # A prompt of 7 with one clean block and four copies has 27 columns. A copy of the third block
        # needs a second clean block.
        (100, 27, 64, [4, 2]),
        # Beyond N² = C² + 6 C, another copy costs more attention than it saves: N = 13 at C = 11, and
        # N = 17 at C = 15.
        (100, None, 1, [3, 3]),
        # A limit that no view meets leaves one view in each pack.
        (100, 1, 64, [1] * 6),
    ],
)
def test_packs_are_limited_by_views_columns_and_cost(sdar, max_views, max_columns, width, expected):
    path = rollout(sdar).rows(slice(0, 1))
    steps = torch.arange(path.num_steps).unsqueeze(0)
    views = step_views(path, steps, torch.ones(1, 6))
    pack, sizes = Packing(BLOCK, width).packs(views, path, max_views, max_columns)
    assert pack.bincount().tolist() == expected
    if max_columns is not None and max_columns > 1:
        assert all(sum(size) <= max_columns for size in sizes)

"""The support that a rollout with a top-k records, and its use by every policy that scores the rollout
(arXiv:2602.03195)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from unmask.core.config import SamplerConfig
from unmask.core.records import Needs, Rollout, Trajectory
from unmask.methods.egspo import EGSPO
from unmask.methods.step_merge import StepMerge
from unmask.sampling import LogprobSettings, denoise, view_logprobs
from unmask.sampling.predict import predict
from unmask.sampling.replay import replayed

MASK, EOS, L, ROWS = 1, 2, 8, 12


NEEDS = Needs()


def path_of(denoiser, needs=NEEDS, **options) -> Trajectory:
    """Return the trajectory of 12 completions of 8 tokens in 4 steps."""
    ids = torch.randint(3, 9, (ROWS, 3), generator=torch.Generator().manual_seed(3))
    sampler = SamplerConfig(
        **({"max_completion_length": L, "num_steps": 4, "order": "random", "temperature": 0.9, "top_k": 3} | options)
    )
    return denoise(denoiser, ids, torch.ones_like(ids, dtype=torch.bool), sampler, torch.arange(ROWS), needs=needs)


def logits_at(denoiser, path, step):
    """Return the [B, L, V] logits of the states before a step, with MASK at -inf."""
    columns = torch.arange(L).expand(ROWS, -1)
    with torch.no_grad():
        return predict(denoiser, path.prompt_ids, path.prompt_mask, path.state_before(step), columns, MASK).logits


def every_step(path):
    return EGSPO(step_choice="all", beta=0.0).plan(Rollout(path, 2, torch.zeros(ROWS)), torch.Generator())


@pytest.mark.parametrize(
    "options", [{}, {"order": "low_confidence", "block_length": 4}, {"order": "plackett_luce"}], ids=str
)
def test_a_rollout_records_the_k_likeliest_tokens_where_and_when_each_token_was_drawn(spy, options):
    denoiser = spy(eos=0.5, mask=9.0)
    path = path_of(denoiser, **options)
    assert path.support is not None
    is_drawn = (path.unmask_step >= 0) & (path.unmask_step < 4)
    assert is_drawn.any()
    assert (~is_drawn).any(), "some rows ended early"
    for step in range(4):
        likeliest = logits_at(denoiser, path, step).topk(3, dim=-1).indices
        now = path.unmask_step == step
        assert torch.equal(path.support[now].long().sort(-1).values, likeliest[now].sort(-1).values)
    assert (path.support[~is_drawn] == -1).all()
    # MASK is by far the likeliest token of this model, but no sampler may draw it.
    assert (path.support != MASK).all()
    assert (path.support == path.tokens.unsqueeze(-1)).any(-1)[is_drawn].all()


def test_top_p_leaves_entries_empty(spy):
    wide, narrow = (path_of(spy(), top_k=4, top_p=p) for p in (1.0, 0.5))
    assert wide.support is not None
    assert narrow.support is not None
    assert narrow.support.shape == (ROWS, L, 4)
    is_drawn = narrow.unmask_step < 4
    count = (narrow.support >= 0).sum(-1)[is_drawn]
    assert count.min() >= 1
    assert count.max() < 4
    assert (wide.support >= 0).all(-1)[wide.unmask_step < 4].all()


def test_a_small_vocabulary_fills_up_with_empty_entries(spy):
    path = path_of(spy(), top_k=20)
    assert path.support is not None
    # All tokens but MASK.
    assert ((path.support >= 0).sum(-1)[path.unmask_step < 4] == 8).all()


@pytest.mark.parametrize(("needs", "top_k"), [(None, 3), (Needs(), 0)])
def test_only_rollouts_for_training_with_a_top_k_record_it(spy, needs, top_k):
    assert path_of(spy(), needs=needs, top_k=top_k).support is None


def test_a_replayed_path_has_the_support_of_the_rollout(spy):
    denoiser = spy()
    path = path_of(denoiser)
    again = replayed(denoiser, replace(path, support=None)).trajectory
    assert torch.equal(again.support, path.support)


@torch.no_grad()
def test_another_policy_chooses_from_the_recorded_tokens(spy):
    path, moved = path_of(spy()), spy(eos=6.0)
    views = every_step(path)
    settings = LogprobSettings.of(path, "sampling")
    result = view_logprobs(moved, path, views, settings).logprob
    assert path.support is not None
    for view, i in views.target.nonzero().tolist():
        row = int(views.row[view])
        logits = logits_at(moved, path, int(path.unmask_step[row, i]))[row, i] / 0.9
        expected = logits[path.tokens[row, i]] - logits[path.support[row, i].long()].logsumexp(-1)
        assert float(result[view, i]) == pytest.approx(float(expected), abs=1e-5)
    # With the support of its own logits the policy would have given the tokens other probabilities.
    own = view_logprobs(moved, replace(path, support=None), views, settings).logprob
    assert (result - own)[views.target].abs().max() > 0.1


def test_whole_distributions_cover_the_recorded_tokens_so_their_kl_is_finite(spy):
    path, settings = path_of(spy()), LogprobSettings(0.9, 3, 1.0)
    views = every_step(path)
    new, old = (view_logprobs(d, path, views, settings, distribution=True).distribution for d in (spy(eos=6.0), spy()))
    assert torch.equal(torch.isfinite(new), torch.isfinite(old))
    assert (torch.isfinite(new).sum(-1) == 3).all()
    other = view_logprobs(spy(eos=6.0), replace(path, support=None), views, settings, distribution=True).distribution
    assert not torch.equal(torch.isfinite(other), torch.isfinite(old))


def test_tokens_of_later_steps_of_a_segment_keep_the_support_of_the_state_in_which_they_are_scored(spy):
    path = path_of(spy())
    views = StepMerge(num_segments=2, beta=0.0).plan(Rollout(path, 2, torch.zeros(ROWS)), torch.Generator())
    settings, moved = LogprobSettings.of(path, "sampling"), spy(eos=6.0)
    recorded = view_logprobs(moved, path, views, settings).logprob
    own = view_logprobs(moved, replace(path, support=None), views, settings).logprob
    first = path.unmask_step[views.row] == path.shown_step(views).unsqueeze(-1)
    assert (recorded != own)[views.target & first].any()
    assert torch.equal(recorded[views.target & ~first], own[views.target & ~first])


def test_without_the_samplers_support_the_record_is_not_used(spy):
    path = path_of(spy())
    views, settings = every_step(path), LogprobSettings(0.9, 0, 1.0)
    with_record = view_logprobs(spy(), path, views, settings).logprob
    assert torch.equal(with_record, view_logprobs(spy(), replace(path, support=None), views, settings).logprob)

"""Tests of view log-probabilities: they equal those of the rollout for any batch, chunk and
support."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import pad

from unmask.core.config import DRAWN_ORDERS, SamplerConfig
from unmask.core.records import Rollout, Views
from unmask.methods.egspo import EGSPO
from unmask.sampling import ORDERS, LogprobSettings, denoise, view_logprobs

MASK, EOS = 1, 2
L = 8

SETTINGS = [
    {},
    {"top_k": 4, "top_p": 0.8},
    {"top_k": 4, "top_p": 0.8, "guidance": 0.8},
    {"block_length": 4, "num_steps": 8},
]


def rollout(denoiser, num_rows=24, **options):
    """Return a rollout of left-padded prompts of 1 to 5 tokens."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 9, (num_rows, 5), generator=generator)
    mask = torch.arange(5) >= torch.arange(num_rows).unsqueeze(-1) % 5
    sampler = SamplerConfig(
        **({"max_completion_length": L, "num_steps": 4, "order": "low_confidence", "temperature": 0.9} | options)
    )
    path = denoise(denoiser, ids.masked_fill(~mask, 0), mask, sampler, torch.arange(num_rows))
    return Rollout(path, 2, torch.zeros(num_rows))


def all_steps(rolled):
    return EGSPO(step_choice="all", beta=0.0).plan(rolled, torch.Generator())


def all_logprobs(denoiser, rolled, views, **options):
    path = rolled.trajectory
    return view_logprobs(denoiser, path, views, LogprobSettings.of(path, "sampling"), **options)


# Agreement with the rollout


@pytest.mark.parametrize("order", sorted(ORDERS))
@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_replayed_log_probabilities_equal_the_recorded_ones(spy, order, options):
    denoiser = spy(eos=0.5)
    rolled = rollout(denoiser, order=order, **options)
    views = all_steps(rolled)
    result = all_logprobs(denoiser, rolled, views, choice=True)
    recorded = rolled.trajectory.logprob[views.row]
    assert recorded[views.target].std() > 0.3
    assert (result.choice is None) == (order not in DRAWN_ORDERS)
    if result.choice is not None:
        drawn = rolled.trajectory.choice_logprob[views.row][views.target]
        assert drawn.std() > 0.3
        torch.testing.assert_close(result.choice[views.target], drawn, rtol=0, atol=2e-5)
    torch.testing.assert_close(result.logprob[views.target], recorded[views.target], rtol=0, atol=1e-5)
    assert (result.logprob[~views.target] == 0).all()


@pytest.mark.parametrize(
    "wrong",
    [LogprobSettings(1.0, 4, 0.8), LogprobSettings(0.9, 0, 0.8), LogprobSettings(0.9, 4, 1.0)],
    ids=["temperature", "top_k", "top_p"],
)
def test_another_temperature_or_support_does_not_agree_with_the_rollout(spy, wrong):
    denoiser = spy()
    rolled = rollout(denoiser, top_k=4, top_p=0.8)
    views = all_steps(rolled)
    result = view_logprobs(denoiser, rolled.trajectory, views, wrong)
    gap = (result.logprob - rolled.trajectory.logprob[views.row])[views.target]
    assert gap.abs().max() > 0.01


def test_a_greedy_rollout_is_replayed_at_temperature_one_as_recorded(spy):
    denoiser = spy()
    rolled = rollout(denoiser, temperature=0.0)
    views = all_steps(rolled)
    assert LogprobSettings.of(rolled.trajectory, "sampling") == LogprobSettings(1.0, 0, 1.0)
    result = all_logprobs(denoiser, rolled, views)
    recorded = rolled.trajectory.logprob[views.row]
    torch.testing.assert_close(result.logprob[views.target], recorded[views.target], rtol=0, atol=1e-5)


def test_a_fixed_temperature_leaves_top_k_and_top_p_out(spy):
    path = rollout(spy(), top_k=4, top_p=0.8).trajectory
    assert LogprobSettings.of(path, 1.0) == LogprobSettings(1.0, 0, 1.0)
    assert LogprobSettings.of(path, "sampling") == LogprobSettings(0.9, 4, 0.8)


# Values


def test_log_probabilities_are_the_softmax_of_a_plain_forward_pass_over_the_masked_state(spy):
    denoiser = spy()
    rolled = rollout(denoiser)
    path, views = rolled.trajectory, all_steps(rolled)
    result = all_logprobs(denoiser, rolled, views, distribution=True)
    state = path.tokens[views.row].masked_fill(views.hidden, MASK)
    ids = torch.cat([path.prompt_ids[views.row], state], dim=1)
    mask = pad(path.prompt_mask[views.row], (0, L), value=True)
    with torch.no_grad():
        logits = denoiser(ids, mask, torch.arange(5, 5 + L).expand(len(ids), -1))
    logits[..., MASK] = -torch.inf
    logprobs = (logits / 0.9).log_softmax(-1)
    chosen = logprobs.gather(-1, path.tokens[views.row].unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(result.logprob[views.target], chosen[views.target], rtol=0, atol=1e-5)
    # Distributions are in the order of the views, and within a view in the order of positions.
    torch.testing.assert_close(result.distribution, logprobs[views.target], rtol=0, atol=1e-5)


def test_distributions_are_returned_only_on_request(spy):
    denoiser = spy()
    rolled = rollout(denoiser)
    assert all_logprobs(denoiser, rolled, all_steps(rolled)).distribution is None


def test_a_token_outside_the_new_policys_support_has_a_finite_log_probability(spy):
    rolled = rollout(spy(), top_k=2)
    views = all_steps(rolled)
    moved = spy(eos=8.0)
    result = all_logprobs(moved, rolled, views)
    is_text = views.target & (rolled.trajectory.tokens[views.row] != EOS)
    assert torch.isfinite(result.logprob).all()
    assert result.logprob[is_text].max() < -2


def test_hidden_prompt_positions_are_shown_as_mask(spy):
    denoiser = spy()
    rolled = rollout(denoiser)
    path, views = rolled.trajectory, all_steps(rolled)
    hidden = torch.zeros(len(views), 5, dtype=torch.bool)
    hidden[:, -1] = True
    noised = all_logprobs(denoiser, rolled, replace(views, prompt_hidden=hidden))
    prompt = path.prompt_ids.clone()
    prompt[:, -1] = MASK
    by_hand = all_logprobs(denoiser, replace(rolled, trajectory=replace(path, prompt_ids=prompt)), views)
    torch.testing.assert_close(noised.logprob, by_hand.logprob, rtol=0, atol=0)
    assert (noised.logprob - all_logprobs(denoiser, rolled, views).logprob).abs().max() > 0.1


def test_the_head_runs_at_the_targets_only(spy):
    denoiser = spy(eos=-99.0)
    rolled = rollout(denoiser, num_steps=8)
    denoiser.calls.clear()
    all_logprobs(denoiser, rolled, all_steps(rolled))
    (call,) = denoiser.calls
    assert call.positions.shape == (24 * 8, 1)


def test_views_with_unequal_numbers_of_targets_can_share_a_batch(spy):
    denoiser = spy()
    rolled = rollout(denoiser, 2)
    target = torch.zeros(3, L, dtype=torch.bool)
    target[0, [1, 6]], target[1, [0, 2, 3, 7]] = True, True
    hidden = target.clone()
    hidden[:, 4] = True
    views = Views(torch.tensor([0, 1, 1]), hidden, target, torch.ones(3), torch.zeros(3, dtype=torch.long))
    together = all_logprobs(denoiser, rolled, views, distribution=True)
    assert together.distribution.shape[0] == 6
    assert (together.logprob[2] == 0).all()
    for i in (0, 1):
        alone = all_logprobs(denoiser, rolled, views.take(slice(i, i + 1)), distribution=True)
        torch.testing.assert_close(alone.logprob[0], together.logprob[i], rtol=0, atol=1e-5)
        rows = slice(0, 2) if i == 0 else slice(2, 6)
        torch.testing.assert_close(alone.distribution, together.distribution[rows], rtol=0, atol=1e-5)


# Gradients


def gradient_in_chunks(denoiser, rolled, views, size):
    denoiser.zero_grad()
    coefficient = torch.linspace(-1, 1, len(views)).unsqueeze(-1)
    for start in range(0, len(views), size):
        chunk = slice(start, start + size)
        (all_logprobs(denoiser, rolled, views.take(chunk)).logprob * coefficient[chunk]).sum().backward()
    return torch.cat([p.grad.flatten() for p in denoiser.parameters() if p.grad is not None])


@pytest.mark.parametrize("size", [1, 3])
def test_gradients_of_chunks_add_up_to_the_whole_gradient(spy, size):
    denoiser = spy(eos=0.5)
    rolled = rollout(denoiser, 6, top_k=5, guidance=0.5)
    views = all_steps(rolled)
    whole = gradient_in_chunks(denoiser, rolled, views, 1000)
    assert whole.norm() > 1
    chunked = gradient_in_chunks(denoiser, rolled, views, size)
    assert (chunked - whole).norm() < 1e-5 * whole.norm()


def test_at_the_first_update_every_ratio_is_one_and_none_is_clipped(spy):
    denoiser = spy()
    rolled = rollout(denoiser, top_k=4, top_p=0.9)
    views = all_steps(rolled)
    with torch.no_grad():
        old = all_logprobs(denoiser, rolled, views).logprob
    new = all_logprobs(denoiser, rolled, views).logprob
    assert new.requires_grad
    assert ((new - old).sum(-1).exp() == 1).all()


def test_gradients_stay_finite_next_to_forbidden_tokens(spy):
    denoiser = spy()
    rolled = rollout(denoiser, top_k=2, top_p=0.7)
    grad = gradient_in_chunks(denoiser, rolled, all_steps(rolled), 7)
    assert torch.isfinite(grad).all()
    assert grad.norm() > 0

"""Tests of the denoising loop: schedule, independence of the batch, end of a row, and record."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn.functional import pad

from unmask.core.config import SamplerConfig
from unmask.core.records import GIVEN, Needs
from unmask.sampling import ORDERS, denoise

PAD, MASK, EOS = 0, 1, 2
L = 8
PROPERTY = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def prompts(num_rows, length=5):
    """Return random prompts [B, P] without padding."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(3, 9, (num_rows, length), generator=generator)


def run(denoiser, sampler, num_rows=16, seed=None, prompt=None, mask=None, **options):
    prompt = prompts(num_rows) if prompt is None else prompt
    mask = torch.ones_like(prompt, dtype=torch.bool) if mask is None else mask
    return denoise(denoiser, prompt, mask, sampler, torch.arange(len(prompt)) if seed is None else seed, **options)


def settings_of(**options):
    return SamplerConfig(**({"max_completion_length": L, "num_steps": 4, "order": "random"} | options))


def same(one, other, atol=1e-5):
    """Assert that two trajectories are the same: integers exactly, log-probabilities and entropies
    to float32 rounding."""
    for field in fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, torch.Tensor) and a.is_floating_point():
            torch.testing.assert_close(a, b, rtol=0, atol=atol)
        elif isinstance(a, torch.Tensor):
            assert torch.equal(a, b), field.name


# Every masked position is committed once, on schedule


@PROPERTY
@given(
    data=st.data(),
    order=st.sampled_from(sorted(ORDERS)),
    blocks=st.sampled_from([1, 2, 4]),
    per_block=st.integers(1, 2),
    eos=st.sampled_from([-9.0, 0.0, 3.0]),
    temperature=st.sampled_from([0.0, 0.9]),
    needs=st.sampled_from([None, Needs(greedy=True, selection=("entropy_topk", 1))]),
)
@pytest.mark.slow
def test_every_mask_is_committed_exactly_once_or_filled_with_eos_after_the_end(
    spy, data, order, blocks, per_block, eos, temperature, needs
):
    hidden = torch.tensor(data.draw(st.lists(st.lists(st.booleans(), min_size=L, max_size=L), min_size=3, max_size=3)))
    start = torch.where(hidden, MASK, prompts(3, L))
    sampler = settings_of(num_steps=blocks * per_block, block_length=L // blocks, order=order, temperature=temperature)
    seen = []
    path = run(spy(eos=eos), sampler, 3, completion=start, needs=needs, observe=seen.append)
    last = sampler.steps
    when, previous = path.unmask_step, start
    assert not (path.tokens == MASK).any()
    assert torch.equal(when == GIVEN, ~hidden)
    assert torch.equal(path.tokens[~hidden], start[~hidden])
    for snapshot in seen:
        changed = snapshot.tokens != previous
        # Positions that a step changes were masked before it, and belong to that step or to the
        # final EOS fill.
        assert (previous[changed] == MASK).all()
        assert torch.equal(snapshot.unmask_step[changed] == snapshot.step, when[changed] < last)
        assert torch.equal(changed & (when < last), when == snapshot.step)
        assert torch.equal(path.state_before(snapshot.step), previous.masked_fill(hidden & (when >= last), MASK))
        previous = snapshot.tokens
    assert torch.equal(previous, path.tokens)
    never = when == last
    block_of_position = (torch.arange(L) // sampler.block).expand_as(when)
    assert torch.equal(when[hidden & ~never] // per_block, block_of_position[hidden & ~never].int())
    assert (path.tokens[never] == EOS).all()
    assert (path.logprob[never | ~hidden] == 0).all()
    assert (path.entropy[never | ~hidden] == 0).all()
    assert (path.logprob[hidden & ~never] < 0).all()


@pytest.mark.parametrize(
    ("num_steps", "block_length", "counts"),
    [
        (4, None, [2, 2, 2, 2]),
        (3, None, [3, 3, 2]),
        (4, 4, [2, 2, 2, 2]),
        (6, 4, [2, 1, 1, 2, 1, 1]),
        (4, 2, [2, 2, 2, 2]),
        (8, 2, [1] * 8),
    ],
)
def test_each_block_is_finished_in_its_own_steps_with_larger_shares_first(spy, num_steps, block_length, counts):
    sampler = settings_of(num_steps=num_steps, block_length=block_length)
    path = run(spy(eos=-99.0), sampler)
    for k, count in enumerate(counts):
        assert ((path.unmask_step == k).sum(-1) == count).all()
    steps_per_block = num_steps * sampler.block // L
    block_of_position = torch.arange(L) // sampler.block
    assert torch.equal(path.unmask_step // steps_per_block, block_of_position.int().expand(16, -1))


def test_the_masked_positions_of_a_block_share_its_steps(spy):
    start = torch.full((1, L), MASK)
    start[0, [0, 1, 2, 5]] = torch.tensor([3, 4, 5, 6])
    path = run(spy(eos=-99.0), settings_of(num_steps=4, block_length=4), 1, completion=start)
    # Block one has a masked position for its first step only; block two has three, for two steps.
    assert torch.bincount(path.unmask_step[0] + 1).tolist() == [4, 1, 0, 2, 1]
    assert path.unmask_step[0, 3] == 0
    assert path.tokens[0, [0, 1, 2, 5]].tolist() == [3, 4, 5, 6]


def test_a_completion_of_another_length_is_refused(spy):
    with pytest.raises(ValueError, match=r"\(2, 8\), got \(2, 7\)"):
        run(spy(), settings_of(), 2, completion=torch.full((2, 7), MASK))


def test_a_finished_completion_costs_no_forward_pass_and_is_not_changed(spy):
    watched, finished = spy(), prompts(2, L)
    path = run(watched, settings_of(), 2, completion=finished)
    assert torch.equal(path.tokens, finished)
    assert (path.unmask_step == GIVEN).all()
    assert watched.calls == []


# A row does not depend on its batch


@pytest.mark.parametrize("order", sorted(ORDERS))
@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.slow
def test_a_left_padded_batch_of_unequal_prompts_equals_each_prompt_alone(spy, order, temperature):
    lengths = [1, 3, 4, 7, 7, 2]
    rows = [prompts(1, 7)[0, :n] for n in lengths]
    rows[4] = rows[4].flip(0)
    ids = torch.stack([pad(row, (7 - len(row), 0), value=PAD) for row in rows])
    mask = torch.stack([pad(torch.ones(len(row), dtype=torch.bool), (7 - len(row), 0)) for row in rows])
    seed = torch.arange(100, 106)
    sampler = settings_of(order=order, temperature=temperature, block_length=4)
    needs = Needs(greedy=True, selection=("entropy_topk", 2))
    together = run(spy(eos=1.0), sampler, seed=seed, prompt=ids, mask=mask, needs=needs)
    for i, row in enumerate(rows):
        alone = run(spy(eos=1.0), sampler, seed=seed[i : i + 1], prompt=row.view(1, -1), needs=needs)
        for name in ("tokens", "unmask_step", "selected_step", "one_step_tokens"):
            assert torch.equal(getattr(together, name)[i], getattr(alone, name)[0]), name
        for name in ("logprob", "entropy"):
            torch.testing.assert_close(getattr(together, name)[i], getattr(alone, name)[0], rtol=0, atol=1e-5)


def test_the_comparison_of_padded_and_alone_can_fail(spy):
    ids = torch.tensor([[PAD, PAD, 4, 5]])
    blind = torch.ones_like(ids, dtype=torch.bool)
    together = run(spy(), settings_of(), prompt=ids, mask=blind)
    alone = run(spy(), settings_of(), prompt=ids[:, 2:])
    assert (together.logprob - alone.logprob).abs().max() > 0.1


@pytest.mark.parametrize("order", sorted(ORDERS))
def test_a_row_does_not_depend_on_the_other_rows_or_its_index(spy, order):
    sampler = settings_of(order=order, top_k=5, top_p=0.95, guidance=0.5)
    whole = run(spy(), sampler, 12)
    assert len(whole.tokens.unique(dim=0)) > 9
    index = torch.tensor([11, 3, 7])
    part = run(spy(), sampler, seed=index, prompt=prompts(12)[index])
    same(part, whole.rows(index))


def test_rows_of_one_prompt_differ_only_by_their_seeds(spy):
    seed = torch.tensor([5, 6, 5, 2**62 - 1])
    path = run(spy(), settings_of(), prompt=prompts(1).expand(4, -1), seed=seed)
    assert torch.equal(path.tokens[0], path.tokens[2])
    assert len(path.tokens.unique(dim=0)) == 3
    assert len(path.unmask_step.unique(dim=0)) == 3


def test_greedy_decoding_in_a_fixed_order_needs_no_seed(spy):
    sampler = settings_of(temperature=0.0, order="low_confidence")
    same_prompt = prompts(1).expand(4, -1)
    assert len(run(spy(), sampler, prompt=same_prompt).tokens.unique(dim=0)) == 1


def test_denoising_does_not_change_the_global_generator_or_the_starting_completion(spy):
    start, before = torch.full((2, L), MASK), torch.get_rng_state()
    run(spy(), settings_of(), 2, completion=start)
    assert torch.equal(torch.get_rng_state(), before)
    assert (start == MASK).all()


# The end of a row


def test_a_row_ends_when_all_positions_up_to_an_eos_are_committed(spy):
    watched = spy(eos=2.0)
    sampler = settings_of(num_steps=L, order="left_to_right")
    path = run(watched, sampler, 64)
    is_eos = path.tokens == EOS
    length = torch.where(is_eos.any(-1), is_eos.int().argmax(-1), L)
    assert 0 < (length < L).sum() < 64
    # The step that commits the EOS is the row's last; step k of left to right commits position k.
    working = [int((length >= k).sum()) for k in range(L)]
    assert [len(call.ids) for call in watched.calls] == [rows for rows in working if rows]
    position = torch.arange(L)
    expected = torch.where(position <= length.unsqueeze(-1), position, L)
    assert torch.equal(path.unmask_step, expected.int())


@pytest.mark.parametrize("order", ["random", "low_confidence"])
def test_an_eos_after_a_masked_position_does_not_end_a_row(spy, order):
    path = run(spy(eos=1.0), settings_of(num_steps=L, order=order), 64)
    waited = 0
    for when, tokens in zip(path.unmask_step.tolist(), path.tokens.tolist(), strict=True):
        eos = [i for i in range(L) if tokens[i] == EOS]
        # The first step after which some EOS has no masked position before it.
        last = min((max(when[: i + 1]) for i in eos), default=L - 1)
        assert sorted(step for step in when if step < L) == list(range(last + 1))
        waited += min((when[i] for i in eos), default=last) < last
    assert waited > 10


def test_a_starting_completion_that_has_ended_costs_no_step(spy):
    watched = spy()
    start = torch.tensor([[5, EOS, MASK, 4, MASK, MASK, 3, MASK], [MASK, EOS, MASK, 4, MASK, MASK, 3, MASK]])
    path = run(watched, settings_of(), 2, completion=start)
    assert all(len(call.ids) == 1 for call in watched.calls)
    assert path.tokens[0].tolist() == [5, EOS, EOS, 4, EOS, EOS, 3, EOS]
    assert path.unmask_step[0].tolist() == [GIVEN, GIVEN, 4, GIVEN, 4, 4, GIVEN, 4]


def test_denoising_from_a_state_continues_the_original_path(spy):
    # Started from the state before a step, with the noise of the later steps, the path is the same.
    sampler = settings_of(num_steps=4, order="left_to_right", temperature=0.0)
    whole = run(spy(eos=1.0), sampler, 32)
    resumed = run(
        spy(eos=1.0),
        settings_of(num_steps=2, order="left_to_right", temperature=0.0),
        32,
        completion=whole.state_before(2),
    )
    assert torch.equal(resumed.tokens, whole.tokens)
    assert torch.equal(resumed.unmask_step == 2, whole.unmask_step == 4)


# Draws and records


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_mask_is_never_committed_however_likely(spy, temperature):
    needs = Needs(greedy=True, selection=("all", 1))
    path = run(spy(mask=50.0, eos=-9.0), settings_of(temperature=temperature), needs=needs)
    assert not (path.tokens == MASK).any()
    assert not (path.one_step_tokens == MASK).any()
    # The other tokens share all of the probability.
    assert path.logprob.min() > -8
    assert path.entropy.min() > 0.1


def replay(denoiser, path, prompt, step):
    """Return the logits [B, L, V] of the states before `step` from a plain forward pass, without
    MASK."""
    ids = torch.cat([prompt, path.state_before(step)], dim=1)
    positions = torch.arange(prompt.shape[1], ids.shape[1]).expand(len(ids), -1)
    with torch.no_grad():
        logits = denoiser(ids, None, positions)
    logits[..., MASK] = -torch.inf
    return logits


def test_temperature_zero_commits_the_most_likely_tokens_and_records_temperature_one(spy):
    path = run(spy(), settings_of(temperature=0.0))
    for step in range(4):
        logprobs = replay(spy(), path, prompts(16), step).log_softmax(-1)
        at = path.unmask_step == step
        assert at.any()
        assert torch.equal(path.tokens[at], logprobs.argmax(-1)[at])
        torch.testing.assert_close(path.logprob[at], logprobs.amax(-1)[at], rtol=0, atol=1e-5)
        entropy = torch.distributions.Categorical(logits=logprobs[at]).entropy()
        torch.testing.assert_close(path.entropy[at], entropy, rtol=0, atol=1e-5)
    assert path.sampler.temperature == 0.0


@pytest.mark.parametrize("entropy_temperature", [None, 1.0, 0.5])
def test_log_probabilities_and_entropies_are_those_of_the_tempered_distribution(spy, entropy_temperature):
    path = run(spy(), settings_of(temperature=0.7), entropy_temperature=entropy_temperature)
    for step in range(4):
        logits = replay(spy(), path, prompts(16), step)
        at = path.unmask_step == step
        logprob = (logits / 0.7).log_softmax(-1).gather(-1, path.tokens.unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(path.logprob[at], logprob[at], rtol=0, atol=1e-5)
        expected = logits[at] / (entropy_temperature or 0.7)
        entropy = torch.distributions.Categorical(logits=expected).entropy()
        torch.testing.assert_close(path.entropy[at], entropy, rtol=0, atol=1e-5)


def test_entropies_use_the_support_unless_they_have_their_own_temperature(spy):
    narrow = run(spy(), settings_of(temperature=0.7, top_k=2))
    assert narrow.entropy.max() <= torch.tensor(2.0).log() + 1e-6
    assert run(spy(), settings_of(temperature=0.7, top_k=2), entropy_temperature=0.7).entropy.max() > 1.0


def test_top_k_of_one_is_greedy_decoding_with_certainty(spy):
    narrow = run(spy(), settings_of(top_k=1))
    greedy = run(spy(), settings_of(temperature=0.0))
    assert torch.equal(narrow.tokens, greedy.tokens)
    assert narrow.logprob.abs().max() == 0


def test_guidance_moves_the_logits_away_from_those_of_a_masked_prompt(spy):
    w = 1.5
    path = run(spy(), settings_of(temperature=0.9, guidance=w))
    for step in range(4):
        given, blind = (replay(spy(), path, p, step) for p in (prompts(16), torch.full((16, 5), MASK)))
        logits = (blind + (1 + w) * (given - blind)).nan_to_num(nan=-torch.inf)
        logprob = (logits / 0.9).log_softmax(-1).gather(-1, path.tokens.unsqueeze(-1)).squeeze(-1)
        at = path.unmask_step == step
        torch.testing.assert_close(path.logprob[at], logprob[at], rtol=0, atol=2e-5)
    assert path.sampler.guidance == w


def test_without_guidance_a_step_is_one_forward_pass(spy):
    plain, guided = spy(eos=-99.0), spy(eos=-99.0)
    run(plain, settings_of())
    run(guided, settings_of(guidance=1.0))
    assert (len(plain.calls), len(guided.calls)) == (4, 8)


# Inputs of the model


@pytest.mark.parametrize("block_length", [8, 4, 2])
def test_logits_are_computed_only_at_masked_positions_of_the_active_block(spy, block_length):
    watched = spy(eos=-99.0)
    run(watched, settings_of(num_steps=8, block_length=block_length))
    left = [block_length - i for _ in range(L // block_length) for i in range(block_length)]
    assert [call.positions.shape[1] for call in watched.calls] == left
    for step, call in enumerate(watched.calls):
        assert (call.ids.gather(1, call.positions) == MASK).all()
        assert ((call.positions - 5) // block_length == step // block_length).all()
        assert call.attention_mask is None


def test_one_step_completions_need_logits_at_all_masked_positions_but_no_forward_pass(spy):
    watched = spy(eos=-99.0)
    run(watched, settings_of(num_steps=8, block_length=4), needs=Needs(greedy=True, selection=("entropy_topk", 2)))
    assert [call.positions.shape[1] for call in watched.calls] == [8, 7, 6, 5, 4, 3, 2, 1]


def test_the_prompt_mask_reaches_the_model_only_if_there_is_padding(spy):
    watched = spy(eos=-99.0)
    mask = torch.tensor([[False, True, True, True, True], [True] * 5])
    run(watched, settings_of(num_steps=1), 2, mask=mask)
    assert torch.equal(watched.calls[0].attention_mask, pad(mask, (0, L), value=True))


@pytest.mark.parametrize("order", ["low_confidence", "random", "plackett_luce", "left_to_right"])
@pytest.mark.parametrize("shape", [{"num_steps": 3}, {"num_steps": 4, "block_length": 4}], ids=str)
def test_a_state_of_an_earlier_run_is_continued_as_in_that_run(spy, order, shape):
    prompt = torch.randint(3, 9, (24, 5), generator=torch.Generator().manual_seed(0))
    sampler = SamplerConfig(max_completion_length=8, order=order, temperature=1.0, **shape)
    is_prompt, seed = torch.ones_like(prompt, dtype=torch.bool), torch.arange(24)
    whole = denoise(spy(eos=1.0), prompt, is_prompt, sampler, seed)
    first = torch.arange(24) % (sampler.steps + 1)
    state = whole.state_before(first)
    denoiser = spy(eos=1.0)
    rest = denoise(denoiser, prompt, is_prompt, sampler, seed, completion=state, first_step=first)
    assert torch.equal(rest.tokens, whole.tokens)
    later = whole.unmask_step >= first.unsqueeze(-1)
    # Rows that had ended are complete, so none of their positions gets a step.
    alive = later & (whole.unmask_step < sampler.steps)
    assert torch.equal(rest.unmask_step[alive], whole.unmask_step[alive])
    assert (rest.unmask_step[~later] == GIVEN).all()
    # A branch costs only the remaining steps: no row is run before its first step.
    assert sum(len(call.ids) for call in denoiser.calls) < sum(sampler.steps - k for k in first.tolist()) + 1

"""Tests of adaptive schedules in the denoising loop: what a step commits, the clock of each row, the
upper limit, and replay under every family of models."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import pad

from tests.helpers.adapters import build
from tests.helpers.stale_keys import StaleKeys
from unmask.core.config import SamplerConfig
from unmask.core.records import Needs, Rollout, Trajectory
from unmask.methods.egspo import EGSPO
from unmask.models import Denoiser
from unmask.sampling import LogprobSettings, denoise, view_logprobs

L, P, B = 12, 5, 8
SCHEDULES = ["threshold=0.4", "factor=1.3", "entropy_bound=1.5"]
SEEDS = torch.arange(B)
PROMPTS = torch.randint(3, 11, (B, P), generator=torch.Generator().manual_seed(1))
MASK = torch.arange(P) >= torch.arange(B).unsqueeze(-1) % 3


def sampler_of(**options: object) -> SamplerConfig:
    return SamplerConfig(**{"max_completion_length": L, "block_length": 4, "temperature": 0.9} | options)  # type: ignore[arg-type]


def family(name: str) -> Denoiser:
    """Return a small model: bidirectional, with a shifted head, or block-causal."""
    denoiser = build("LlamaForCausalLM" if name == "bidirectional" else "Qwen2ForCausalLM")
    denoiser.logit_shift = name == "shifted"
    if name == "block-causal":
        denoiser.block_length = 4
    return denoiser


def same(one: Trajectory, other: Trajectory, atol: float = 2e-5) -> None:
    for name, value in one.tensors().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, other.tensors()[name], rtol=0, atol=atol)
        else:
            assert torch.equal(value, other.tensors()[name]), name


# What a step commits


@pytest.mark.parametrize("order", ["low_confidence", "max_probability"])
def test_a_threshold_commits_positions_that_reach_it_or_a_single_one(order: str) -> None:
    denoiser, bound, num_several = family("bidirectional"), 0.4, 0
    sampler = sampler_of(schedule=f"threshold={bound}", order=order, block_length=L)
    path = denoise(denoiser, PROMPTS, MASK, sampler, SEEDS)
    for step in range(int(path.steps_taken.max())):
        rows = (path.steps_taken > step).nonzero().squeeze(-1)
        state = path.state_before(step)[rows]
        positions = torch.arange(P, P + L).expand(len(rows), -1)
        ids = torch.cat([PROMPTS[rows], state], dim=1)
        logits = denoiser(ids, pad(MASK[rows], (0, L), value=True), positions).detach()
        logits[..., denoiser.mask_id] = -torch.inf
        p = logits.softmax(-1)
        committed = path.unmask_step[rows] == step
        likeliest = p.max(-1).values
        if order == "max_probability":
            is_masked = state == denoiser.mask_id
            for row in range(len(rows)):
                reaching = is_masked[row] & (likeliest[row] >= bound)
                assert torch.equal(committed[row], reaching) or (not reaching.any() and committed[row].sum() == 1)
        else:
            drawn = p.gather(-1, path.tokens[rows].unsqueeze(-1)).squeeze(-1)
            # Draws at positions that a step leaves masked are not recorded.
            several = committed.sum(-1) > 1
            num_several += int(several.sum())
            assert (drawn[several][committed[several]] >= bound).all()
    counts = path.steps_taken
    assert counts.min() < counts.max(), "rows differ in their number of steps"
    assert num_several or order == "max_probability", "some steps commit several positions"


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_steps", [3, 6, 12])
def test_the_upper_limit_holds_and_bounds_that_admit_nothing_give_the_fixed_schedule(schedule: str, num_steps: int):
    denoiser = family("bidirectional")
    path = denoise(denoiser, PROMPTS, MASK, sampler_of(schedule=schedule, num_steps=num_steps), SEEDS)
    assert (path.steps_taken <= num_steps).all()
    assert not (path.tokens == denoiser.mask_id).any()
    strict = {"threshold": "threshold=1", "factor": "factor=1e-6", "entropy_bound": "entropy_bound=0"}
    slow = sampler_of(schedule=strict[schedule.partition("=")[0]], num_steps=num_steps)
    fixed = denoise(denoiser, PROMPTS, MASK, sampler_of(num_steps=num_steps), SEEDS)
    same(denoise(denoiser, PROMPTS, MASK, slow, SEEDS), fixed)


def test_blocks_may_use_the_steps_that_earlier_blocks_have_saved(table_denoiser) -> None:
    toy = table_denoiser(2, 6, eos_id=99, seed=0)
    with torch.no_grad():
        # The first block of two is certain, and the others are even choices.
        toy.table.zero_()
        toy.table[:, :2, 0] = 20.0
    prompt = torch.zeros(4, 1, dtype=torch.long)
    sampler = SamplerConfig(max_completion_length=6, num_steps=3, block_length=2, schedule="threshold=0.9")
    path = denoise(toy, prompt, torch.ones_like(prompt, dtype=torch.bool), sampler, torch.arange(4))
    # With a step for each block, only the step that the first block did not need is left over.
    assert path.steps_taken.tolist() == [3] * 4
    more = sampler.model_copy(update={"num_steps": 6})
    path = denoise(toy, prompt, torch.ones_like(prompt, dtype=torch.bool), more, torch.arange(4))
    assert path.unmask_step.sort(-1).values.tolist() == [[0, 0, 1, 2, 3, 4]] * 4


# The clock of a row is its own


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["bidirectional", "shifted", "block-causal"])
def test_a_completion_does_not_depend_on_its_batch(name: str, schedule: str) -> None:
    denoiser, sampler = family(name), sampler_of(schedule=schedule)
    needs = Needs(greedy=True, selection=("entropy_topk", 2))
    together = denoise(denoiser, PROMPTS, MASK, sampler, SEEDS, needs=needs)
    parts = [slice(0, 1), slice(1, 3), slice(3, B)]
    apart = [denoise(denoiser, PROMPTS[i], MASK[i], sampler, SEEDS[i], needs=needs) for i in parts]
    same(together, Trajectory.cat(apart))
    assert len(together.steps_taken.unique()) > 1
    # Steps are numbered without gaps, from 0.
    for row, taken in zip(together.unmask_step, together.steps_taken.tolist(), strict=True):
        assert row[row < together.num_steps].unique().tolist() == list(range(taken))


@pytest.mark.parametrize("name", ["bidirectional", "block-causal"])
def test_rows_that_have_finished_a_block_make_no_forward_pass(name: str) -> None:
    denoiser, sampler = family(name), sampler_of(schedule="threshold=0.4")
    rows: list[int] = []
    handle = denoiser.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    path = denoise(denoiser, PROMPTS, MASK, sampler, SEEDS)
    handle.remove()
    assert sum(rows) == int(path.steps_taken.sum())
    assert min(rows) < B


def test_a_block_causal_row_that_waits_does_not_run_its_finished_blocks_again() -> None:
    denoiser, sampler = family("block-causal"), sampler_of(schedule="threshold=0.4")
    denoiser.eos_id = -1
    columns: list[int] = []
    handle = denoiser.register_forward_pre_hook(lambda _, args: columns.append(args[0].shape[1]))
    denoise(denoiser, PROMPTS, MASK, sampler, SEEDS)
    handle.remove()
    # Only the first pass runs the prompt; the first pass of a later block also runs the block before it.
    assert columns[0] == P + 4
    assert sorted(columns[1:])[-2:] == [8, 8]
    assert {*columns[1:]} == {4, 8}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["bidirectional", "block-causal"])
def test_a_state_is_continued_as_in_the_run_that_reached_it(name: str, schedule: str) -> None:
    denoiser, sampler = family(name), sampler_of(schedule=schedule, num_steps=9)
    whole = denoise(denoiser, PROMPTS, MASK, sampler, SEEDS)
    first = torch.tensor([0, 1, 2, 3, 1, 2, 3, 4]).minimum(whole.steps_taken - 1)
    again = denoise(denoiser, PROMPTS, MASK, sampler, SEEDS, completion=whole.state_before(first), first_step=first)
    assert torch.equal(again.tokens, whole.tokens)
    is_new = whole.unmask_step >= first.unsqueeze(-1)
    assert torch.equal(again.unmask_step[is_new], whole.unmask_step[is_new])
    torch.testing.assert_close(again.logprob[is_new], whole.logprob[is_new], rtol=0, atol=2e-5)
    late = denoise(denoiser, PROMPTS, MASK, sampler, SEEDS, completion=whole.state_before(first), first_step=first + 1)
    assert not torch.equal(late.tokens, whole.tokens), "the check can fail"


# Replay


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["bidirectional", "shifted", "block-causal"])
def test_replayed_log_probabilities_equal_the_recorded_ones(name: str, schedule: str) -> None:
    denoiser = family(name)
    path = denoise(denoiser, PROMPTS, MASK, sampler_of(schedule=schedule), SEEDS)
    views = EGSPO(step_choice="all", beta=0.0).plan(Rollout(path, 2, torch.zeros(B)), torch.Generator())
    assert len(views) == int(path.steps_taken.sum())
    replayed = view_logprobs(denoiser, path, views, LogprobSettings.of(path, "sampling")).logprob
    recorded = path.logprob[views.row]
    torch.testing.assert_close(replayed[views.target], recorded[views.target], rtol=0, atol=1e-5)
    # The states of the step before are others.
    when = path.unmask_step[views.row]
    step = path.shown_step(views).unsqueeze(-1)
    earlier = type(views)(views.row, when >= step - 1, views.target, views.weight, views.slot)
    wrong = view_logprobs(denoiser, path, earlier, LogprobSettings.of(path, "sampling")).logprob
    assert (wrong - recorded)[views.target].abs().max() > 0.01


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("refresh", [None, 2])
def test_a_cached_rollout_equals_attention_to_stale_keys_by_hand(cache: str, refresh: int | None) -> None:
    denoiser = family("bidirectional")
    sampler = sampler_of(schedule="threshold=0.5", cache=cache, cache_refresh_steps=refresh)
    path = denoise(denoiser, PROMPTS, MASK, sampler, SEEDS)
    exact = sampler_of(schedule="threshold=0.5")
    for row in range(B):
        prompt = PROMPTS[row : row + 1, MASK[row]]
        model = StaleKeys(copy.deepcopy(denoiser), sampler, prompt.shape[1])
        alone = denoise(model, prompt, torch.ones_like(prompt, dtype=torch.bool), exact, SEEDS[row : row + 1])
        assert torch.equal(path.tokens[row], alone.tokens[0])
        torch.testing.assert_close(path.logprob[row], alone.logprob[0], rtol=0, atol=2e-5)
    fresh = denoise(denoiser, PROMPTS, MASK, exact, SEEDS)
    assert (path.logprob - fresh.logprob).abs().max() > 1e-3, "the check can fail"


def test_guidance_and_one_step_completions_take_the_states_of_the_path() -> None:
    denoiser = family("bidirectional")
    sampler = sampler_of(schedule="threshold=0.4", guidance=0.5, order="max_probability")
    needs = Needs(greedy=True, selection=("all", 1))
    path = denoise(denoiser, PROMPTS, MASK, sampler, SEEDS, needs=needs)
    assert torch.equal((path.selected_steps >= 0).sum(-1), path.steps_taken)
    assert path.one_step_tokens is not None
    for slot in range(int(path.steps_taken.min())):
        state, guess = path.state_before(slot), path.one_step_tokens[:, slot].long()
        assert torch.equal(guess[state != denoiser.mask_id], state[state != denoiser.mask_id])
        assert not (guess == denoiser.mask_id).any()

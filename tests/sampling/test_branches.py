"""One-step completions and branches are stored for the selected steps and equal those computed
afterwards."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.core.branches import Branches
from unmask.core.config import SamplerConfig
from unmask.core.records import Needs
from unmask.functional.distribution import token_logprobs
from unmask.functional.selection import PRIORITY_RULES, RULES, candidate_steps, select_steps, selection_noise
from unmask.sampling import denoise
from unmask.sampling.branches import OneStepBuffer

MASK, EOS = 1, 2
L = 8


def rollout(denoiser, rule, num_selected, num_rows=48, **options):
    generator = torch.Generator().manual_seed(3)
    prompt = torch.randint(3, 9, (num_rows, 5), generator=generator)
    sampler = SamplerConfig(
        **({"max_completion_length": L, "num_steps": 8, "order": "low_confidence", "temperature": 1.0} | options)
    )
    needs = Needs(greedy=True, selection=(rule, num_selected))
    path = denoise(
        denoiser, prompt, torch.ones_like(prompt, dtype=torch.bool), sampler, torch.arange(num_rows), needs=needs
    )
    return path, prompt


def chosen_by_hand(path, rule, num_selected, row):
    """Return the steps of one row that a rule selects, in plain Python."""
    T = path.num_steps  # noqa: N806
    when, tokens = path.unmask_step[row].tolist(), path.tokens[row].tolist()
    entropy = {
        k: sum(path.entropy[row, i].double().item() for i in range(L) if when[i] == k) for k in set(when) if 0 <= k < T
    }
    text = [k for k, token in zip(when, tokens, strict=True) if 0 <= k < T and token != EOS]
    candidates = [k for k in sorted(entropy) if not text or k <= max(text) or rule in ("all", "entropy_sampled")]
    noise = selection_noise(path.seed[row : row + 1], T)[0].tolist()
    if rule == "entropy_sampled":
        return sampled_by_hand({k: entropy[k] for k in candidates}, num_selected, noise[0])
    if rule == "all" or len(candidates) <= num_selected:
        if rule in ("all", "low_discrepancy"):
            return candidates
        num_selected = len(candidates)
    if rule == "low_discrepancy":
        return [candidates[int((noise[0] + j) * len(candidates) / num_selected)] for j in range(num_selected)]
    key = {
        "entropy_topk": lambda k: -entropy[k],
        "lowest_entropy": lambda k: entropy[k],
        "last_k": lambda k: -k,
        "uniform": lambda k: -noise[k],
    }[rule]
    return sorted(candidates, key=lambda k: (key(k), k))[:num_selected]


def sampled_by_hand(entropy, num_selected, u):
    """Systematic sampling in proportion to 0.9 H / sum + 0.1 / N, none above 1: walk along the
    steps and stop at u, u + 1, ..."""
    num_selected = min(num_selected, len(entropy))
    total = sum(entropy.values())
    share = {k: 0.9 * h / total + 0.1 / len(entropy) for k, h in entropy.items()}
    certain: set[int] = set()
    while True:
        left = sum(share[k] for k in share if k not in certain)
        scaled = {k: share[k] * (num_selected - len(certain)) / left for k in share if k not in certain}
        new = {k for k, p in scaled.items() if p >= 1 - 1e-12}
        certain |= new
        if not new or len(certain) == len(share):
            break
    picked, walked = [], 0.0
    for k in sorted(share):
        walked += 1.0 if k in certain else scaled[k]
        if walked > u + len(picked) and len(picked) < num_selected:
            picked.append(k)
    return picked


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("num_selected", [1, 3, 8])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"block_length": 4},
        {"block_length": 2, "num_steps": 4, "order": "random"},
        {"order": "left_to_right", "guidance": 0.7, "top_k": 3},
    ],
    ids=str,
)
@pytest.mark.slow
def test_a_one_step_completion_is_the_argmax_of_the_state_before_its_step(spy, rule, num_selected, options):
    path, prompt = rollout(spy(eos=1.0), rule, num_selected, **options)
    ended = (path.unmask_step == path.num_steps).any(-1)
    assert 3 < ended.sum() < len(path)
    plain = spy(eos=1.0)
    positions = torch.arange(5, 5 + L).expand(len(path), -1)
    for slot in range(path.selected_step.shape[1]):
        step = path.selected_step[:, slot]
        state = path.state_before(step)
        with torch.no_grad():
            logits = plain(torch.cat([prompt, state], dim=1), None, positions)
            if path.sampler.guidance:
                blind = plain(torch.cat([torch.full_like(prompt, MASK), state], dim=1), None, positions)
                logits = blind + (1 + path.sampler.guidance) * (logits - blind)
        logits[..., MASK] = -torch.inf
        expected = torch.where(state == MASK, logits.argmax(-1), state)
        kept = path.one_step_tokens[:, slot]
        is_slot = step >= 0
        assert torch.equal(kept[is_slot].long(), expected[is_slot])
        assert (kept[~is_slot] == 0).all()
    for row in range(len(path)):
        selected = [k for k in path.selected_step[row].tolist() if k >= 0]
        assert selected == chosen_by_hand(path, rule, num_selected, row)


def test_a_row_that_commits_only_eos_keeps_its_steps(spy):
    path, _ = rollout(spy(eos=30.0), "entropy_topk", 2, order="random")
    assert (path.tokens == EOS).all()
    assert (path.selected_step[:, 0] >= 0).all()
    assert (path.one_step_tokens[:, 0] == EOS).all()


def test_storing_one_step_completions_does_not_change_the_path(spy):
    kept, _ = rollout(spy(eos=1.0), "entropy_topk", 3, block_length=4)
    sampler = SamplerConfig(
        max_completion_length=L, num_steps=8, order="low_confidence", temperature=1.0, block_length=4
    )
    plain = denoise(spy(eos=1.0), kept.prompt_ids, kept.prompt_mask, sampler, kept.seed)
    assert torch.equal(kept.tokens, plain.tokens)
    assert torch.equal(kept.unmask_step, plain.unmask_step)
    assert plain.selected_step is None
    assert plain.one_step_tokens is None


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
@pytest.mark.slow
def test_the_running_selection_holds_the_steps_that_are_finally_selected(rule, data):
    """Entropies are random with ties; random steps commit only EOS or nothing."""
    rows, steps = 3, data.draw(st.integers(1, 7), label="T")
    num_selected = data.draw(st.integers(1, steps), label="K")

    def table(elements, label):
        row = st.lists(elements, min_size=steps, max_size=steps)
        return torch.tensor(data.draw(st.lists(row, min_size=rows, max_size=rows), label=label))

    entropy = table(st.sampled_from([0.0, 0.25, 0.5, 1.0]), "entropy")
    # 0 commits nothing, 1 EOS only, 2 text.
    kind = table(st.sampled_from([0, 1, 2]), "kind")
    noise = table(st.sampled_from([0.1, 0.3, 0.7]), "noise").double()
    buffer = OneStepBuffer(rule, num_selected, (rows, 4), steps, torch.device("cpu"), num_completions=2)
    for k in range(steps):
        index = (kind[:, k] > 0).nonzero().squeeze(-1)
        tokens = (100 * index + k)[:, None, None].expand(-1, 2, 4)
        if len(index):
            buffer.push(
                index, torch.full_like(index, k), entropy[index, k], noise[index, k], tokens, kind[index, k] == 1
            )

    unmask_step = torch.where(kind > 0, torch.arange(steps), -1)
    is_candidate = candidate_steps(unmask_step, kind == 1, steps)
    chosen = select_steps(rule, entropy, is_candidate, num_selected, noise)
    branches = buffer.finish(chosen)
    expected = torch.where(chosen >= 0, 100 * torch.arange(rows).unsqueeze(-1) + chosen, 0)
    assert torch.equal(branches, expected.int()[..., None, None].expand(-1, -1, 2, 4))


@pytest.mark.parametrize("rule", PRIORITY_RULES)
def test_the_buffer_has_room_for_k_completions_instead_of_t(rule):
    buffer = OneStepBuffer(rule, 2, (5, L), 64, torch.device("cpu"))
    assert buffer.capacity == 2
    assert OneStepBuffer("all", 2, (5, L), 64, torch.device("cpu")).capacity == 64


def test_a_step_that_is_not_in_the_buffer_is_an_error():
    buffer = OneStepBuffer("entropy_topk", 1, (1, L), 4, torch.device("cpu"))
    row, tokens = torch.zeros(1, dtype=torch.long), torch.zeros(1, 1, L, dtype=torch.long)
    for k, entropy in enumerate([0.5, 1.0]):
        buffer.push(row, row + k, torch.tensor([entropy]), torch.zeros(1).double(), tokens, torch.tensor([False]))
    with pytest.raises(ValueError, match="same rule and K"):
        buffer.finish(torch.tensor([[0]]))


# Branches of the stored states


def branched(denoiser, branches, rule="all", num_rows=48, **options):
    generator = torch.Generator().manual_seed(3)
    prompt = torch.randint(3, 9, (num_rows, 5), generator=generator)
    sampler = SamplerConfig(
        **({"max_completion_length": L, "num_steps": 4, "order": "low_confidence", "temperature": 1.0} | options)
    )
    needs = Needs(branches=branches, selection=(rule, 2))
    is_prompt = torch.ones_like(prompt, dtype=torch.bool)
    return denoise(denoiser, prompt, is_prompt, sampler, torch.arange(num_rows), needs=needs)


@pytest.mark.parametrize("options", [{}, {"block_length": 4}], ids=str)
@pytest.mark.parametrize("finish", ["greedy", "sampled"])
def test_a_branch_of_scope_step_changes_only_the_committed_positions(spy, finish, options):
    path = branched(spy(), Branches(5, "step", finish, with_taken=True), **options)
    row, slot = (path.selected_step >= 0).nonzero(as_tuple=True)
    step = path.selected_step[row, slot].unsqueeze(-1)
    branches, when = path.branch_tokens[row, slot].long(), path.unmask_step[row]
    committed, later = when == step, when > step
    shown = ~committed & ~later
    assert branches.shape[1] == 6
    tokens = path.tokens[row].unsqueeze(1).expand_as(branches)
    is_shown, is_committed, is_later = (w.unsqueeze(1).expand_as(branches) for w in (shown, committed, later))
    assert torch.equal(branches[is_shown], tokens[is_shown])
    # The first holds the committed tokens; the draws differ from them and from each other.
    assert torch.equal(branches[:, 0][committed], path.tokens[row][committed])
    assert (branches[is_committed] != tokens[is_committed]).float().mean() > 0.2
    # All have the same tokens elsewhere: the most likely ones, or one shared sample.
    rest = branches[:, :1].expand_as(branches)
    assert torch.equal(branches[is_later], rest[is_later])
    greedy = path.one_step_tokens[row, slot].long()
    assert torch.equal(branches[:, 0][later], greedy[later]) == (finish == "greedy")
    assert (branches != MASK).all()


@pytest.mark.parametrize(("scope", "options"), [("step", {}), ("all", {}), ("all", {"top_k": 3, "temperature": 0.7})])
def test_branches_are_drawn_from_the_policys_distribution_at_the_state(spy, scope, options):
    denoiser = spy()
    path = branched(denoiser, Branches(400, scope), num_rows=4, **options)
    step = path.selected_step[:, 1]
    state = path.state_before(step)
    with torch.no_grad():
        logits = denoiser(torch.cat([path.prompt_ids, state], 1), None, torch.arange(5, 5 + L).expand(4, -1))
    logits[..., MASK] = -torch.inf
    expected = token_logprobs(logits, path.sampler.temperature, path.sampler.top_k).exp()
    drawn = state == MASK if scope == "all" else path.unmask_step == step.unsqueeze(-1)
    branches = path.branch_tokens[:, 1].long()
    frequency = torch.nn.functional.one_hot(branches, logits.shape[-1]).double().mean(1)
    gap = (frequency - expected)[drawn].abs()
    assert (gap < 5 * (expected[drawn] * (1 - expected[drawn]) / 400).sqrt() + 1e-9).all()
    if scope == "step":
        still = (state == MASK) & ~drawn
        assert torch.equal(branches[:, 0][still], path.one_step_tokens[:, 1].long()[still])


def test_the_comparison_with_the_distribution_can_fail(spy):
    path = branched(spy(), Branches(400, "all", "greedy"), num_rows=4, temperature=0.7)
    other = branched(spy(), Branches(400, "all", "greedy"), num_rows=4, temperature=1.5)
    first = [torch.nn.functional.one_hot(p.branch_tokens[:, 0].long(), 9).double().mean(1) for p in (path, other)]
    assert (first[0] - first[1]).abs().max() > 0.15


def test_drawing_branches_does_not_change_the_path(spy):
    path = branched(spy(), Branches(5, "all"))
    plain = denoise(
        spy(),
        path.prompt_ids,
        path.prompt_mask,
        SamplerConfig(max_completion_length=L, num_steps=4, order="low_confidence", temperature=1.0),
        path.seed,
    )
    assert torch.equal(path.tokens, plain.tokens)
    assert torch.equal(path.unmask_step, plain.unmask_step)
    assert plain.branch_tokens is None

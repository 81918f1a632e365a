"""Tests of each order by hand, and of the positions that the loop commits."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from scipy.stats import chisquare

from unmask.core.config import SamplerConfig
from unmask.sampling import ORDERS, denoise
from unmask.sampling.orders import Proposal

INF = float("inf")


def proposal(probabilities, tokens, positions=None, seed=0, step=0):
    """Return one row of n positions from the probabilities [n, V] of all tokens but MASK, which is
    put in front."""
    p = torch.tensor([probabilities])
    logits = torch.cat([torch.full((*p.shape[:-1], 1), -INF), p.log() + 3.0], dim=-1)
    positions = torch.arange(p.shape[1]) if positions is None else torch.tensor(positions)
    return Proposal(
        logits, torch.tensor([tokens]), positions.unsqueeze(0), torch.tensor([seed]), torch.tensor([[step]])
    )


P = [[0.6, 0.3, 0.1], [0.5, 0.5, 0.0], [0.55, 0.25, 0.2], [0.4, 0.2, 0.4]]


def test_low_confidence_ranks_by_the_probability_of_the_proposed_token():
    priority = ORDERS["low_confidence"](proposal(P, [3, 1, 2, 1]))
    torch.testing.assert_close(priority.exp(), torch.tensor([[0.1, 0.5, 0.25, 0.4]]))


def test_margin_ranks_by_the_lead_of_the_most_likely_token():
    for tokens in ([3, 1, 2, 1], [1, 1, 1, 1]):
        priority = ORDERS["margin"](proposal(P, tokens))
        torch.testing.assert_close(priority, torch.tensor([[0.3, 0.0, 0.3, 0.0]]))


def test_entropy_gives_the_most_certain_position_the_highest_priority():
    for tokens in ([3, 1, 2, 1], [1, 1, 1, 1]):
        priority = ORDERS["entropy"](proposal(P, tokens))
        expected = -torch.distributions.Categorical(probs=torch.tensor(P)).entropy()
        torch.testing.assert_close(priority, expected.unsqueeze(0))


def test_max_probability_ranks_by_the_most_likely_token_whatever_was_drawn():
    for tokens in ([3, 1, 2, 1], [1, 1, 1, 1]):
        priority = ORDERS["max_probability"](proposal(P, tokens))
        torch.testing.assert_close(priority.exp(), torch.tensor([[0.6, 0.5, 0.55, 0.4]]))


def test_left_to_right_gives_earlier_positions_higher_priority():
    priority = ORDERS["left_to_right"](proposal(P, [1, 1, 1, 1], positions=[2, 9, 4, 7]))
    assert priority.argsort(descending=True).tolist() == [[0, 2, 3, 1]]


def test_random_changes_with_step_and_seed_and_ignores_model_and_tokens():
    one = ORDERS["random"](proposal(P, [1, 1, 1, 1], seed=5, step=2))
    assert torch.equal(one, ORDERS["random"](proposal(P[::-1], [3, 2, 2, 1], seed=5, step=2)))
    for seed, step in ((5, 3), (6, 2)):
        assert not torch.equal(one, ORDERS["random"](proposal(P, [1, 1, 1, 1], seed=seed, step=step)))


def test_random_commits_every_set_of_positions_equally_often(table_denoiser):
    rows, sampler = 12_000, SamplerConfig(max_completion_length=4, num_steps=2, order="random")
    prompt = torch.zeros(rows, 1, dtype=torch.long)
    toy = table_denoiser(2, 4, eos_id=99, seed=0)
    path = denoise(toy, prompt, torch.ones_like(prompt, dtype=torch.bool), sampler, torch.arange(rows))
    first = (path.unmask_step == 0).int() @ torch.tensor([1, 2, 4, 8], dtype=torch.int32)
    sets = [sum(1 << i for i in pair) for pair in itertools.combinations(range(4), 2)]
    counts = [int((first == chosen).sum()) for chosen in sets]
    assert sum(counts) == rows
    assert chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_confidence_and_entropy_use_temperature_one_at_any_sampling_temperature(table_denoiser, temperature):
    # Position 0 is an even choice of two tokens, position 1 has one likely token. Flattened at
    # temperature 4, position 1 is the more uncertain, and even its likeliest token has less than
    # 1/2.
    toy = table_denoiser(3, 2, eos_id=99, seed=0)
    with torch.no_grad():
        p = torch.tensor([[0.5, 0.5, 1e-9, 1.0], [0.8, 0.1, 0.1, 1.0]])
        toy.table.copy_(p.log().expand_as(toy.table))
    prompt = torch.zeros(500, 1, dtype=torch.long)
    mask = torch.ones_like(prompt, dtype=torch.bool)
    sampler = SamplerConfig(max_completion_length=2, num_steps=2, order="entropy", temperature=temperature)
    assert denoise(toy, prompt, mask, sampler, torch.arange(500)).unmask_step.tolist() == [[1, 0]] * 500
    sampler = sampler.model_copy(update={"order": "low_confidence"})
    path = denoise(toy, prompt, mask, sampler, torch.arange(500))
    second_first = path.unmask_step[:, 1] == 0
    likeliest = 0.8 ** (1 / temperature) / (0.8 ** (1 / temperature) + 2 * 0.1 ** (1 / temperature))
    assert int(second_first.sum()) == pytest.approx(500 * likeliest, abs=40)
    assert (path.tokens[second_first, 1] == 0).all()


@pytest.mark.parametrize(
    ("order", "expected"), [("left_to_right", [0, 0, 1, 1]), ("margin", [1, 0, 1, 0]), ("entropy", [1, 0, 1, 0])]
)
def test_the_positions_of_highest_priority_are_committed_first(table_denoiser, order, expected):
    toy = table_denoiser(3, 4, eos_id=99, seed=0)
    with torch.no_grad():
        # In every state positions 1 and 3 are certain, and 0 and 2 are not.
        sure, unsure = torch.tensor([3.0, 0.0, 0.0, 0.0]), torch.tensor([0.5, 0.0, 0.0, 0.0])
        toy.table.copy_(torch.stack([unsure, sure, unsure, sure]).expand_as(toy.table))
    prompt = torch.zeros(3, 1, dtype=torch.long)
    sampler = SamplerConfig(max_completion_length=4, num_steps=2, order=order)
    path = denoise(toy, prompt, torch.ones_like(prompt, dtype=torch.bool), sampler, torch.arange(3))
    assert path.unmask_step.tolist() == [expected] * 3


def test_ties_go_to_the_earlier_position(table_denoiser):
    toy = table_denoiser(3, 4, eos_id=99, seed=0)
    with torch.no_grad():
        toy.table.zero_()
    prompt = torch.zeros(3, 1, dtype=torch.long)
    sampler = SamplerConfig(max_completion_length=4, num_steps=4, order="low_confidence")
    path = denoise(toy, prompt, torch.ones_like(prompt, dtype=torch.bool), sampler, torch.arange(3))
    assert path.unmask_step.tolist() == [[0, 1, 2, 3]] * 3


@pytest.mark.slow
def test_plackett_luce_adds_noise_to_the_log_probability_of_the_most_likely_token(table_denoiser):
    many = [dataclasses.replace(proposal(P, [3, 1, 2, 1], seed=seed), temperature=0.5) for seed in range(4000)]
    first = torch.cat([ORDERS["plackett_luce"](one).argmax(-1) for one in many])
    # In proportion to p^(1/τ) = p², whatever token was proposed.
    weight = torch.tensor([0.6, 0.5, 0.55, 0.4]) ** 2
    expected = 4000 * weight / weight.sum()
    assert chisquare(torch.bincount(first, minlength=4), expected, sum_check=False).pvalue > 1e-3
    assert chisquare(torch.bincount(first, minlength=4), torch.full((4,), 1000.0)).pvalue < 1e-6
    again = dataclasses.replace(proposal(P, [1, 1, 1, 1], seed=7), temperature=0.5)
    assert torch.equal(ORDERS["plackett_luce"](again), ORDERS["plackett_luce"](many[7]))


def test_learned_adds_the_scores_of_the_head_to_plackett_luce():
    drawn = dataclasses.replace(proposal(P, [1, 1, 1, 1], seed=7), temperature=0.5)
    score = torch.tensor([[0.5, -1.0, 0.0, 2.0]])
    priority = ORDERS["plackett_luce"](drawn)
    assert torch.equal(ORDERS["learned"](dataclasses.replace(drawn, score=torch.zeros(1, 4))), priority)
    torch.testing.assert_close(ORDERS["learned"](dataclasses.replace(drawn, score=score)), priority + score)


def test_learned_is_greedy_without_noise_at_temperature_0():
    score = torch.tensor([[0.5, -1.0, 0.0, 2.0]])
    greedy = [
        dataclasses.replace(proposal(P, [1, 1, 1, 1], seed=seed), temperature=0.5, score=score, is_greedy=True)
        for seed in (0, 1)
    ]
    for one in greedy:
        expected = 2 * torch.tensor([[0.6, 0.5, 0.55, 0.4]]).log() + score
        torch.testing.assert_close(ORDERS["learned"](one).float(), expected)


def test_at_small_temperature_plackett_luce_commits_the_most_confident_first():
    cold = dataclasses.replace(proposal(P, [1, 1, 1, 1]), temperature=1e-4)
    assert ORDERS["plackett_luce"](cold)[0].argsort(descending=True).tolist() == [0, 2, 1, 3]

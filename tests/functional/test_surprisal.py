"""Tests of the selection of steps by surprisal: its scores, the distribution of its draws, and its
inverse weights."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy.stats import chisquare

from unmask.functional import surprisal
from unmask.functional.selection import select_steps, selection_noise
from unmask.functional.surprisal import mean_surprisal, surprisal_mass, surprisal_priority, surprisal_steps

LOGPROB = torch.tensor([[-0.5, -1.5, -3.0, -0.25, -2.0]])
STEP = torch.tensor([[0, 2, 1, 2, -1]])
SCORES = [0.5, 3.0, 0.875]


def chosen(num_selected, temperature, seeds, *, with_inverse=False, is_eos=None):
    """Return the steps and weights of rows that differ in their seeds only."""
    rows = len(seeds)
    is_eos = torch.zeros(rows, 5, dtype=torch.bool) if is_eos is None else is_eos
    path = (LOGPROB.expand(rows, -1), STEP.expand(rows, -1), is_eos, seeds, 4)
    return surprisal_steps(num_selected, temperature, *path, with_inverse=with_inverse)


def test_the_score_of_a_step_is_the_mean_over_the_tokens_that_it_committed():
    found = mean_surprisal(LOGPROB, STEP, 4)
    assert found.tolist() == [pytest.approx([*SCORES, 0.0])]
    assert found.dtype == torch.float64
    # A sum would rank steps by their size: two tokens of 0.5 are not less likely than one of 0.9.
    of_one, of_two = torch.tensor([[-0.9, -0.5, -0.5]]), torch.tensor([[0, 1, 1]])
    assert mean_surprisal(of_one, of_two, 2).argmax() == 0


def test_the_mass_is_a_softmax_over_the_candidates():
    scores, is_candidate = torch.tensor([[1.0, 2.0, 5.0, 2.0]]), torch.tensor([[True, True, False, True]])
    weights = [math.exp(1 / 0.7), math.exp(2 / 0.7), 0.0, math.exp(2 / 0.7)]
    expected = torch.tensor([[w / sum(weights) for w in weights]], dtype=torch.float64)
    torch.testing.assert_close(surprisal_mass(scores, is_candidate, 0.7), expected, rtol=0, atol=1e-7)
    assert surprisal_mass(scores, is_candidate, 0.0).tolist() == [[0.0, 0.5, 0.0, 0.5]]
    assert surprisal_mass(scores, is_candidate, math.inf).tolist() == [pytest.approx([1 / 3, 1 / 3, 0.0, 1 / 3])]
    nothing = torch.zeros(1, 4, dtype=torch.bool)
    assert not surprisal_mass(scores, nothing, 0.7).any()
    assert not surprisal_mass(scores, nothing, 0.0).any()


def test_the_draws_have_the_probabilities_of_draws_one_after_the_other():
    steps, weight = chosen(2, 0.8, torch.arange(20_000))
    assert torch.equal(weight, torch.ones_like(weight))
    count = torch.bincount(steps[:, 0] * 3 + steps[:, 1], minlength=9)

    def expected(temperature):
        mass = [math.exp(s / temperature) for s in SCORES]
        table = torch.zeros(9, dtype=torch.float64)
        for first, second in itertools.permutations(range(3), 2):
            table[first * 3 + second] = mass[first] / sum(mass) * mass[second] / (sum(mass) - mass[first])
        return 20_000 * table

    is_possible = expected(1.0) > 0
    assert not count[~is_possible].any()
    assert chisquare(count[is_possible], expected(0.8)[is_possible], sum_check=False).pvalue > 1e-3
    assert chisquare(count[is_possible], expected(1.0)[is_possible], sum_check=False).pvalue < 1e-6, "it can fail"


def test_without_temperature_the_steps_of_largest_surprisal_are_taken():
    steps, _ = chosen(2, 0.0, torch.arange(50))
    assert torch.equal(steps, torch.tensor([[1, 2]]).expand(50, -1))


def test_an_infinite_temperature_is_the_uniform_rule():
    seeds = torch.arange(200)
    steps, _ = chosen(2, math.inf, seeds)
    is_candidate = torch.tensor([[True, True, True, False]]).expand(200, -1)
    uniform = select_steps("uniform", torch.zeros(200, 4), is_candidate, 2, selection_noise(seeds, 4))
    assert torch.equal(steps, uniform)
    assert len({tuple(row) for row in steps.tolist()}) == 6


def test_the_same_seed_draws_the_same_steps_whatever_the_batch():
    seeds = torch.arange(40)
    whole, _ = chosen(2, 1.0, seeds)
    alone = torch.cat([chosen(2, 1.0, seeds[i : i + 1])[0] for i in range(40)])
    assert torch.equal(whole, alone)


def test_a_draw_of_zero_leaves_a_candidate_in_the_ranking():
    priority = surprisal_priority(torch.zeros(1, 3), 1.0, torch.zeros(1, 3, dtype=torch.float64))
    assert priority.isfinite().all()


def test_steps_after_the_text_are_candidates_only_with_inverse_weights():
    is_eos = torch.tensor([[False, True, True, True, False]]).expand(300, -1)
    steps, _ = chosen(3, 1.0, torch.arange(300), is_eos=is_eos)
    assert set(steps.flatten().tolist()) == {0, -1}
    steps, weight = chosen(3, 1.0, torch.arange(300), is_eos=is_eos, with_inverse=True)
    assert torch.equal(steps.sort(-1).values, torch.tensor([[0, 1, 2]]).expand(300, -1))
    assert weight.flatten().tolist() == pytest.approx([1.0] * 900)


@pytest.mark.parametrize("num_selected", [1, 2])
@pytest.mark.parametrize("temperature", [0.0, 0.5, 2.0])
def test_weighted_by_the_inverse_every_step_counts_once_on_average(num_selected, temperature, monkeypatch):
    points = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    monkeypatch.setattr(surprisal, "selection_noise", lambda seed, width: points.unsqueeze(-1).expand(-1, width))
    steps, weight = chosen(num_selected, temperature, torch.arange(4000), with_inverse=True)
    total = torch.zeros(4, dtype=torch.float64).index_add(0, steps.flatten(), weight.flatten()) / 4000
    # The grid of the draw u is 1/4000 wide, and a weight is at most 3 / (0.1 K).
    assert total.tolist() == pytest.approx([1.0, 1.0, 1.0, 0.0], abs=0.02)
    plain = torch.bincount(steps.flatten(), minlength=4)[:3] / 4000 * 3 / num_selected
    assert (plain - 1).abs().max() > 0.2, "without the weights the steps of large surprisal count more"


def test_a_negative_temperature_is_refused():
    scores = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="temperature must be 0 or more; got -1"):
        surprisal_mass(scores, torch.ones(1, 2, dtype=torch.bool), -1.0)
    with pytest.raises(ValueError, match="temperature must be 0 or more; got -1"):
        surprisal_priority(scores, -1.0, scores.double())

"""Tests of step selection: each rule by hand, the candidates, and the inclusion probabilities."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.shapes import unchecked
from unmask.functional.selection import (
    PRIORITY_RULES,
    RULES,
    candidate_steps,
    inclusion_probability,
    inverse_inclusion,
    select_steps,
    selected_path_steps,
    selection_noise,
    step_priority,
    step_sum,
)

ENTROPY = torch.tensor([[0.5, 3.0, 1.0, 3.0, 0.2, 9.0]])
IS_CANDIDATE = torch.tensor([[True, True, True, True, True, False]])
NOISE = torch.tensor([[0.3, 0.1, 0.9, 0.2, 0.8, 0.99]], dtype=torch.float64)


def test_step_sum_adds_the_values_of_each_step_and_ignores_uncommitted_positions():
    values = torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0], [1.0, 1.0, 1.0, 1.0, float("nan")]])
    step = torch.tensor([[0, 2, 0, -1, 3], [2, 2, 1, 2, 3]], dtype=torch.int32)
    assert step_sum(values, step, num_steps=3).tolist() == [[5.0, 0.0, 2.0], [0.0, 1.0, 3.0]]


def test_step_sum_passes_the_gradient_to_the_counted_positions_only():
    values = torch.ones(1, 4, requires_grad=True)
    sums = step_sum(values, torch.tensor([[1, -1, 0, 2]]), num_steps=2)
    (sums * torch.tensor([[10.0, 100.0]])).sum().backward()
    assert values.grad.tolist() == [[100.0, 0.0, 10.0, 0.0]]


@pytest.mark.parametrize(
    ("given_dtype", "dtype"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_step_sum_adds_in_float32_or_better(given_dtype, dtype):
    # 300 ones: a bfloat16 sum would stop at 256.
    sums = step_sum(torch.ones(1, 300, dtype=given_dtype), torch.zeros(1, 300, dtype=torch.int32), num_steps=1)
    assert sums.dtype == dtype
    assert sums.item() == 300


def test_step_sum_refuses_shapes_that_disagree():
    with pytest.raises(ValueError, match=r"\(1, 3\), \(1, 4\)"):
        unchecked(step_sum)(torch.zeros(1, 3), torch.zeros(1, 4, dtype=torch.int32), num_steps=2)


def test_candidates_committed_a_token_and_end_with_the_last_step_that_committed_text():
    step = torch.tensor([[0, 1, 2, 4, 5, 6, -1]])
    is_eos = torch.tensor([[False, True, False, False, True, True, False]])
    # Step 1 committed EOS but text came later; 3 committed nothing; 5 to 7 came after the last
    # text; -1 was given.
    assert candidate_steps(step, is_eos, num_steps=8).int().tolist() == [[1, 1, 1, 0, 1, 0, 0, 0]]


def test_a_step_that_committed_text_beside_eos_counts_as_text():
    candidates = candidate_steps(torch.tensor([[0, 1, 1, 2]]), torch.tensor([[False, True, False, True]]), num_steps=3)
    assert candidates.int().tolist() == [[1, 1, 0]]


def test_an_empty_answer_keeps_all_its_steps_and_a_row_that_committed_nothing_has_none():
    step = torch.tensor([[0, 2, 2, 4], [-1, -1, 4, 4]])
    is_eos = torch.tensor([[True, True, True, False], [False, False, True, True]])
    # T = 4: the fourth token of the first row was filled in after its end and must not count as
    # text.
    assert candidate_steps(step, is_eos, num_steps=4).int().tolist() == [[1, 0, 1, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("rule", "num_selected", "steps"),
    [
        ("entropy_topk", 3, [1, 3, 2]),  # 1 and 3 tie: the earlier first; 5 is no candidate
        ("lowest_entropy", 2, [4, 0]),
        ("last_k", 3, [4, 3, 2]),
        ("uniform", 3, [2, 4, 0]),  # the largest noise among candidates
        ("low_discrepancy", 2, [0, 3]),  # floor(0.3 * 5/2) = 0, floor(1.3 * 5/2) = 3
        ("low_discrepancy", 3, [0, 2, 3]),  # floor(0.5), floor(2.17), floor(3.83)
        ("all", 1, [0, 1, 2, 3, 4, -1]),
    ],
)
def test_each_rule_picks_the_steps_worked_out_by_hand(rule, num_selected, steps):
    assert select_steps(rule, ENTROPY, IS_CANDIDATE, num_selected, NOISE).tolist() == [steps]


def test_low_discrepancy_numbers_the_candidates_and_not_the_steps():
    is_candidate = torch.tensor([[False, True, False, True, True, True]])
    # N = 4, K = 2, u = 0.3: candidates number 0 and 2, which are steps 1 and 4.
    assert select_steps("low_discrepancy", ENTROPY, is_candidate, 2, NOISE).tolist() == [[1, 4]]


@pytest.mark.parametrize("rule", ["entropy_topk", "lowest_entropy", "last_k"])
def test_equal_priorities_go_to_the_earlier_step(rule):
    num_steps = 64
    order = select_steps(
        rule,
        torch.full((1, num_steps), 0.7),
        torch.ones(1, num_steps, dtype=torch.bool),
        num_steps,
        torch.zeros(1, num_steps),
    )
    expected = list(range(num_steps))
    assert order.tolist() == [expected[::-1] if rule == "last_k" else expected]


def test_all_keeps_the_order_of_time_on_long_trajectories():
    is_candidate = torch.arange(500).remainder(3).ne(1).unsqueeze(0)
    (row,) = select_steps("all", torch.zeros(1, 500), is_candidate, 1, torch.zeros(1, 500)).tolist()
    expected = [k for k in range(500) if k % 3 != 1]
    assert row == expected + [-1] * (500 - len(expected))


@pytest.mark.parametrize("rule", ["entropy_sampled", "low_discrepancy"])
def test_the_largest_draw_below_one_selects_every_candidate_too(rule):
    noise = torch.full((1, 3), math.nextafter(1.0, 0.0), dtype=torch.float64)
    (row,) = select_steps(rule, torch.arange(3.0).unsqueeze(0), torch.ones(1, 3, dtype=torch.bool), 3, noise).tolist()
    assert row == [0, 1, 2]


@settings(max_examples=50, deadline=None)
@given(data=st.data(), rule=st.sampled_from(RULES), num_selected=st.integers(1, 12), num_steps=st.integers(1, 10))
def test_slots_hold_distinct_candidates_and_only_missing_candidates_leave_slots_empty_at_the_end(
    data, rule, num_selected, num_steps
):
    booleans = data.draw(st.lists(st.booleans(), min_size=num_steps, max_size=num_steps))
    noise = data.draw(
        st.lists(st.floats(0, 1, exclude_max=True), min_size=num_steps, max_size=num_steps).map(
            lambda row: torch.tensor([row], dtype=torch.float64)
        )
    )
    entropy = torch.arange(num_steps, dtype=torch.float32).remainder(3).unsqueeze(0)
    (row,) = select_steps(rule, entropy, torch.tensor([booleans]), num_selected, noise).tolist()
    candidates = [k for k, is_in in enumerate(booleans) if is_in]
    slots = num_steps if rule == "all" else num_selected
    filled = min(slots, len(candidates))
    assert len(row) == slots
    assert all(k in candidates for k in row[:filled])
    assert len(set(row[:filled])) == filled
    assert row[filled:] == [-1] * (slots - filled)


@pytest.mark.parametrize("noise", [0.0, 1e-17, 0.5, 1 - 2**-53])
@pytest.mark.parametrize("count", [1, 3, 7, 8, 49])
def test_low_discrepancy_takes_no_candidate_twice_at_extreme_noise(noise, count):
    # In floating point (1 - 2**-53) + j rounds up to j + 1, and the last two slots would coincide.
    for num_selected in range(1, count + 1):
        steps = select_steps(
            "low_discrepancy",
            torch.zeros(1, count),
            torch.ones(1, count, dtype=torch.bool),
            num_selected,
            torch.full((1, count), noise, dtype=torch.float64),
        )
        assert steps.unique().numel() == num_selected
        assert steps.min() >= 0


@pytest.mark.parametrize(("count", "num_selected"), [(7, 3), (8, 4), (5, 5), (10, 7)])
def test_low_discrepancy_includes_each_candidate_with_probability_k_over_n(count, num_selected):
    grid = 10_000
    noise = ((torch.arange(grid, dtype=torch.float64) + 0.5) / grid).unsqueeze(-1).expand(grid, count)
    arguments = (torch.zeros(grid, count), torch.ones(grid, count, dtype=torch.bool), num_selected)
    steps = select_steps("low_discrepancy", *arguments, noise)
    share = torch.bincount(steps.flatten(), minlength=count) / grid
    # A candidate is selected on a union of intervals of u; a grid misses at most one point at each
    # end.
    torch.testing.assert_close(share, torch.full((count,), num_selected / count), rtol=0, atol=2 * num_selected / grid)
    # Negative control: without the draw, the same spacing always excludes some candidates.
    if num_selected < count:
        fixed = select_steps("low_discrepancy", *arguments, torch.zeros_like(noise))
        assert torch.bincount(fixed.flatten(), minlength=count).min() == 0


def test_uniform_includes_each_candidate_with_probability_k_over_n():
    count, draws = 5, 20_000
    noise = torch.rand(draws, count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    arguments = (torch.arange(count).float().expand(draws, count), torch.ones(draws, count, dtype=torch.bool), 2)
    share = torch.bincount(select_steps("uniform", *arguments, noise).flatten(), minlength=count) / draws
    assert (share - 0.4).abs().max() < 4 * (0.4 * 0.6 / draws) ** 0.5
    control = torch.bincount(select_steps("entropy_topk", *arguments, noise).flatten(), minlength=count) / draws
    assert control.tolist() == [0, 0, 0, 1, 1]


def test_rows_are_selected_independently_of_each_other():
    generator = torch.Generator().manual_seed(1)
    entropy = torch.rand(6, 9, generator=generator)
    is_candidate = torch.rand(6, 9, generator=generator) < 0.6
    noise = torch.rand(6, 9, generator=generator, dtype=torch.float64)
    for rule in RULES:
        batch = select_steps(rule, entropy, is_candidate, 4, noise)
        for i in range(6):
            single = select_steps(rule, entropy[i : i + 1], is_candidate[i : i + 1], 4, noise[i : i + 1])
            assert torch.equal(batch[i : i + 1], single)


def test_a_running_top_k_of_the_priority_finds_the_steps_that_the_rule_selects():
    generator = torch.Generator().manual_seed(2)
    entropy = torch.rand(3, 12, generator=generator)
    noise = torch.rand(3, 12, generator=generator, dtype=torch.float64)
    for rule in PRIORITY_RULES:
        best: list[list[tuple[float, int]]] = [[] for _ in range(3)]
        for step in range(12):
            priority = step_priority(rule, entropy[:, step], step, noise[:, step])
            for row in range(3):
                best[row] = sorted([*best[row], (-priority[row].item(), step)])[:4]
        expected = [[step for _, step in row] for row in best]
        assert select_steps(rule, entropy, torch.ones(3, 12, dtype=torch.bool), 4, noise).tolist() == expected


def test_priorities_are_the_given_numbers_in_float64():
    entropy, noise = torch.tensor([0.1, 0.2]), torch.tensor([0.3, 0.4], dtype=torch.float64)
    assert step_priority("entropy_topk", entropy, 5, noise).tolist() == entropy.double().tolist()
    assert step_priority("lowest_entropy", entropy, 5, noise).tolist() == (-entropy.double()).tolist()
    assert step_priority("last_k", entropy, 5, noise).tolist() == [5.0, 5.0]
    assert step_priority("last_k", entropy, torch.tensor([3, 4]), noise).tolist() == [3.0, 4.0]
    assert step_priority("uniform", entropy, 5, noise).tolist() == [0.3, 0.4]
    assert step_priority("last_k", entropy, 5, noise).dtype == torch.float64


@pytest.mark.parametrize("rule", ["low_discrepancy", "all", "entropy"])
def test_rules_without_a_priority_are_refused(rule):
    with pytest.raises(ValueError, match=f'rule "{rule}" has no priority'):
        step_priority(rule, torch.zeros(1), 0, torch.zeros(1))


def test_the_selection_of_a_finished_path_by_hand():
    unmask_step = torch.tensor([[0, 1, 1, 2, 3, -1]], dtype=torch.int32)
    entropy = torch.tensor([[0.9, 0.5, 0.6, 0.2, 5.0, 9.0]])
    is_eos = torch.tensor([[False, False, False, False, True, False]])
    # H = 0.9, 1.1, 0.2, 5.0; step 3 committed only EOS after the text, and the last token was
    # given.
    for rule, steps in (("entropy_topk", [1, 0]), ("lowest_entropy", [2, 0]), ("last_k", [2, 1])):
        chosen = selected_path_steps((rule, 2), unmask_step, entropy, is_eos, torch.tensor([5]), num_steps=4)
        assert chosen.tolist() == [steps]


def test_the_noise_of_a_row_depends_only_on_its_seed():
    noise = selection_noise(torch.tensor([3, 4]), 50)
    assert torch.equal(noise[1:], selection_noise(torch.tensor([4]), 50))
    assert torch.equal(noise[:, :20], selection_noise(torch.tensor([3, 4]), 20))
    assert noise.flatten().unique().numel() == 100


def test_unknown_rules_and_impossible_arguments_are_refused():
    with pytest.raises(ValueError, match=r'unknown rule "entropy"\. Available: entropy_topk, entropy_sampled, uniform'):
        select_steps("entropy", ENTROPY, IS_CANDIDATE, 1, NOISE)
    with pytest.raises(ValueError, match="num_selected must be at least 1; got 0"):
        select_steps("uniform", ENTROPY, IS_CANDIDATE, 0, NOISE)
    with pytest.raises(ValueError, match=r"\(1, 6\), \(1, 5\), \(1, 6\)"):
        unchecked(select_steps)("uniform", ENTROPY, IS_CANDIDATE[:, :5], 1, NOISE)


# Sampling in proportion to entropy


@settings(max_examples=100, deadline=None)
@given(
    entropy=st.lists(st.floats(0, 5), min_size=1, max_size=8),
    num_selected=st.integers(1, 9),
    floor=st.floats(0.01, 1),
)
def test_inclusion_probabilities_sum_to_k_are_at_most_one_and_rise_with_entropy(entropy, num_selected, floor):
    entropy = torch.tensor([entropy], dtype=torch.float64)
    is_candidate = torch.ones_like(entropy, dtype=torch.bool)
    pi = inclusion_probability(entropy, is_candidate, num_selected, floor)[0]
    count = entropy.shape[1]
    assert float(pi.sum()) == pytest.approx(min(num_selected, count), abs=1e-9)
    assert (pi <= 1).all()
    assert (pi >= min(1.0, floor * num_selected / count) - 1e-9).all(), "the floor bounds the weights"
    order = entropy[0].argsort()
    assert (pi[order].diff() > -1e-9).all()


def test_sampled_steps_are_included_with_their_probability():
    entropy = torch.tensor([[0.0, 2.0, 0.5, 1.0, 0.25]])
    is_candidate = torch.tensor([[True, True, True, True, False]])
    pi = inclusion_probability(entropy, is_candidate, 2)[0]
    noise = ((torch.arange(10_000) + 0.5) / 10_000).double()[:, None].expand(-1, 5)
    steps = select_steps("entropy_sampled", entropy.expand(10_000, -1), is_candidate.expand(10_000, -1), 2, noise)
    assert (steps[:, 0] < steps[:, 1]).all(), "two different steps, in order of time"
    frequency = torch.nn.functional.one_hot(steps, 5).sum(1).double().mean(0)
    torch.testing.assert_close(frequency, pi, rtol=0, atol=2e-4)
    assert abs(float(frequency[1] - frequency[0])) > 0.5, "not uniform"


def test_inverse_inclusion_makes_the_sum_over_selected_steps_unbiased():
    unmask_step = torch.tensor([[0, 1, 2, 3, 3]])
    entropy = torch.tensor([[0.1, 2.0, 0.5, 0.6, 0.4]])
    points = ((torch.arange(20_000) + 0.5) / 20_000).double()
    joint = torch.tensor([[0.1, 2.0, 0.5, 1.0]])
    noise = points[:, None].expand(-1, 4)
    every = torch.ones(20_000, 4, dtype=torch.bool)
    steps = select_steps("entropy_sampled", joint.expand(20_000, -1), every, 2, noise)
    weight = inverse_inclusion(steps, 2, unmask_step.expand(20_000, -1), entropy.expand(20_000, -1), 4)
    quantity = torch.tensor([3.0, -1.0, 10.0, 0.5]).double()
    kept = (weight * quantity[steps]).sum(-1).mean()
    assert float(kept) == pytest.approx(float(quantity.sum()), abs=0.01)
    assert abs(float(quantity[steps].sum(-1).mean() * 2) - float(quantity.sum())) > 1, "without the weights it is not"


def test_a_floor_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"floor must be in \(0, 1\]; got 0"):
        inclusion_probability(torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool), 1, floor=0.0)

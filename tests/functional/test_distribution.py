"""Tests of the token distribution: supports and gradients by hand, and frequencies of draws."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.shapes import unchecked
from unmask.functional.distribution import centred, sample_tokens, sample_with_logprobs, token_entropy, token_logprobs
from unmask.functional.noise import counter_uniform

INF = float("inf")
ALMOST_ONE = 0.9999999999999999

logit_rows = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=9).map(torch.tensor)


def support_of(logprobs: torch.Tensor) -> list[int]:
    return (logprobs > -INF).nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("top_k", "top_p", "support"),
    [
        (0, 1.0, [0, 1, 2, 3]),
        (1, 1.0, [3]),
        (3, 1.0, [1, 2, 3]),
        (9, 1.0, [0, 1, 2, 3]),
        (0, 0.01, [3]),
        (0, 0.39, [3]),
        (0, 0.41, [2, 3]),  # 0.4 falls short, the token that crosses is in
        (0, 0.69, [2, 3]),
        (0, 0.71, [1, 2, 3]),
        (0, 0.999, [0, 1, 2, 3]),
        (2, 0.56, [3]),  # of the top 2 renormalised, 0.4 / 0.7 = 0.571 suffices; without top_k two would be needed
        (0, 0.56, [2, 3]),
    ],
)
def test_top_k_and_then_top_p_leave_the_support_worked_out_by_hand(top_k, top_p, support):
    probability = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    logprobs = token_logprobs(probability.log(), top_k=top_k, top_p=top_p)
    assert support_of(logprobs) == support
    expected = probability[support] / probability[support].sum()
    torch.testing.assert_close(logprobs[support].exp(), expected, rtol=1e-12, atol=0)


def test_temperature_divides_the_logits_before_the_support_is_taken():
    probability = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    hot = token_logprobs(probability.log() + 5.0, temperature=2.0)
    torch.testing.assert_close(hot.exp(), probability.sqrt() / probability.sqrt().sum())
    # At temperature 1 the nucleus of 0.55 is one token; at 2 the most likely token has only 0.475.
    assert support_of(token_logprobs(probability.log(), top_p=0.55)) == [0]
    assert support_of(token_logprobs(probability.log(), temperature=2.0, top_p=0.55)) == [0, 1]


def test_equal_logits_are_cut_by_token_id_to_exactly_k():
    logits = torch.zeros(2, 40, dtype=torch.bfloat16)
    assert support_of(token_logprobs(logits, top_k=3)[1]) == [0, 1, 2]
    assert support_of(token_logprobs(logits, top_p=0.51)[0]) == list(range(21))


@settings(max_examples=100)
@given(
    # Few values, so that many tokens tie; -inf forbids a token.
    row=st.lists(st.sampled_from([-INF, -2.0, -1.0, 0.0, 0.5, 1.0]), min_size=1, max_size=12),
    top_k=st.integers(0, 14),
    top_p=st.sampled_from([0.1, 0.45, 0.8, 0.97, 1.0]),
)
def test_the_support_is_the_head_of_the_tokens_sorted_by_logit_and_then_by_id(row, top_k, top_p):
    row = [*row, 0.25]
    ranked = sorted((i for i, logit in enumerate(row) if logit > -INF), key=lambda i: (-row[i], i))[: top_k or None]
    mass = [math.exp(row[i]) for i in ranked]
    before = [math.fsum(mass[:n]) / math.fsum(mass) for n in range(len(ranked))]
    # No running sum of these values is within rounding of a limit.
    expected = {i for i, sum_before in zip(ranked, before, strict=True) if sum_before < top_p}
    found = token_logprobs(torch.tensor([row, row[::-1]]), top_k=top_k, top_p=top_p)[0]
    assert {*support_of(found)} == expected


def test_the_nucleus_counts_tokens_far_rarer_than_the_resolution_of_float32_near_one():
    # 1000 tokens of 1e-9 beside one that has the rest; half of them are needed to leave out no more
    # than 5e-7.
    logits = torch.full((1001,), 1e-9, dtype=torch.float64).log().float()
    logits[700] = 0.0
    assert len(support_of(token_logprobs(logits, top_p=1 - 5e-7))) == pytest.approx(501, abs=2)


def test_an_allowed_token_is_always_in_the_support():
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4]] * 2).log()
    logprobs = token_logprobs(logits, top_k=2, top_p=0.5, always_allow=torch.tensor([[0], [3]]))
    assert support_of(logprobs[0]) == [0, 3]
    assert support_of(logprobs[1]) == [3]
    assert logprobs[0].exp()[0].item() == pytest.approx(0.2, abs=1e-6)  # 0.1 / (0.1 + 0.4)
    assert token_logprobs(logits[0], top_k=2, top_p=0.5)[0] == -INF


def test_a_given_support_replaces_that_of_the_logits_row_by_row():
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4]] * 4).log()
    support = torch.tensor([[0, 2], [1, -1], [-1, 3], [-1, -1]], dtype=torch.int32)
    logprobs = token_logprobs(logits, top_k=2, support=support)
    assert [support_of(row) for row in logprobs] == [[0, 2], [1], [3], [2, 3]]
    assert logprobs[0].exp().tolist() == pytest.approx([0.25, 0, 0.75, 0], abs=1e-6)
    allowed = token_logprobs(logits, top_k=2, support=support, always_allow=torch.tensor([[3], [0], [3], [0]]))
    assert [support_of(row) for row in allowed] == [[0, 2, 3], [0, 1], [3], [0, 2, 3]]


def test_a_forbidden_token_has_probability_zero_and_the_rest_is_renormalised():
    logits = torch.tensor([1.0, -INF, 2.0, 3.0])
    for options in ({}, {"top_k": 3}, {"top_p": 0.9999}, {"top_k": 9, "temperature": 0.5}):
        logprobs = token_logprobs(logits, **options)
        assert logprobs[1] == -INF
        assert logprobs.exp().sum().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"top_p": 0.75}])
def test_the_gradient_is_one_hot_minus_probability_over_temperature_and_never_nan(options):
    logits = torch.tensor([0.5, -INF, 2.0, 1.5, 0.25], dtype=torch.float64, requires_grad=True)
    logprobs = token_logprobs(logits, temperature=0.8, **options)
    logprobs[2].backward()
    expected = (torch.eye(5, dtype=torch.float64)[2] - logprobs.detach().exp()) / 0.8
    torch.testing.assert_close(logits.grad, expected, rtol=0, atol=1e-12)


def test_the_fast_path_equals_the_path_that_sorts():
    logits = torch.randn(5, 17, generator=torch.Generator().manual_seed(0))
    assert torch.equal(token_logprobs(logits, 0.7), token_logprobs(logits, 0.7, top_k=17))


def test_a_batch_equals_its_single_rows():
    logits = torch.randn(8, 33, generator=torch.Generator().manual_seed(1)).bfloat16()
    batch = token_logprobs(logits, 0.9, top_k=9, top_p=0.8)
    singles = torch.stack([token_logprobs(row, 0.9, top_k=9, top_p=0.8) for row in logits])
    assert torch.equal(batch, singles)


@pytest.mark.parametrize(
    ("given_dtype", "dtype"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)],
)
def test_half_types_become_float32_and_float64_stays(given_dtype, dtype):
    logits = torch.tensor([0.0, 1.0], dtype=given_dtype)
    assert token_logprobs(logits).dtype == dtype
    assert token_entropy(token_logprobs(logits).to(given_dtype)).dtype == dtype
    torch.testing.assert_close(token_logprobs(logits)[0].item(), -math.log(1 + math.e), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be above 0; got 0.0"),
        ({"temperature": -1.0}, "temperature must be above 0"),
        ({"temperature": float("nan")}, "temperature must be above 0"),
        ({"top_k": -1}, "top_k = -1"),
        ({"top_p": 0.0}, "top_p = 0.0"),
        ({"top_p": 1.5}, "top_p = 1.5"),
        ({"always_allow": torch.tensor([1, 2])}, r"must agree in all axes but the last; got \(2,\), \(1, 3\)"),
        ({"support": torch.tensor([1, 2])}, r"support .* must agree in all axes but the last; got \(2,\), \(1, 3\)"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        unchecked(token_logprobs)(torch.zeros(1, 3), **options)


@settings(max_examples=50, deadline=None)
@given(logits=logit_rows, top_k=st.integers(0, 10), top_p=st.floats(0.05, 1), temperature=st.floats(0.2, 3))
def test_every_distribution_sums_to_one_and_its_entropy_lies_between_zero_and_the_log_of_its_support(
    logits, top_k, top_p, temperature
):
    logprobs = token_logprobs(logits.double(), temperature, top_k, top_p)
    assert logprobs.exp().sum().item() == pytest.approx(1, abs=1e-12)
    size = len(support_of(logprobs))
    assert 1 <= size <= min(len(logits), top_k or len(logits))
    assert -1e-12 <= token_entropy(logprobs).item() <= math.log(size) + 1e-12


@settings(max_examples=50, deadline=None)
@given(logits=logit_rows, shift=st.floats(-50, 50))
def test_entropy_ignores_a_shift_of_the_logits(logits, shift):
    entropy = token_entropy(token_logprobs(logits.double()))
    shifted = token_entropy(token_logprobs(logits.double() + shift))
    assert shifted.item() == pytest.approx(entropy.item(), abs=1e-11)


def test_entropy_of_uniform_certain_and_hand_worked_distributions():
    probability = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.0, 1.0, 0.0, 0.0], [0.5, 0.25, 0.25, 0.0]])
    expected = torch.tensor([math.log(4), 0.0, 1.5 * math.log(2)])
    torch.testing.assert_close(token_entropy(probability.log()), expected)


def test_entropy_of_a_nearly_certain_token_keeps_its_digits():
    # H = -(1-q) log(1-q) - q log q; 1 - q is 1 in float32, so the log of the probability would lose
    # the first term.
    q = math.exp(-20)
    logprobs = torch.tensor([math.log1p(-q), -20.0])
    expected = -(1 - q) * math.log1p(-q) - q * math.log(q)
    assert token_entropy(logprobs).item() == pytest.approx(expected, rel=1e-5)
    assert torch.special.entr(logprobs.exp()).sum().item() != pytest.approx(expected, rel=1e-2)


def test_the_gradient_of_entropy_is_finite_at_forbidden_tokens_and_right_elsewhere():
    logits = torch.tensor([0.3, -INF, 1.2], dtype=torch.float64, requires_grad=True)
    logprobs = token_logprobs(logits)
    token_entropy(logprobs).backward()
    # dH/dℓ_v = -p_v (log p_v + H)
    p = logprobs.detach()[[0, 2]].exp()
    entropy = -(p * p.log()).sum()
    torch.testing.assert_close(logits.grad[[0, 2]], -p * (p.log() + entropy), rtol=0, atol=1e-12)
    assert logits.grad[1] == 0


def test_a_draw_inverts_the_cumulative_distribution():
    logprobs = torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64).log()
    uniform = torch.tensor([0.0, 0.249, 0.251, 0.749, 0.751, ALMOST_ONE], dtype=torch.float64)
    assert sample_tokens(logprobs.expand(6, 3), uniform).tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("uniform", [0.0, 1e-300, 0.5, ALMOST_ONE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_token_of_probability_zero_is_never_drawn(uniform, dtype):
    logits = torch.randn(200, 50, generator=torch.Generator().manual_seed(2)).to(dtype)
    logits[:, [0, 1, 20, 48, 49]] = -INF
    logprobs = token_logprobs(logits)
    tokens = sample_tokens(logprobs, torch.full((200,), uniform, dtype=torch.float64))
    assert (logprobs.gather(-1, tokens.unsqueeze(-1)) > -INF).all()
    if uniform == 0.0:
        assert (tokens == 2).all()
    if uniform == ALMOST_ONE:
        assert (tokens == 47).all()


def test_the_only_possible_token_is_drawn_at_both_ends():
    logprobs = torch.tensor([-INF, -INF, 0.0, -INF]).expand(2, 4)
    assert sample_tokens(logprobs, torch.tensor([0.0, ALMOST_ONE], dtype=torch.float64)).tolist() == [2, 2]


def test_a_number_on_the_edge_of_two_tokens_belongs_to_the_later_one():
    logprobs = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64).log().expand(2, 3)
    assert sample_tokens(logprobs, torch.tensor([0.5, 0.75], dtype=torch.float64)).tolist() == [1, 2]


def test_a_number_that_was_rounded_up_to_one_draws_the_last_possible_token():
    logprobs = torch.tensor([0.5, 0.5, 0.0]).log()
    assert sample_tokens(logprobs, torch.tensor(1.0, dtype=torch.float64)).item() == 1


def test_a_row_that_does_not_quite_sum_to_one_is_drawn_from_in_proportion():
    logprobs = torch.tensor([0.3, 0.3]).log().expand(2, 2)
    assert sample_tokens(logprobs, torch.tensor([0.49, 0.51], dtype=torch.float64)).tolist() == [0, 1]


def test_frequencies_of_draws_match_the_distribution_and_not_another_one():
    logits = torch.tensor([2.0, 1.0, -INF, 0.0, -1.0])
    logprobs = token_logprobs(logits, temperature=0.9)
    count = 20_000
    tokens = sample_tokens(logprobs.expand(count, 5), counter_uniform(3, torch.arange(count)))
    observed = torch.bincount(tokens, minlength=5).double()

    def chi_square(probability: torch.Tensor) -> float:
        expected = count * probability.double()[[0, 1, 3, 4]]
        return float(((observed[[0, 1, 3, 4]] - expected) ** 2 / expected).sum())

    # 3 degrees of freedom exceed 21 with probability 1e-4. The control is temperature 1 instead of
    # 0.9.
    assert observed[2] == 0
    assert chi_square(logprobs.exp()) < 21
    assert chi_square(token_logprobs(logits).exp()) > 21


@pytest.mark.parametrize("size", [40, 512, 513, 1024, 5000])
def test_a_draw_in_chunks_is_that_of_a_running_sum_over_all_tokens(size):
    generator = torch.Generator().manual_seed(size)
    logits = 4 * torch.randn(300, size, generator=generator)
    logits[:, :3] = logits[:, -2:] = logits[::2, 500:] = -INF
    logits[torch.rand(logits.shape, generator=generator) < 0.3] = -INF
    logits[:, 5] = 0.0
    logprobs = token_logprobs(logits, temperature=0.9)
    uniform = torch.rand(300, 4, dtype=torch.float64, generator=generator)
    uniform[:, 3] = torch.tensor([0.0, ALMOST_ONE, 0.5]).repeat(100)
    tokens, found = sample_with_logprobs(logits / 0.9, uniform)
    cumulative = logprobs.double().exp().cumsum(-1)
    expected = (cumulative.unsqueeze(1) > (uniform * cumulative[:, -1:]).unsqueeze(-1)).int().argmax(-1)
    # At the end of the range, rounding decides between the last tokens.
    is_inner = uniform < ALMOST_ONE
    assert torch.equal(tokens[is_inner], expected[is_inner])
    assert (logprobs.gather(1, tokens) > -INF).all()
    torch.testing.assert_close(found, logprobs.gather(1, tokens), rtol=0, atol=2e-6)
    assert torch.equal(sample_tokens(logits / 0.9, uniform[:, 0]), tokens[:, 0])
    # The control is a shift of the uniform numbers by a hundredth.
    assert not torch.equal(sample_tokens(logits / 0.9, (uniform - 0.01).abs())[is_inner], expected[is_inner])


def test_uniform_numbers_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(3,\), \(2, 4\)"):
        unchecked(sample_tokens)(torch.zeros(2, 4), torch.zeros(3, dtype=torch.float64))


def test_centred_scores_do_not_depend_on_the_normaliser():
    logits = torch.tensor([[0.3, -1.0, 2.0, -torch.inf]], dtype=torch.float64)
    expected = logits - logits[:, :3].mean()
    for shift in (0.0, 5.0):
        found = centred(token_logprobs(logits + shift))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    truncated = centred(token_logprobs(logits, top_k=2))
    torch.testing.assert_close(
        truncated[0, [0, 2]], torch.tensor([-0.85, 0.85], dtype=torch.float64), rtol=0, atol=1e-12
    )

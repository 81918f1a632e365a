"""Tests of the clipped loss and the KL terms: by hand, by enumeration, and at extreme values."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.shapes import unchecked
from unmask.functional.divergence import binary_divergence
from unmask.functional.surrogate import (
    clipped_surrogate,
    divergence_surrogate,
    exact_kl,
    kl_k2,
    kl_k3,
)

INF = float("inf")


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "is_clipped"),
    [
        (1.0, 2.0, -2.0, False),
        (1.4, 2.0, -2.8, False),  # below 1 + 0.5
        (1.6, 2.0, -3.0, True),
        (0.5, 2.0, -1.0, False),  # the pessimistic side is not clipped
        (0.9, -2.0, 1.8, False),
        (0.7, -2.0, 1.6, True),  # below 1 - 0.2
        (3.0, -2.0, 6.0, False),
        (3.0, 0.0, 0.0, False),
    ],
)
def test_the_clipped_loss_and_its_gradient_by_hand(ratio, advantage, loss, is_clipped):
    log_ratio = torch.tensor(ratio, dtype=torch.float64).log().requires_grad_()
    value, clipped = clipped_surrogate(log_ratio, torch.tensor(advantage, dtype=torch.float64), 0.2, 0.5)
    assert value.item() == pytest.approx(loss, abs=1e-12)
    assert clipped.item() is is_clipped
    value.backward()
    assert log_ratio.grad.item() == pytest.approx(0.0 if is_clipped else -ratio * advantage, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(
    log_ratio=st.floats(-3, 3),
    advantage=st.floats(-3, 3),
    epsilon=st.floats(0, 0.9),
    epsilon_high=st.floats(0, 2),
)
def test_the_loss_equals_the_formula_of_the_paper(log_ratio, advantage, epsilon, epsilon_high):
    loss, _ = clipped_surrogate(
        torch.tensor(log_ratio, dtype=torch.float64), torch.tensor(advantage), epsilon, epsilon_high
    )
    rho, a = math.exp(log_ratio), torch.tensor(advantage).item()
    assert loss.item() == pytest.approx(-min(rho * a, min(max(rho, 1 - epsilon), 1 + epsilon_high) * a), abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(advantage=st.lists(st.floats(-3, 3), min_size=3, max_size=3), epsilon=st.floats(0, 1))
def test_at_ratio_one_the_gradient_is_the_plain_policy_gradient(advantage, epsilon):
    weights = torch.tensor(advantage, dtype=torch.float64)
    logits = torch.tensor([0.2, -1.0, 0.5], dtype=torch.float64, requires_grad=True)
    new = logits.log_softmax(-1)
    loss, is_clipped = clipped_surrogate(new - new.detach(), weights, epsilon, 0.5)
    (surrogate_gradient,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
    (policy_gradient,) = torch.autograd.grad(-(weights * new).sum(), logits)
    torch.testing.assert_close(surrogate_gradient, policy_gradient, rtol=0, atol=1e-12)
    assert not is_clipped.any()


def test_away_from_ratio_one_the_gradient_differs():
    new = torch.tensor([-1.0, -1.0], dtype=torch.float64, requires_grad=True)
    clipped_surrogate(new + 1.1, torch.ones(2), 0.2, 0.5)[0].sum().backward()
    assert (new.grad + 1).abs().min() > 0.1


def test_a_ratio_that_overflows_is_clipped_with_gradient_zero_and_not_nan():
    log_ratio = torch.tensor([1000.0, -1000.0], requires_grad=True)
    loss, is_clipped = clipped_surrogate(log_ratio, torch.tensor([1.0, -1.0]), 0.2, 0.5)
    loss.sum().backward()
    torch.testing.assert_close(loss.detach(), torch.tensor([-1.5, 0.8]))
    assert is_clipped.all()
    assert log_ratio.grad.tolist() == [0, 0]


def test_an_epsilon_above_one_leaves_no_lower_bound_and_negative_ones_are_refused():
    loss, is_clipped = clipped_surrogate(torch.tensor([-5.0]), torch.tensor([-1.0]), 1.5, 0.5)
    assert loss.item() == pytest.approx(math.exp(-5))
    assert not is_clipped.any()
    with pytest.raises(ValueError, match="epsilon = -0.1"):
        clipped_surrogate(torch.zeros(1), torch.zeros(1), -0.1, 0.5)
    with pytest.raises(ValueError, match="epsilon_high = -1"):
        clipped_surrogate(torch.zeros(1), torch.zeros(1), 0.2, -1.0)


@settings(max_examples=50, deadline=None)
@given(new=st.floats(-20, 0), reference=st.floats(-20, 0))
def test_k3_is_never_negative_and_zero_only_where_the_policies_agree(new, reference):
    k3 = kl_k3(torch.tensor(new, dtype=torch.float64), torch.tensor(reference, dtype=torch.float64)).item()
    d = reference - new
    assert k3 == pytest.approx(math.expm1(d) - d, rel=1e-9, abs=1e-15)
    assert k3 >= 0
    if abs(d) > 1e-6:
        assert k3 > 0
    assert kl_k3(torch.tensor(new), torch.tensor(new)).item() == 0


def test_k3_of_nearly_equal_policies_keeps_its_digits_in_float32():
    # About d²/2 = 5e-7, while exp(d) is rounded by up to 6e-8.
    d = torch.tensor(1e-3)
    expected = math.expm1(d.item()) - d.item()
    assert kl_k3(torch.zeros(()), d).item() == pytest.approx(expected, rel=1e-3)
    assert (d.exp() - d - 1).item() != pytest.approx(expected, rel=1e-3)


NEW = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
REFERENCE = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)


def test_the_mean_of_k3_under_the_new_policy_is_the_exact_kl():
    k3 = kl_k3(NEW.log(), REFERENCE.log())
    kl = exact_kl(NEW.log(), REFERENCE.log())
    assert (NEW * k3).sum().item() == pytest.approx(kl.item(), abs=1e-14)
    # Negative control: under the other policy it is not.
    assert abs((REFERENCE * k3).sum().item() - kl.item()) > 0.05


def test_the_gradient_of_k3_is_that_of_the_reverse_kl():
    logits = NEW.log().requires_grad_()
    new = logits.log_softmax(-1)
    (estimate,) = torch.autograd.grad((NEW * kl_k3(new, REFERENCE.log())).sum(), logits, retain_graph=True)
    (reverse,) = torch.autograd.grad(exact_kl(REFERENCE.log(), new), logits, retain_graph=True)
    (forward,) = torch.autograd.grad(exact_kl(new, REFERENCE.log()), logits)
    torch.testing.assert_close(estimate, reverse, rtol=0, atol=1e-14)
    assert (estimate - forward).abs().max() > 0.01


def test_the_exact_kl_is_a_sum_over_the_vocabulary_worked_out_by_hand():
    expected = 0.5 * math.log(2.5) + 0.3 * math.log(1.5) + 0.2 * math.log(1 / 3)
    rows = exact_kl(torch.stack([NEW, REFERENCE]).log(), torch.stack([REFERENCE, REFERENCE]).log())
    torch.testing.assert_close(rows, torch.tensor([expected, 0.0], dtype=torch.float64), rtol=0, atol=1e-14)


def test_the_exact_kl_and_its_gradient_are_finite_if_the_new_policy_excludes_tokens():
    logits = torch.tensor([0.0, -INF, -INF, 1.0], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.25, 0.25, 0.0, 0.5], dtype=torch.float64).log()
    kl = exact_kl(logits.log_softmax(-1), reference)
    p = torch.tensor([1 / (1 + math.e), math.e / (1 + math.e)], dtype=torch.float64)
    ratio = p.log() - torch.tensor([0.25, 0.5], dtype=torch.float64).log()
    assert kl.item() == pytest.approx((p * ratio).sum().item(), abs=1e-14)
    kl.backward()
    # dKL/dℓ_v = p_v (log p_v / q_v - KL)
    torch.testing.assert_close(logits.grad[[0, 3]], p * (ratio - kl.detach()), rtol=0, atol=1e-14)
    assert logits.grad[[1, 2]].tolist() == [0, 0]


def test_the_exact_kl_is_infinite_if_only_the_reference_excludes_a_token():
    assert exact_kl(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.0, 1.0]).log()).item() == INF


@pytest.mark.parametrize(
    ("given_dtype", "dtype"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_results_are_float32_or_float64(given_dtype, dtype):
    x = torch.tensor([-1.0, -2.0], dtype=given_dtype)
    loss, _ = clipped_surrogate(x - x, torch.ones(2, dtype=given_dtype), 0.2, 0.5)
    assert loss.dtype == kl_k3(x, x - 1).dtype == exact_kl(x, x - 1).dtype == dtype
    assert loss.tolist() == [-1, -1]
    torch.testing.assert_close(kl_k3(x, x - 1).double().tolist(), [math.exp(-1)] * 2, rtol=1e-6, atol=0)


def test_the_exact_kl_refuses_shapes_that_disagree():
    with pytest.raises(ValueError, match=r"\(2, 3\), \(3,\)"):
        unchecked(exact_kl)(torch.zeros(2, 3), torch.zeros(3))


# Other trust regions


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "is_clipped"),
    [(2.9, -1.0, 2.9, False), (4.0, -1.0, 3.0, True), (4.0, 1.0, -1.2, True), (0.5, -1.0, 0.8, True)],
)
def test_a_dual_clip_bounds_the_loss_of_a_bad_sample(ratio, advantage, loss, is_clipped):
    log_ratio = torch.tensor([ratio], dtype=torch.float64).log().requires_grad_()
    found, clipped = clipped_surrogate(log_ratio, torch.tensor([advantage]), 0.2, 0.2, dual=3.0)
    assert found.item() == pytest.approx(loss)
    assert clipped.item() == is_clipped
    found.sum().backward()
    assert (log_ratio.grad == 0).item() == is_clipped


def test_a_dual_clip_within_one_is_refused():
    with pytest.raises(ValueError, match="dual must be above 1"):
        clipped_surrogate(torch.zeros(1), torch.ones(1), 0.2, 0.2, dual=0.5)


@settings(max_examples=100, deadline=None)
@given(
    old=st.floats(0.01, 0.99),
    new=st.floats(0.01, 0.99),
    advantage=st.floats(-2, 2),
    divergence=st.floats(0, 1),
    bound=st.floats(0.001, 0.5),
    cap=st.sampled_from([0.0, 1.5, 20.0]),
)
def test_the_divergence_mask_drops_tokens_beyond_the_bound_that_would_widen_the_gap_and_caps_the_ratio(
    old, new, advantage, divergence, bound, cap
):
    logprob = torch.tensor([new], dtype=torch.float64).log().requires_grad_()
    log_ratio = logprob - math.log(old)
    given = torch.tensor([advantage], dtype=torch.float64), torch.tensor([divergence], dtype=torch.float64)
    loss, is_dropped = divergence_surrogate(log_ratio, *given, bound, cap)
    dropped = divergence > bound and advantage * float(log_ratio.detach()) > 0
    # The gradient with respect to log p is the capped ratio: the cap scales it and does not cut it.
    expected = 0.0 if dropped else -min(new / old, cap or math.inf) * advantage
    assert is_dropped.item() == dropped
    assert loss.item() == pytest.approx(expected)
    loss.sum().backward()
    assert logprob.grad.item() == pytest.approx(expected)


def test_unlike_a_clip_the_divergence_mask_restrains_frequent_tokens_only():
    old, new = torch.tensor([0.001, 0.6]).log(), torch.tensor([0.005, 0.85]).log()
    advantage = torch.ones(2)
    _, is_dropped = divergence_surrogate(new - old, advantage, binary_divergence(new, old, "tv"), 0.2)
    _, is_clipped = clipped_surrogate(new - old, advantage, 0.2, 0.5)
    assert is_dropped.tolist() == [False, True]
    assert is_clipped.tolist() == [True, False]


@pytest.mark.parametrize("cap", [0.0, 20.0])
def test_the_divergence_mask_is_finite_for_ratios_that_overflow(cap):
    log_ratio = torch.tensor([200.0, 200.0, 200.0, -200.0], requires_grad=True)
    advantage = torch.tensor([1.0, 0.0, -1.0, -1.0])
    loss, is_dropped = divergence_surrogate(log_ratio, advantage, torch.ones(4), 0.1, cap)
    (gradient,) = torch.autograd.grad(loss.sum(), log_ratio)
    assert is_dropped.tolist() == [True, False, False, True]
    assert gradient.tolist() == [0.0, 0.0, cap or math.inf, 0.0]


@pytest.mark.parametrize(("bound", "cap"), [(-0.1, 0.0), (0.1, 0.5)])
def test_a_negative_bound_or_a_cap_below_one_is_refused(bound, cap):
    with pytest.raises(ValueError, match="needs bound >= 0, and cap >= 1"):
        divergence_surrogate(torch.zeros(1), torch.ones(1), torch.zeros(1), bound, cap)


def test_the_gradient_of_k2_is_that_of_the_kl_and_its_value_is_not():
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log().requires_grad_()
    q = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
    new = p.log_softmax(-1)
    k2 = (new.detach().exp() * kl_k2(new, q)).sum()
    kl = exact_kl(new, q)
    (ours,) = torch.autograd.grad(k2, p, retain_graph=True)
    (theirs,) = torch.autograd.grad(kl, p)
    torch.testing.assert_close(ours, theirs)
    assert abs(k2.item() - kl.item()) > 0.01

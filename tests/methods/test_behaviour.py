"""Rollouts of another policy than the old one, on the enumerable toy: which gradient the weights
restore at which level, what is missing without them, and the bias of truncation, masking and
normalisation at its exact value.

The toy `small` is the old policy. Another toy, `other`, samples the rollout.
"""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator

from tests.helpers.any_order import another
from tests.helpers.toy import distance, expected_gradient
from unmask.methods.egspo import EGSPO
from unmask.methods.just_grpo import JustGRPO
from unmask.methods.mask_aware import MaskAware
from unmask.methods.step_merge import StepMerge
from unmask.recipes.behaviour import BehaviourConfig
from unmask.sampling import LogprobSettings, view_logprobs
from unmask.trainer.behaviour import Comparison, path_views
from unmask.trainer.distributed.ranks import Ranks
from unmask.trainer.metrics import Tally

EXACT = {"rtol": 0.0, "atol": 1e-10}
PLAIN = {"trust_region": "none", "baseline": "leave_one_out"}
UNTRUNCATED = {"cap": 0.0}

EVERY_STEP = EGSPO(step_choice="all", beta=0.0, **PLAIN)
ON_PATH = [
    pytest.param(EVERY_STEP, {"num_steps": 2}, id="egspo, two tokens in a step"),
    pytest.param(EVERY_STEP, {"order": "left_to_right"}, id="egspo, left to right"),
    pytest.param(EVERY_STEP, {"order": "plackett_luce", "num_steps": 2}, id="egspo, positions drawn"),
    pytest.param(StepMerge(num_segments=0, beta=0.0, **PLAIN), {"num_steps": 2}, id="step_merge"),
    pytest.param(JustGRPO(**PLAIN), {"order": "left_to_right"}, id="just_grpo"),
    pytest.param(
        MaskAware(num_segments=0, num_sampled=2, **PLAIN),
        {"order": "plackett_luce", "num_steps": 2},
        id="mask_aware",
    ),
]
"""Methods that estimate the policy gradient without bias on an exact rollout, with settings of the
toy."""


@pytest.fixture
def pair(toy, table_denoiser):
    """`pair(...)`: the old policy, and a behaviour policy whose logits are half way to those of
    another policy; both have 2 tokens."""

    def make(length=3, **options):
        small = toy(num_tokens=2, length=length, **options)
        other = another(small, table_denoiser)
        with torch.no_grad():
            other.denoiser.table.lerp_(small.denoiser.table, 0.5)
        return small, other

    return make


def comparison(path, level, options):
    return Comparison(BehaviourConfig(**options), level, True, path, Ranks(Accelerator()), Tally())


def estimate(small, other, method, level, group_size=2, **options):
    """Return the expectation of the corrected gradient over the groups of the behaviour policy,
    without the method's constant: Σ_k A_k ∇ log π_k, as in theory."""
    rollout, probability = other.groups(other.paths(), group_size, dtype=torch.float64)
    path, views = rollout.trajectory, method.plan(rollout, torch.Generator())
    correction = None
    if level != "off":
        compared = comparison(path, level, UNTRUNCATED | options)
        if level == "sequence":
            states = path_views(path, torch.arange(len(path)))
            scoring = LogprobSettings.of(path, "sampling")
            compared.record_path(states, view_logprobs(small.denoiser, path, states, scoring, choice=True))
        correction = compared.weights(views, None, None).applied
    per_view = views.weight[0]
    assert (views.weight == per_view).all()
    return expected_gradient(small, method, rollout, probability, correction=correction) / per_view.double()


def local_gradient(small, other, level):
    """Return the gradient of Σ_τ μ(τ) Σ_u π_u/μ_u r(τ) over the units u of a level: the old policy
    draws one unit, and the behaviour policy everything before and after it."""
    paths = other.paths()
    reward, probability = small.reward(paths), other.probability(paths).detach()
    old, behaviour = small.logprobs(small.temperature), other.logprobs(other.temperature).detach()
    total = torch.zeros((), dtype=torch.float64)
    for b, path in enumerate(paths):
        for step in range(small.num_steps):
            draws = [draw for draw in path.draws if draw[0] == step]
            units = [draws] if level == "step" else [[draw] for draw in draws]
            for unit in units:
                log_ratio = sum(old[s, i, v] - behaviour[s, i, v] for _, s, i, v in unit)
                if level == "step" and small.order == "plackett_luce":
                    picks = [pick for pick, draw in zip(path.picks, path.draws, strict=True) if draw[0] == step]
                    log_ratio = log_ratio + sum(small.pick_logprob(p) - other.pick_logprob(p).detach() for p in picks)
                total = total + probability[b] * log_ratio.exp() * reward[b]
    return small.gradient(total)


@pytest.mark.parametrize(("method", "options"), ON_PATH)
def test_weights_of_whole_completions_restore_the_policy_gradient(pair, method, options):
    small, other = pair(**options)
    torch.testing.assert_close(estimate(small, other, method, "sequence"), small.grad_j(), **EXACT)
    # Without weights the estimate is far off, so the agreement is not a matter of equal policies.
    assert distance(estimate(small, other, method, "off"), small.grad_j()) > 0.2


@pytest.mark.parametrize(("baseline", "share"), [("leave_one_out", 1.0), ("group_mean", 0.5)])
def test_the_group_mean_keeps_its_factor_under_weights(pair, baseline, share):
    small, other = pair(num_steps=2)
    method = EVERY_STEP.model_copy(update={"baseline": baseline})
    torch.testing.assert_close(estimate(small, other, method, "sequence"), share * small.grad_j(), **EXACT)


@pytest.mark.parametrize(("method", "options"), ON_PATH[:-1])
def test_weights_of_steps_restore_the_gradient_in_the_states_of_the_behaviour_policy(pair, method, options):
    small, other = pair(**options)
    expected = local_gradient(small, other, "step")
    torch.testing.assert_close(estimate(small, other, method, "step"), expected, **EXACT)
    assert distance(estimate(small, other, method, "off"), expected) > 0.1
    assert distance(expected, small.grad_j()) > 0.05, "which is not the policy gradient"


@pytest.mark.parametrize("options", [{"num_steps": 2}, {"order": "left_to_right"}], ids=str)
def test_weights_of_tokens_restore_the_gradient_of_one_token_at_a_time(pair, options):
    small, other = pair(**options)
    method = StepMerge(num_segments=0, beta=0.0, **PLAIN)
    expected = local_gradient(small, other, "token")
    torch.testing.assert_close(estimate(small, other, method, "token"), expected, **EXACT)
    assert distance(estimate(small, other, method, "off"), expected) > 0.1
    by_step = estimate(small, other, method, "step")
    if small.num_steps == small.L:
        torch.testing.assert_close(expected, by_step, **EXACT)
    else:
        assert distance(expected, by_step) > 0.02


def test_in_one_step_the_levels_step_and_sequence_are_one(pair):
    small, other = pair(length=2, num_steps=1)
    torch.testing.assert_close(estimate(small, other, EVERY_STEP, "step"), small.grad_j(), **EXACT)
    torch.testing.assert_close(estimate(small, other, EVERY_STEP, "sequence"), small.grad_j(), **EXACT)
    by_token = estimate(small, other, StepMerge(num_segments=0, beta=0.0, **PLAIN), "token")
    assert distance(by_token, small.grad_j()) > 0.05


@pytest.mark.parametrize("level", ["token", "step", "sequence"])
@pytest.mark.parametrize("options", [{}, {"cap": 1.001}, {"band": (0.999, 1.001)}, {"normalise": True}], ids=str)
def test_an_exact_rollout_is_not_changed(pair, level, options):
    small, _ = pair(num_steps=2)
    method = StepMerge(num_segments=0, beta=0.0, **PLAIN)
    plain = estimate(small, small, method, "off")
    torch.testing.assert_close(estimate(small, small, method, level, **options), plain, **EXACT)
    torch.testing.assert_close(plain, small.grad_j(), **EXACT)


@pytest.mark.parametrize(
    ("method", "level", "options", "bias"),
    [
        (EVERY_STEP, "off", {}, 1.486),
        (EVERY_STEP, "step", {}, 0.630),
        (EVERY_STEP, "step", {"cap": 2.0}, 0.758),
        (StepMerge(num_segments=0, beta=0.0, **PLAIN), "token", {}, 0.740),
        (StepMerge(num_segments=0, beta=0.0, **PLAIN), "token", {"cap": 2.0}, 0.849),
    ],
    ids=["off", "step", "step, cap 2", "token", "token, cap 2"],
)
def test_each_lower_level_has_the_distance_to_the_policy_gradient_that_the_page_states(
    pair, method, level, options, bias
):
    small, other = pair(num_steps=2)
    assert distance(estimate(small, other, method, level, **options), small.grad_j()) == pytest.approx(bias, abs=1e-3)


# Biases at their exact values


def weighted_gradient(small, other, weight_of):
    """Return Σ_τ μ(τ) weight(w) (r - E_μ[r]) ∇ log π(τ), where w = π(τ) / μ(τ)."""
    paths = other.paths()
    behaviour, reward = other.probability(paths).detach(), small.reward(paths)
    ratio = small.probability(paths).detach() / behaviour
    advantage = reward - (behaviour * reward).sum()
    return small.gradient((behaviour * weight_of(ratio) * advantage * small.probability(paths).log()).sum())


@pytest.mark.parametrize(
    ("options", "weight_of", "bias"),
    [
        ({"cap": 2.0}, lambda w: w.clamp(max=2.0), 0.487),
        ({"cap": 1.0}, lambda w: w.clamp(max=1.0), 0.651),
        ({"band": (0.8, 1.25)}, lambda w: w * ((w.pow(1 / 3) >= 0.8) & (w.pow(1 / 3) <= 1.25)), 0.819),
    ],
    ids=["cap 2", "cap 1", "band"],
)
def test_truncation_and_masking_have_the_bias_of_their_closed_form(pair, options, weight_of, bias):
    small, other = pair(num_steps=2)
    found = estimate(small, other, EVERY_STEP, "sequence", **options)
    torch.testing.assert_close(found, weighted_gradient(small, other, weight_of), **EXACT)
    assert distance(found, small.grad_j()) == pytest.approx(bias, abs=1e-3)


def normalised_gradient(small, other, num_completions):
    """Return the expectation of Σ_b n w_b / Σ w A_b ∇ log π(τ_b) / n over n completions, where A is
    the reward minus the mean of the others."""
    paths = other.paths()
    members = torch.cartesian_prod(*[torch.arange(len(paths))] * num_completions)
    behaviour, reward = other.probability(paths).detach(), small.reward(paths)
    ratio = (small.probability(paths).detach() / behaviour)[members]
    share, r = ratio / ratio.sum(-1, keepdim=True), reward[members]
    advantage = (r - r.mean(-1, keepdim=True)) * num_completions / (num_completions - 1)
    log_old = small.probability(paths).log()[members]
    return small.gradient((behaviour[members].prod(-1, keepdim=True) * share * advantage * log_old).sum())


def test_normalisation_has_the_bias_of_its_closed_form_which_falls_with_the_number_of_completions(pair):
    small, other = pair(length=2, order="left_to_right", num_steps=2)
    rollout, probability = other.groups(other.paths(), 2, dtype=torch.float64)
    found = torch.zeros_like(small.denoiser.table)
    for group in range(len(probability)):
        # One group is the rollout of a training step, which has a normalisation of its own.
        of_group = rollout.groups(slice(group, group + 1))
        path, views = of_group.trajectory, EVERY_STEP.plan(of_group, torch.Generator())
        compared = comparison(path, "sequence", {"cap": 0.0, "normalise": True})
        states = path_views(path, torch.arange(2))
        scores = view_logprobs(small.denoiser, path, states, LogprobSettings.of(path, "sampling"))
        compared.record_path(states, scores)
        correction, weight = compared.weights(views, None, None).applied, probability[group : group + 1]
        gradient = expected_gradient(small, EVERY_STEP, of_group, weight, correction=correction)
        found += gradient / views.weight[0].double()
    torch.testing.assert_close(found, normalised_gradient(small, other, 2), **EXACT)
    biases = [distance(normalised_gradient(small, other, n), small.grad_j()) for n in (2, 4, 8)]
    assert biases == pytest.approx([0.349, 0.229, 0.098], abs=1e-3)

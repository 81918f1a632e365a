"""DPPO as a trust region of any method with a ratio, on the enumerable toy: which tokens are dropped, at the exact
divergences of their distributions, and which gradient remains.

The toy `other` sampled the rollout and is the old policy; the toy `small` is the policy after it has moved.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from tests.helpers.any_order import another
from tests.helpers.mean_field import OneUpdate
from tests.helpers.messages import raises
from tests.helpers.runs import train_recipe
from tests.helpers.toy import distance
from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError
from unmask.methods import METHODS
from unmask.methods.base import Reads
from unmask.methods.egspo import EGSPO
from unmask.methods.egspo_ca import EGSPOCA
from unmask.methods.just_grpo import JustGRPO
from unmask.methods.ratio import RatioMethod
from unmask.methods.step_merge import StepMerge
from unmask.recipes.behaviour import BehaviourConfig
from unmask.sampling import LogprobSettings, view_logprobs
from unmask.trainer.scored_views import ScoredViews

EXACT = {"rtol": 0.0, "atol": 1e-10}
EVERY_STEP = EGSPO(step_choice="all", beta=0.0, baseline="leave_one_out", trust_region="divergence")
TOKENS = StepMerge(num_segments=0, beta=0.0, baseline="leave_one_out", trust_region="divergence")
FREE = {"max_divergence": 10.0, "ratio_cap": 0.0}
"""No token is dropped, and no ratio is capped."""
KINDS = ["binary_tv", "binary_kl", "tv", "kl"]
BOUNDS = {"binary_tv": 0.2, "binary_kl": 0.05, "tv": 0.2, "kl": 0.2}


@pytest.fixture
def pair(toy, table_denoiser):
    """`pair(...)`: the moved policy, and the policy that sampled, whose logits are half way to those of another."""

    def make(**options):
        small = toy(**({"num_tokens": 3, "length": 3, "num_steps": 2} | options))
        other = another(small, table_denoiser)
        with torch.no_grad():
            other.denoiser.table.lerp_(small.denoiser.table, 0.5)
        return small, other

    return make


def inputs_of(small, method, rollout, old=None):
    """Return the inputs of the loss as the trainer makes them; `old` is a toy, or None for a single update."""
    path, views = rollout.trajectory, method.plan(rollout, torch.Generator())
    advantage = method.advantage(rollout)
    advantage = advantage[views.row] if advantage.dim() == 1 else advantage[views.row, views.slot]
    settings = LogprobSettings.of(path, "sampling")
    options = {"choice": method.needs().choice, "distribution": method.reads().divergence != "none"}
    with torch.no_grad():
        scores = None if old is None else view_logprobs(old.denoiser, path, views, settings, **options)
    new = view_logprobs(small.denoiser, path, views, settings, **options)
    scored = ScoredViews(
        rollout, (views, advantage), views, advantage, scores, None, settings, 1.0, None, method.reads()
    )
    return scored.inputs(new, torch.arange(len(views)))


def estimate(small, other, method, old=None):
    """Return the expectation over the groups of `other` of what the trainer follows, without the constant of the plan:
    Σ_k A_k ∇ log π_k, as in theory."""
    rollout, probability = other.groups(other.paths(), 2, dtype=torch.float64)
    given = inputs_of(small, method, rollout, old)
    total = (probability[given.row // 2] * method.loss(given).loss).sum() / 2
    return -small.gradient(total) / given.weight[0].double()


def moved_by(kind, new, old, token):
    """Return the divergence between two distributions [V], from its definition."""
    p, q = new.exp().tolist(), old.exp().tolist()
    if kind.startswith("binary"):
        p, q = [p[token], 1 - p[token]], [q[token], 1 - q[token]]
    if kind.endswith("tv"):
        return sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2
    return sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))


def by_hand(small, other, kind, bound, cap):
    """Return the same expectation from the tables, token by token, and the share of the tokens of which some update is
    dropped."""
    paths, reward = other.paths(), other.reward(other.paths())
    probability = other.probability(paths).detach()
    new, old = small.logprobs(small.temperature), other.logprobs(other.temperature).detach()
    difference = reward.unsqueeze(1) - reward
    total, dropped, count = torch.zeros((), dtype=torch.float64), 0, 0
    for b, path in enumerate(paths):
        for _, state, i, token in path.draws:
            log_ratio = float((new[state, i, token] - old[state, i, token]).detach())
            is_far = moved_by(kind, new[state, i].detach(), old[state, i], token) > bound
            advantage = difference[b]
            is_kept = ~(is_far & (advantage * log_ratio > 0))
            ratio = min(math.exp(log_ratio), cap or math.inf)
            total = total + probability[b] * ratio * (probability * advantage * is_kept).sum() * new[state, i, token]
            dropped, count = dropped + is_far, count + 1
    return small.gradient(total), dropped / count


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", [EVERY_STEP, TOKENS], ids=["egspo", "step_merge"])
def test_the_tokens_that_are_dropped_are_those_whose_own_distribution_has_moved_too_far(pair, kind, method):
    small, other = pair()
    chosen = method.model_copy(update={"divergence": kind, "max_divergence": BOUNDS[kind], "ratio_cap": 2.0})
    expected, share = by_hand(small, other, kind, BOUNDS[kind], cap=2.0)
    assert 0.1 < share < 0.9
    torch.testing.assert_close(estimate(small, other, chosen, old=other), expected, **EXACT)
    # Both the mask and the cap matter, so each could be noticed if it were missing.
    for changed in ({"max_divergence": 10.0}, {"ratio_cap": 0.0}):
        other_form = estimate(small, other, chosen.model_copy(update=changed), old=other)
        assert distance(other_form, expected) > 0.01, changed


def test_the_default_bounds_are_those_of_the_released_code(pair):
    small, other = pair()
    for kind, bound in (("binary_tv", 0.2), ("tv", 0.2), ("binary_kl", 0.05), ("kl", 0.05)):
        by_default = estimate(small, other, EVERY_STEP.model_copy(update={"divergence": kind}), old=other)
        set_to = EVERY_STEP.model_copy(update={"divergence": kind, "max_divergence": bound})
        assert torch.equal(by_default, estimate(small, other, set_to, old=other))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options", [{}, {"order": "plackett_luce"}, {"order": "left_to_right", "num_steps": 3}], ids=str
)
def test_until_the_policy_moves_the_gradient_is_the_policy_gradient(pair, kind, options):
    _, other = pair(**options)
    chosen = EVERY_STEP.model_copy(update={"divergence": kind, "max_divergence": 1e-9})
    # A single update has no scores of the old policy, which is the policy itself.
    for old in (None, other):
        torch.testing.assert_close(estimate(other, other, chosen, old), other.grad_j(), **EXACT)


def test_without_bounds_a_ratio_from_the_rollout_restores_the_gradient_of_one_token_at_a_time(pair):
    # Σ_τ μ(τ) Σ_i ρ_i r ∇ log π_i: the policy draws one token, and the policy that sampled all others.
    small, other = pair()
    paths, new, old = other.paths(), small.logprobs(small.temperature), other.logprobs(other.temperature).detach()
    reward, probability = other.reward(paths), other.probability(paths).detach()
    total = torch.zeros((), dtype=torch.float64)
    for b, path in enumerate(paths):
        for _, state, i, token in path.draws:
            total = total + probability[b] * reward[b] * (new[state, i, token] - old[state, i, token]).exp()
    free = EVERY_STEP.model_copy(update=FREE)
    # The baseline has to be a constant for this: under ρ, the mean of ∇ log π over the tokens is still 0.
    expected = small.gradient(total)
    torch.testing.assert_close(estimate(small, other, free, old=small), expected, **EXACT)
    # Measured from the policy at the start of an update, which is here the policy itself, the ratio is 1.
    recomputed = free.model_copy(update={"anchor": "old"})
    assert distance(estimate(small, other, recomputed, old=small), expected) > 0.2


def test_the_position_choice_has_a_ratio_and_a_mask_of_its_own(pair):
    small, other = pair(order="plackett_luce", num_steps=3)
    paths, reward = other.paths(), other.reward(other.paths())
    probability = other.probability(paths).detach()
    new, old = small.logprobs(small.temperature), other.logprobs(other.temperature).detach()
    difference, bound = reward.unsqueeze(1) - reward, 0.05
    total, is_far = torch.zeros((), dtype=torch.float64), []
    for b, path in enumerate(paths):
        token_pairs = [(new[s, i, v], old[s, i, v]) for _, s, i, v in path.draws]
        choice_pairs = [(small.pick_logprob(pick), other.pick_logprob(pick).detach()) for pick in path.picks]
        for p, q in token_pairs + choice_pairs:
            is_far.append(abs(float(p.detach().exp() - q.exp())) > bound)
            kept = ~(is_far[-1] & (difference[b] * float((p - q).detach()) > 0))
            total = total + probability[b] * (p - q).exp().detach() * (probability * difference[b] * kept).sum() * p
    assert 0.1 < sum(is_far) / len(is_far) < 0.9
    chosen = EVERY_STEP.model_copy(update={"max_divergence": bound, "ratio_cap": 0.0})
    torch.testing.assert_close(estimate(small, other, chosen, old=other), small.gradient(total), **EXACT)


@pytest.mark.parametrize("kind", ["tv", "kl"])
def test_the_actions_of_a_state_share_the_divergence_of_their_positions(pair, kind):
    # Each action has a ratio of its own, but the distributions that it was drawn from are those of the state.
    small, other = pair()
    rollout, _ = other.groups(other.paths(), 2, dtype=torch.float64)
    rollout = replace(rollout, trajectory=rollout.trajectory.rows(slice(0, 4)), reward=rollout.reward[:4])
    path = rollout.trajectory
    tokens = torch.stack([path.tokens, (path.tokens + 1) % 3], dim=1).unsqueeze(1).int()
    path = replace(path, selected_step=torch.zeros(4, 1, dtype=torch.int32), branch_tokens=tokens)
    rollout = replace(rollout, trajectory=path, branch_reward=torch.rand(4, 1, 2))
    method = EGSPOCA(trust_region="divergence", divergence=kind, num_actions=2)
    given = inputs_of(small, method, rollout, old=other)
    output = method.loss(given)
    new, old = small.logprobs(small.temperature).detach(), other.logprobs(other.temperature).detach()
    state = small.index([small.V] * small.L)
    for view, i in given.target.nonzero().tolist():
        assert float(given.divergence[view, i]) == pytest.approx(moved_by(kind, new[state, i], old[state, i], 0))
    assert output.metrics["policy/divergence_max"].shape == output.metrics["policy/ratio_max"].shape
    assert len(output.metrics["policy/ratio_max"]) == 2 * int(given.target.sum())


# In the trainer


def test_an_exact_rollout_gives_the_update_of_the_old_policy_with_fewer_passes(lively, tmp_path):
    update = OneUpdate(lively, tmp_path)
    settings = ("num_iterations=2", "optim.learning_rate=1.0e-3")
    region = {"trust_region": "divergence", "beta": 0.0, "num_selected": 2}
    measured = {}
    for anchor in ("rollout", "old"):
        method = EGSPO(**region, anchor=anchor)
        measured[anchor], gradient = update(method, *settings)
        assert gradient.norm() > 1e-4
    # Both are rounded in another way: the rollout ran other batches.
    common = set(measured["rollout"]) & set(measured["old"])
    for name in common - {"loss"}:
        assert measured["rollout"][name] == pytest.approx(measured["old"][name], rel=1e-3, abs=1e-4), name
    assert set(measured["old"]) - common == {"policy/first_log_ratio_max"}, "the old policy scored its views"
    assert set(measured["rollout"]) == common


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_update_drops_nothing_and_a_later_one_does(kind, lively, tmp_path):
    update = OneUpdate(lively, tmp_path)
    region = {"trust_region": "divergence", "divergence": kind, "max_divergence": 1e-4, "beta": 0.0, "num_selected": 2}
    for views_per_forward in (3, 256):
        fixed = ("optim.learning_rate=1.0e-3", f"views_per_forward={views_per_forward}")
        first, _ = update(EGSPO(**region), *fixed, "num_iterations=1")
        assert first["clip_ratio/region_mean"] == 0.0
        assert first["policy/ratio_max"] == pytest.approx(1.0, abs=1e-5)
        assert first["policy/divergence_max"] == pytest.approx(0.0, abs=1e-5)
        later, _ = update(EGSPO(**region), *fixed, "num_iterations=2")
        assert later["clip_ratio/region_mean"] > 0.0
        assert later["policy/divergence_max"] > 1e-4


# Settings that do not fit together


SAMPLER = SamplerConfig(max_completion_length=8, num_steps=4, order="random")


def test_what_a_loss_reads_follows_from_the_trust_region():
    assert EGSPO().reads() == JustGRPO(trust_region="none").reads() == Reads()
    assert EVERY_STEP.reads() == Reads(anchor="rollout")
    assert EVERY_STEP.model_copy(update={"anchor": "old"}).reads() == Reads()
    for kind in ("tv", "kl"):
        assert EVERY_STEP.model_copy(update={"divergence": kind}).reads() == Reads(divergence=kind)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if issubclass(method, RatioMethod)])
def test_a_ratio_of_anything_but_tokens_and_steps_refuses_the_divergence(name):
    options = {"num_segments": 0, "num_sampled": 2} if name == "mask_aware" else {}
    method = METHODS[name](trust_region="divergence", anchor="old", **options)
    order = {"mask_aware": "plackett_luce", "just_grpo": "left_to_right"}.get(name, "random")
    sampler = SamplerConfig(max_completion_length=8, num_steps=8, order=order)
    if name in ("egspo", "egspo_sa", "step_merge", "trace_rl"):
        method = method.model_copy(update={"num_selected": 2, "num_segments": 2})
    if name in ("espo", "gdpo", "ebpo", "bgpo", "mask_aware", "coupled_grpo"):
        with raises(ConfigError, "needs the distribution of one token", "Set method.trust_region to clip or none"):
            method.check(sampler, 2)
    else:
        method.check(sampler, 2)


def test_an_anchor_that_the_rollout_does_not_record_is_refused():
    region = {"trust_region": "divergence"}
    EGSPO(num_selected=2, **region).check(SAMPLER, 2)
    for method in (
        EGSPOCA(**region),
        EGSPOCA(**region, form="unbiased"),
        METHODS["diffu_grpo"](**region),
        StepMerge(num_segments=2, **region),
    ):
        with raises(ConfigError, "Set method.anchor = old", snapshot=False):
            method.check(SAMPLER, 2)
        method.model_copy(update={"anchor": "old"}).check(SAMPLER, 2)
        method.model_copy(update={"divergence": "tv"}).check(SAMPLER, 2)
    with raises(ConfigError, "also scores tokens in states from which the rollout did not draw them"):
        StepMerge(num_segments=2, **region).check(SAMPLER, 2)


def test_a_cap_of_one_truncates_and_a_smaller_one_is_refused():
    assert EVERY_STEP.model_validate(EVERY_STEP.model_dump() | {"ratio_cap": 1.0}).ratio_cap == 1.0
    with pytest.raises(ValidationError, match="Use 1 or more, or 0 for no bound"):
        EVERY_STEP.model_validate(EVERY_STEP.model_dump() | {"ratio_cap": 0.5})


def test_a_ratio_from_the_rollout_is_not_corrected_twice_and_needs_the_samplers_temperature(tmp_path):
    approximate = SAMPLER.model_copy(update={"block_length": 4, "cache": "dual"})
    assert BehaviourConfig().weighted(EVERY_STEP, approximate, is_exact=False) is None
    assert (
        BehaviourConfig().weighted(EVERY_STEP.model_copy(update={"anchor": "old"}), approximate, is_exact=False)
        == "step"
    )
    with raises(ConfigError, "would correct the ratio twice", "Set behaviour.level = off, or method.anchor = old"):
        BehaviourConfig(level="step").weighted(EVERY_STEP, SAMPLER, is_exact=True)
    region = "method={type: egspo, num_selected: 2, trust_region: divergence}"
    with raises(ConfigError, "method.anchor = rollout compares with probabilities at the sampler's temperature"):
        train_recipe(tmp_path, tmp_path, region, "logprob_temperature=0.7")

"""Tests of the equalities on docs/methods/family-tree.md: a method is a setting of another one.

Each test has a negative control: without the setting the two differ.
"""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from tests.helpers.any_order import EXACT, another, loss_of, many
from tests.helpers.paths import ROOT
from tests.helpers.toy import distance, expected_gradient
from tests.helpers.values import arbitrary, with_values
from unmask.core.records import LossInputs, LossOutput
from unmask.functional.advantage import softmax_advantage
from unmask.methods import METHODS, SCORED, methods_by_kind
from unmask.methods.agrpo import AGRPO
from unmask.methods.bgpo import BGPO
from unmask.methods.diffu_grpo import DiffuGRPO
from unmask.methods.direct_advantage import DirectAdvantage
from unmask.methods.dmpo import DMPO
from unmask.methods.egspo import EGSPO, EGSPOSA
from unmask.methods.espo import ESPO
from unmask.methods.gdpo import EBPO, GDPO
from unmask.methods.gdsd import GDSD
from unmask.methods.just_grpo import JustGRPO
from unmask.methods.mask_aware import MaskAware
from unmask.methods.rldf import RLDF
from unmask.methods.spg import SPG, StableDRL
from unmask.methods.step_merge import CJGRPO, StepMerge, TraceRL
from unmask.methods.trajectory_balance import TrajectoryBalance
from unmask.methods.vrpo import DTRPO, VRPO
from unmask.sampling import LogprobSettings, view_logprobs

PLAIN = {"beta": 0.0, "baseline": "leave_one_out"}


def plan(method, rollout):
    return method.plan(rollout, torch.Generator().manual_seed(0))


def same_views(one, other):
    """Return whether two plans have the same views, apart from their weights."""
    names = ("row", "hidden", "target", "slot")
    return len(one) == len(other) and all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


def same_plan(one, other):
    """Return whether two plans have the same views with the same weights."""
    return same_views(one, other) and torch.allclose(one.weight, other.weight, rtol=1e-6, atol=0)


def options(method):
    return method.model_dump() | {"type": ""}


def with_seeds(rollout):
    return replace(rollout, trajectory=replace(rollout.trajectory, seed=torch.arange(len(rollout.reward))))


# Path steps


@pytest.mark.parametrize(
    ("method", "parent", "settings"),
    [
        (CJGRPO, StepMerge, {"num_segments": 0}),
        (
            TraceRL,
            StepMerge,
            {
                "num_segments": 64,
                "baseline": "z_score",
                "epsilon": 0.2,
                "epsilon_high": 0.2,
                "beta": 0.01,
                "kl_to": "old",
            },
        ),
        (EGSPOSA, EGSPO, {"stepwise_weight": 0.5}),
    ],
)
def test_a_method_of_the_same_code_differs_by_defaults_only(method, parent, settings):
    assert options(method()) == options(parent(**settings))
    assert options(method()) != options(parent())
    inherited = ("needs", "plan", "advantage", "loss")
    assert all(getattr(method, name) is getattr(parent, name) for name in inherited)


def test_stepmerge_with_every_step_a_segment_has_the_gradient_of_egspo_with_all_steps(toy):
    small = toy(num_tokens=2)
    rollout, weight = small.groups(small.paths(), 2)
    cj_grpo, egspo = CJGRPO(**PLAIN), EGSPO(**PLAIN, step_choice="all")
    assert same_plan(plan(cj_grpo, rollout), plan(egspo, rollout))
    gradients = [expected_gradient(small, method, rollout, weight) for method in (cj_grpo, egspo)]
    torch.testing.assert_close(*gradients, **EXACT)
    assert not same_views(plan(StepMerge(num_segments=2), rollout), plan(egspo, rollout))


def test_stepmerge_with_a_single_segment_is_diffu_grpo_with_a_visible_prompt(toy):
    small = toy()
    rollout, weight = small.groups(small.paths(), 2)
    merged, mean_field = StepMerge(**PLAIN, num_segments=1), DiffuGRPO(**PLAIN, prompt_mask_ratio=0.0)
    # Both are means over tokens: the first over all L of a completion, the second over those scored.
    views = plan(merged, rollout)
    assert same_plan(views, plan(mean_field, rollout))
    gradients = [expected_gradient(small, method, rollout, weight, views=views) for method in (merged, mean_field)]
    torch.testing.assert_close(*gradients, **EXACT)
    assert not same_views(plan(StepMerge(num_segments=3), rollout), plan(mean_field, rollout))


def test_just_grpo_is_cj_grpo_on_left_to_right_paths_of_one_token_a_step(toy):
    small = toy(order="left_to_right")
    rollout, weight = small.groups(small.paths(), 2)
    just_grpo, cj_grpo = JustGRPO(baseline="leave_one_out"), CJGRPO(**PLAIN)
    assert same_plan(plan(just_grpo, rollout), plan(cj_grpo, rollout))
    gradients = [expected_gradient(small, method, rollout, weight) for method in (just_grpo, cj_grpo)]
    torch.testing.assert_close(*gradients, **EXACT)
    with pytest.raises(Exception, match="left_to_right"):
        just_grpo.check(many(toy(), 2).trajectory.sampler, 2)


def test_agrpo_that_draws_every_step_once_is_egspo_with_all_steps(toy):
    # As many low-discrepancy draws as steps, uniform, of a single completion: each step once.
    rollout = many(toy(), 1, group_size=1)
    agrpo = plan(AGRPO(mc_samples=3, step_sampling="uniform"), rollout)
    egspo = plan(EGSPO(step_choice="all"), rollout)
    assert torch.equal(agrpo.hidden, egspo.hidden)
    assert torch.equal(agrpo.target, egspo.target)
    # AGRPO is a mean over steps of sums over tokens, EGSPO a mean over steps of means over tokens,
    # which is the same for steps of one token.
    torch.testing.assert_close(agrpo.weight, egspo.weight)
    assert len(plan(AGRPO(mc_samples=2, step_sampling="uniform"), rollout)) < len(egspo)


def test_mask_aware_without_its_positions_is_cj_grpo_with_one_ratio_for_a_completion(toy):
    small = toy(num_tokens=2, order="plackett_luce")
    rollout, weight = small.groups(small.paths(), 2)
    mask_aware = MaskAware(num_segments=0, num_sampled=3, baseline="leave_one_out")
    cj_grpo = CJGRPO(**PLAIN)
    with_choice = expected_gradient(small, mask_aware, rollout, weight)
    torch.testing.assert_close(with_choice, expected_gradient(small, cj_grpo, rollout, weight), rtol=0, atol=1e-8)

    def without(inputs, index):
        return replace(inputs, new_choice=None, old_choice=None)

    tokens_only = expected_gradient(small, cj_grpo, rollout, weight, correction=without)
    assert distance(tokens_only, with_choice) > 0.05, "the positions count"


def test_rldf_without_temperature_is_egspo_with_surprisal_in_place_of_entropy(toy):
    rollout = many(toy(), 40)
    rldf = plan(RLDF(targets="step", num_selected=2, choice_temperature=0.0), rollout)
    surprising = replace(rollout, trajectory=replace(rollout.trajectory, entropy=-rollout.trajectory.logprob))
    assert same_plan(rldf, plan(EGSPO(num_selected=2), surprising))
    assert not same_views(rldf, plan(EGSPO(num_selected=2), rollout)), "entropy selects other steps"


@pytest.mark.parametrize("rule", ["surprisal", "surprisal_sampled"])
def test_the_rules_of_rldf_are_rules_of_egspo(toy, rule):
    rollout = with_seeds(many(toy(), 40))
    rldf = plan(RLDF(targets="step", num_selected=2, step_choice=rule), rollout)
    assert same_plan(rldf, plan(EGSPO(num_selected=2, step_choice=rule), rollout))
    other = plan(EGSPO(num_selected=2, step_choice=rule, choice_temperature=5.0), rollout)
    assert not same_views(rldf, other), "the temperature counts"


@pytest.mark.parametrize("rule", ["surprisal", "surprisal_sampled"])
def test_rldf_weights_the_steps_of_adaptive_rollouts_as_egspo_does(toy, rule):
    rollout = with_seeds(many(toy(), 40))
    path = rollout.trajectory
    when = path.unmask_step.clone()
    when[::2] = when[::2].clamp(max=1)  # Every second completion takes two steps.
    sampler = path.sampler.model_copy(update={"schedule": "threshold=0.9"})
    adaptive = replace(rollout, trajectory=replace(path, unmask_step=when, sampler=sampler))
    assert adaptive.trajectory.steps_taken.unique().tolist() == [2, 3]
    rldf = plan(RLDF(targets="step", num_selected=1, step_choice=rule), adaptive)
    egspo = plan(EGSPO(num_selected=1, step_choice=rule), adaptive)
    assert same_plan(rldf, egspo)
    assert len(rldf.weight.unique()) > 1, "the weight follows the number of steps"


def test_rldf_at_a_high_temperature_is_egspo_with_uniform_steps(toy):
    rollout = with_seeds(many(toy(), 40))
    rldf = plan(RLDF(targets="step", num_selected=2, choice_temperature=1e9), rollout)
    uniform = plan(EGSPO(num_selected=2, step_choice="uniform"), rollout)
    assert same_plan(rldf, uniform)
    assert not same_views(plan(RLDF(targets="step", num_selected=2), rollout), uniform)


# Random masks


def test_ebpo_with_a_single_block_is_gdpo(toy):
    rollout = many(toy(), 40)
    gdpo = plan(GDPO(), rollout)
    assert same_plan(plan(EBPO(), rollout), gdpo)
    assert options(EBPO(by_block=False, epsilon=0.5, epsilon_high=0.5, beta=0.04)) == options(GDPO())
    sampler = rollout.trajectory.sampler.model_copy(update={"block_length": 1})
    by_one = replace(rollout, trajectory=replace(rollout.trajectory, sampler=sampler))
    assert not same_views(plan(EBPO(), by_one), gdpo)


def test_at_the_old_policy_stable_drl_is_spg_for_completions_of_one_length(toy):
    small = toy(num_tokens=2, order="left_to_right")
    rollout, weight = small.groups(small.paths(), 2)
    views = plan(SPG(noise_ratio=0.0), rollout)
    assert same_plan(views, plan(StableDRL(noise_ratio=0.0), rollout))
    views = replace(views, weight=views.weight.double())
    gradients = [expected_gradient(small, method, rollout, weight, views=views) for method in (SPG(), StableDRL())]
    torch.testing.assert_close(*gradients, **EXACT)
    # Away from it the weights count.
    ended = toy(num_tokens=2, order="left_to_right", eos=True)
    rollout, weight = ended.groups(ended.paths(), 2)
    views = plan(SPG(noise_ratio=0.0), rollout)
    views = replace(views, weight=views.weight.double())
    gradients = [expected_gradient(ended, method, rollout, weight, views=views) for method in (SPG(), StableDRL())]
    assert distance(*gradients) > 0.01, "SPG weights a completion by its length"


def test_at_the_old_policy_bgpo_without_scale_has_the_gradient_of_espo_on_the_same_masks(toy, table_denoiser):
    small = toy(num_tokens=2)
    rollout, weight = small.groups(small.paths(), 2)
    bgpo, espo = BGPO(scale="none", baseline="leave_one_out", num_samples=4), ESPO(**PLAIN)
    views = plan(bgpo, rollout)
    views = replace(views, weight=views.weight.double())
    # ESPO divides the ELBO by L in the loss and takes the mean over masks in the plan, BGPO the other way round.
    of_espo = replace(views, weight=views.weight * small.L / 4)
    gradients = [
        expected_gradient(small, method, rollout, weight, views=of) for method, of in ((bgpo, views), (espo, of_espo))
    ]
    torch.testing.assert_close(*gradients, **EXACT)
    old = another(small, table_denoiser)
    losses = [
        loss_of(small, method.model_copy(update={"trust_region": "none"}), rollout, of, old=old).loss.sum()
        for method, of in ((bgpo, views), (espo, of_espo))
    ]
    assert abs(float((losses[0] / losses[1]).detach()) - 1) > 0.01, "elsewhere BGPO is a bound"


# Preferences


def test_dtrpo_is_vrpo_on_step_views(toy):
    small = toy(num_tokens=2, length=4, num_steps=4)
    rollout = many(small, 40, group_size=4)
    views = plan(DTRPO(num_samples=2), rollout)
    # The loss is the same function, so what can differ is the views.
    assert DTRPO.loss is VRPO.loss
    assert DTRPO.advantage is VRPO.advantage
    assert (rollout.trajectory.shown_step(views) >= 0).all(), "its views are states of the path"
    assert not (rollout.trajectory.shown_step(plan(VRPO(), rollout)) >= 0).all()


# Regression


def test_at_the_old_policy_gdsd_has_twice_the_guidance_times_the_gradient_of_espo(toy, table_denoiser):
    small = toy(num_tokens=2)
    rollout, weight = small.groups(small.paths(), 2)
    gdsd, espo = GDSD(beta=0.0, num_samples=2, guidance=0.3), ESPO(beta=0.0, num_samples=2)
    views, of_espo = plan(gdsd, rollout), plan(espo, rollout)
    assert same_views(views, of_espo)
    views = replace(views, weight=views.weight.double())
    of_espo = replace(of_espo, weight=views.weight / 2)
    old = another(small, table_denoiser)

    def gradient(method, views, old):
        loss = loss_of(small, method, rollout, views, old=old).loss
        num = len(loss) // len(rollout.reward)
        return small.gradient((weight.repeat_interleave(2 * num) * loss).sum())

    torch.testing.assert_close(gradient(gdsd, views, small), 2 * 0.3 * gradient(espo, of_espo, small), **EXACT)
    free, plain = GDSD(beta=0.0, num_samples=2, epsilon=0.0), ESPO(beta=0.0, num_samples=2, trust_region="none")
    one, other = gradient(free, views, old), gradient(plain, of_espo, old)
    aligned = other * (one * other).sum() / other.square().sum()
    assert distance(one, aligned) > 0.1, "elsewhere a regression is not a ratio"


def test_at_the_reference_dmpo_has_the_weights_of_wd1_for_the_tilted_reward(toy, table_denoiser):
    small = toy(num_tokens=2)
    rollout = many(small, 12, group_size=3)
    method = DMPO(alpha=0.4)
    views = plan(method, rollout)
    views = replace(views, weight=views.weight.double())

    def weights(reference):
        """Read the weight of each completion off its loss: -W w Σ log p, with w Σ log p of its views."""
        loss = loss_of(small, method, rollout, views, reference=reference).loss
        score = loss_of(small, Negative(), rollout, views).loss
        total = torch.zeros(12, dtype=torch.float64)
        return tuple(total.index_add(0, views.row, part.detach()) for part in (loss, score))

    loss, score = weights(small)
    torch.testing.assert_close(loss / score, softmax_advantage(rollout.reward / 0.4, 3), **EXACT)
    loss, score = weights(another(small, table_denoiser))
    assert distance(loss / score, softmax_advantage(rollout.reward / 0.4, 3)) > 0.05


class Negative(DMPO):
    """The loss -w Σ log p of each view."""

    def loss(self, inputs):
        return LossOutput(-inputs.weight * inputs.new.sum(-1))


def gradient(small, method, rollout):
    """Return the gradient of the loss of a rollout at the old policy; the reference squares each probability."""
    views = plan(method, rollout)
    advantage = method.advantage(rollout)
    advantage = advantage[views.row] if advantage.dim() == 1 else advantage[views.row, views.slot]
    scores = view_logprobs(
        small.denoiser, rollout.trajectory, views, LogprobSettings.of(rollout.trajectory, "sampling")
    )
    new = scores.logprob
    fields = {"row": views.row, "target": views.target, "weight": views.weight, "slot": views.slot}
    given = LossInputs(new, new.detach(), 2 * new.detach(), None, **fields, advantage=advantage, group_size=2)
    return small.gradient(method.loss(given).loss.sum())


def test_trajectory_balance_without_temperature_is_the_policy_gradient_of_step_merge(toy):
    small = toy()
    rollout = many(small, 20)
    balance = gradient(small, TrajectoryBalance(alpha=0.0), rollout)
    free = {"beta": 0.0, "baseline": "leave_one_out", "trust_region": "none"}
    torch.testing.assert_close(balance, gradient(small, StepMerge(num_segments=0, **free), rollout))
    assert not torch.allclose(balance, gradient(small, TrajectoryBalance(alpha=0.5), rollout)), "the reference counts"


def test_direct_advantage_without_temperature_is_egspo_with_telescoped_credit(toy):
    small = toy()
    rollout, _ = small.groups(small.paths()[::9], 1, stepwise=True)
    rollout = replace(rollout, group_size=2)
    free = {"beta": 0.0, "trust_region": "none", "step_choice": "all"}
    egspo = EGSPO(credit="telescoped", baseline="value", **free)
    direct = DirectAdvantage(beta=0.0, anchor="reference")
    torch.testing.assert_close(gradient(small, direct, rollout), gradient(small, egspo, rollout))
    pulled = gradient(small, direct.model_copy(update={"beta": 0.5}), rollout)
    assert not torch.allclose(pulled, gradient(small, egspo, rollout)), "the temperature counts"


def test_one_step_path_consistency_is_direct_advantage_from_the_reference_with_a_critic(toy):
    small = toy(num_tokens=2)
    rollout, _ = small.groups(small.paths(), 1, dtype=torch.float64)
    balance = TrajectoryBalance(alpha=0.3, subpath_steps=1)
    direct = DirectAdvantage(beta=0.3, anchor="reference", value="critic")
    rollout = with_values(small, direct, rollout, arbitrary(small))
    assert same_plan(plan(balance, rollout), plan(direct, rollout))
    torch.testing.assert_close(gradient(small, balance, rollout), gradient(small, direct, rollout))
    longer = gradient(small, balance.model_copy(update={"subpath_steps": 2}), rollout_of(small, 2))
    assert not torch.allclose(longer, gradient(small, direct, rollout)), "the length of a sub-path counts"


def rollout_of(small, subpath_steps):
    """Return all paths with the values of the first states of their sub-paths."""
    method = TrajectoryBalance(subpath_steps=subpath_steps)
    rollout, _ = small.groups(small.paths(), 1, dtype=torch.float64)
    return with_values(small, method, rollout, arbitrary(small))


# The listing


def test_every_method_is_of_one_kind_and_every_kind_has_methods():
    kinds = methods_by_kind()
    assert {name: method for methods in kinds.values() for name, method in methods.items()} == METHODS
    assert all(kinds.values())
    assert kinds.keys() == SCORED.keys()


def test_the_page_names_every_method():
    page = (ROOT / "docs" / "methods" / "family-tree.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(\w+)`", page)) >= METHODS.keys()

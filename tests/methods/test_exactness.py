"""The gradient that the trainer follows, against a denoiser small enough to enumerate.

The exact expectation of the real estimator (plan, advantage, replay, loss) is taken over all groups
of paths of the toy in `toy.py`: agreement to 1e-10 where theory says so, and a bias pinned to its
own exact value where not.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from scipy.stats import chisquare

from tests.helpers.position_choice import dropped_gradient
from tests.helpers.toy import TEMPERATURE, Toy, distance, expected_gradient, merged, pinned
from tests.helpers.toy_samples import sampled_counts, seeds_by_ranking
from tests.helpers.values import arbitrary, with_values
from unmask.core.config import OptimConfig, SamplerConfig
from unmask.core.records import Rollout
from unmask.functional import selection
from unmask.functional.advantage import fitted_gain
from unmask.functional.selection import inclusion_probability, selection_noise
from unmask.methods.egspo import EGSPO
from unmask.recipes.schema import TrainRecipe
from unmask.tasks.sudoku import Sudoku
from unmask.trainer.learn import Learner
from unmask.trainer.metrics import Tally
from unmask.trainer.reference import FrozenCopy

EXACT = {"rtol": 0.0, "atol": 1e-10}


def method(**options):
    return EGSPO(**({"step_choice": "all", "beta": 0.0, "baseline": "leave_one_out"} | options))


def expected_estimate(toy, method, rollout, weight, **options):
    """Return `expected_gradient` without the plan's constants K and L / T: Σ_k A_k ∇ log π_k, as in
    theory."""
    num_slots = toy.num_steps if method.step_choice == "all" else method.num_selected
    per_view = torch.tensor(toy.num_steps / toy.L / num_slots)
    assert (method.plan(rollout, torch.Generator()).weight == per_view).all()
    # T / (K L) in the float32 of the weights: 2/3 is 1e-8 off there, and that is not what is
    # tested.
    return expected_gradient(toy, method, rollout, weight, **options) / per_view.double()


# The enumeration itself


def test_there_are_162_paths_and_their_probabilities_sum_to_one(toy):
    paths = toy().paths()
    assert len(set(paths)) == len(paths) == 162
    assert float(toy().probability(paths).detach().sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"order": "left_to_right"}, 27),
        ({"order": "entropy"}, 27),
        ({"order": "margin"}, 27),
        ({"order": "low_confidence"}, 27 * 9 * 3),
        ({"num_steps": 2}, 3 * 27),
        ({"order": "plackett_luce"}, 6 * 27),
        ({"order": "plackett_luce", "num_steps": 2}, 6 * 27),
        ({"order": "learned"}, 6 * 27),
        ({"order": "learned", "num_steps": 2}, 6 * 27),
    ],
)
def test_paths_of_every_order_have_total_probability_one(toy, options, count):
    small = toy(**options)
    paths = small.paths()
    assert len(paths) == count
    assert float(small.probability(paths).detach().sum()) == pytest.approx(1, abs=1e-12)


# The sampler draws from the enumerated distribution


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_steps": 2},
        {"order": "left_to_right"},
        {"order": "low_confidence"},
        {"order": "low_confidence", "num_steps": 2},
        {"order": "entropy"},
        {"order": "margin"},
        {"order": "plackett_luce"},
        {"order": "plackett_luce", "num_steps": 2, "order_temperature": 1.5},
        {"order": "learned", "num_steps": 2, "order_temperature": 1.5},
        {"top_k": 2},
        {"eos": True},
        {"eos": True, "order": "low_confidence"},
    ],
    ids=str,
)
@pytest.mark.slow
def test_the_sampler_takes_each_path_with_its_enumerated_probability(toy, options):
    small = toy(**options)
    paths, probability = merged(small)
    counts, path, index = sampled_counts(small, 20_000, paths)
    assert (counts[probability == 0] == 0).all()
    # The test needs expected counts of 5 or more, so rarer paths are counted together.
    rare = probability * 20_000 < 5
    observed = torch.cat([counts[~rare], counts[rare].sum().view(1)])
    expected = torch.cat([probability[~rare], probability[rare].sum().view(1)]) * 20_000
    is_possible = expected > 0
    assert chisquare(observed[is_possible], expected[is_possible], sum_check=False).pvalue > 1e-3
    record = small.trajectory(paths)
    torch.testing.assert_close(path.logprob, record.logprob[index])
    torch.testing.assert_close(path.entropy, record.entropy[index])
    if path.choice_logprob is not None:
        torch.testing.assert_close(path.choice_logprob, record.choice_logprob[index])


def test_the_comparison_of_frequencies_can_fail(toy):
    small, other = toy(), toy(temperature=0.8)
    paths = small.paths()
    counts, _, _ = sampled_counts(small, 20_000, paths)
    expected = other.probability(paths).detach() * 20_000
    likely = expected >= 5
    assert chisquare(counts[likely], expected[likely], sum_check=False).pvalue < 1e-12


# Unbiased: all steps, leave-one-out


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"order": "left_to_right"},
        {"order": "entropy"},
        {"order": "margin"},
        {"num_steps": 2, "num_tokens": 2, "length": 4},
        {"temperature": 1.3},
        {"top_k": 2},
    ],
    ids=str,
)
def test_all_steps_with_leave_one_out_estimate_the_gradient_of_the_expected_reward(toy, options):
    small = toy(**options)
    paths = [path for path in small.paths() if float(small.probability([path]).detach()) > 0]
    estimate = expected_estimate(small, method(), *small.groups(paths, 2))
    gradient = small.grad_j()
    assert gradient.norm() > 0.03
    torch.testing.assert_close(estimate, gradient, **EXACT)


def test_the_trainers_sum_over_views_is_the_gradient_divided_by_the_completion_length(toy):
    small = toy(num_tokens=2, length=4, num_steps=2)
    rollout, weight = small.groups(small.paths(), 2)
    views = method().plan(rollout, torch.Generator())
    estimate = expected_estimate(small, method(), rollout, weight)
    per_completion = estimate * float(views.weight[0])
    torch.testing.assert_close(per_completion, small.grad_j() / small.L, **EXACT)


@pytest.mark.parametrize("group_size", [2, 3, 4])
@pytest.mark.parametrize("stepwise_weight", [0.0, 0.5])
@pytest.mark.parametrize(
    ("baseline", "share"), [("leave_one_out", lambda g: 1.0), ("group_mean", lambda g: (g - 1) / g)]
)
def test_leave_one_out_keeps_the_gradient_and_the_group_mean_a_share_of_g_minus_one_in_g(
    toy, group_size, stepwise_weight, baseline, share
):
    small = toy(num_tokens=2, length=2, num_steps=2)
    rollout, weight = small.groups(small.paths(), group_size, stepwise=True)
    options = {"baseline": baseline, "stepwise_weight": stepwise_weight}
    estimate = expected_estimate(small, method(**options), rollout, weight)
    torch.testing.assert_close(estimate, share(group_size) * small.grad_j(), **EXACT)


# Baselines


@pytest.mark.parametrize("stepwise_weight", [0.5, 3.0])
@pytest.mark.parametrize(("baseline", "share"), [("leave_one_out", 1.0), ("group_mean", 0.5)])
def test_the_one_step_value_is_a_baseline_that_does_not_change_the_expectation(toy, stepwise_weight, baseline, share):
    # (1 + λ) r - λ V over 1 + λ is r - λ/(1+λ) V(x_k): the reward keeps weight one and V depends on
    # the state only.
    small = toy()
    rollout, weight = small.groups(small.paths(), 2, stepwise=True)
    options = {"stepwise_weight": stepwise_weight, "baseline": baseline}
    assert rollout.one_step_reward.std() > 0.1
    estimate = expected_estimate(small, method(**options), rollout, weight)
    torch.testing.assert_close(estimate, share * small.grad_j(), **EXACT)


def test_the_one_step_value_alone_is_a_baseline_that_needs_no_group(toy):
    small = toy()
    rollout, weight = small.groups(small.paths(), 1, stepwise=True)
    by_value = method(baseline="value")
    assert not by_value.needs().group
    torch.testing.assert_close(expected_estimate(small, by_value, rollout, weight), small.grad_j(), **EXACT)


def test_the_value_of_the_next_state_is_no_baseline(toy):
    # The negative control: it depends on the action of the step.
    small = toy()
    rollout, weight = small.groups(small.paths(), 1, stepwise=True)
    value = rollout.one_step_reward
    late = replace(rollout, one_step_reward=torch.cat([value[:, 1:], value[:, :1]], dim=1))
    estimate = expected_estimate(small, method(baseline="value"), late, weight)
    assert distance(estimate, small.grad_j()) > 0.1


@pytest.mark.parametrize("order", ["random", "left_to_right", "entropy"])
def test_a_critic_with_any_weights_is_a_baseline_that_needs_no_group(toy, order):
    small, by_critic = toy(order=order), method(baseline="critic")
    needs = by_critic.needs()
    assert (needs.critic, needs.group, needs.greedy) == (True, False, False)
    rollout, weight = small.groups(small.paths(), 1, dtype=torch.float64)
    valued = with_values(small, by_critic, rollout, arbitrary(small))
    assert valued.value.std() > 0.5
    torch.testing.assert_close(expected_estimate(small, by_critic, valued, weight), small.grad_j(), **EXACT)


@pytest.mark.parametrize("step_choice", ["all", "uniform"])
def test_a_critic_is_subtracted_from_telescoped_credit_too(toy, step_choice):
    small = toy()
    rollout, _ = small.groups(small.paths(), 1, stepwise=True, dtype=torch.float64)
    options = {"credit": "telescoped", "step_choice": step_choice, "num_selected": 2}
    by_critic, by_value = method(baseline="critic", **options), method(baseline="value", **options)
    assert by_critic.needs().greedy
    valued = with_values(small, by_critic, rollout, arbitrary(small))
    one_step = rollout.one_step_reward.gather(1, by_critic.critic_steps(rollout))
    torch.testing.assert_close(by_critic.advantage(valued) + valued.value, by_value.advantage(rollout) + one_step)


def test_a_critic_that_sees_the_action_is_no_baseline(toy):
    small, by_critic = toy(), method(baseline="critic")
    rollout, weight = small.groups(small.paths(), 1, dtype=torch.float64)
    valued = with_values(small, by_critic, rollout, arbitrary(small))
    late = replace(valued, value=torch.cat([valued.value[:, 1:], valued.value[:, :1]], dim=1))
    assert distance(expected_estimate(small, by_critic, late, weight), small.grad_j()) > 0.1


def test_the_stepwise_advantage_is_the_groups_advantage_less_a_share_of_the_values_own(toy):
    # A_ik = (r_i - mean r) - λ/(1+λ) (V_ik - mean V_k), here with λ = 0.5.
    small = toy(num_tokens=2, length=2, num_steps=2)
    rollout, _ = small.groups(small.paths(), 3, stepwise=True)
    advantage = method(stepwise_weight=0.5, baseline="group_mean").advantage(rollout)
    r, v = rollout.reward.view(-1, 3, 1), rollout.one_step_reward.view(-1, 3, 2)
    expected = (r - r.mean(1, keepdim=True)) - (v - v.mean(1, keepdim=True)) / 3
    torch.testing.assert_close(advantage, expected.view(-1, 2), rtol=0, atol=1e-14)
    assert (advantage[:, 0] - advantage[:, 1]).abs().max() > 0.05


def test_any_function_of_the_state_is_a_baseline(toy):
    small = toy()
    rollout, weight = small.groups(small.paths(), 2)

    def of_the_state(views):
        shown = rollout.trajectory.tokens[views.row].masked_fill(views.hidden, small.V)
        return torch.sin((shown * small.denoiser.place).sum(-1).double() * 12.9898)

    estimate = expected_estimate(small, method(), rollout, weight, extra=of_the_state)
    torch.testing.assert_close(estimate, small.grad_j(), **EXACT)


def test_a_baseline_that_depends_on_the_action_is_biased(toy):
    small = toy()
    rollout, weight = small.groups(small.paths(), 2)

    def of_the_action(views):
        committed = (rollout.trajectory.tokens[views.row] * views.target).sum(-1)
        return -0.5 * (committed == 1).double()

    estimate = expected_estimate(small, method(), rollout, weight, extra=of_the_action)
    assert distance(estimate, small.grad_j()) > 0.3


# Step selection


@pytest.mark.parametrize("rule", ["entropy_topk", "lowest_entropy", "last_k"])
@pytest.mark.parametrize("num_selected", [1, 2])
@pytest.mark.slow
def test_the_bias_of_selecting_k_steps_is_that_of_the_dropped_steps(toy, rule, num_selected):
    small = toy()
    paths = small.paths()

    def priority(path):
        entropy = small.entropy(path)
        return {"entropy_topk": entropy, "lowest_entropy": [-h for h in entropy], "last_k": [0, 1, 2]}[rule]

    selected = [sorted(range(3), key=lambda k: -priority(path)[k])[:num_selected] for path in paths]
    reward = small.reward(paths)
    mean = float((small.probability(paths).detach() * reward).sum())
    # With leave-one-out the other member is independent of the path, so only its mean enters.
    expected = pinned(small, paths, lambda b, k: (float(reward[b]) - mean) if k in selected[b] else 0.0)
    options = {"step_choice": rule, "num_selected": num_selected}
    estimate = expected_estimate(small, method(**options), *small.groups(paths, 2))
    torch.testing.assert_close(estimate, expected, **EXACT)
    gradient = small.grad_j()
    # It is biased at any scale: even its direction differs from that of the gradient.
    aligned = gradient * (estimate * gradient).sum() / gradient.square().sum()
    assert distance(estimate, aligned) > 0.2


@pytest.mark.slow
@pytest.mark.parametrize("num_selected", [1, 2])
@pytest.mark.parametrize("stepwise_weight", [0.0, 0.5])
def test_k_uniform_steps_of_t_estimate_k_in_t_of_the_gradient(toy, num_selected, stepwise_weight):
    small = toy()
    chosen = method(step_choice="uniform", num_selected=num_selected, stepwise_weight=stepwise_weight)
    estimates = []
    for seed in seeds_by_ranking(3):
        rollout, weight = small.groups(small.paths(), 2, stepwise=True, seed=seed)
        rank = selection_noise(torch.tensor([seed]), 3).argsort(-1, descending=True)[0, :num_selected]
        path = replace(rollout.trajectory, selected_step=rank.int().expand(len(rollout.reward), -1))
        rollout = replace(rollout, trajectory=path, one_step_reward=rollout.one_step_reward[:, rank])
        estimates.append(expected_estimate(small, chosen, rollout, weight))
    torch.testing.assert_close(torch.stack(estimates).mean(0), num_selected / 3 * small.grad_j(), **EXACT)
    assert distance(3 / num_selected * estimates[0], small.grad_j()) > 0.3, "one choice alone is no estimate"


def test_one_low_discrepancy_step_of_t_estimates_one_in_t_of_the_gradient(toy):
    small = toy()
    seeds = torch.arange(1000)
    choice = (selection_noise(seeds, 3)[:, 0] * 3).floor()
    chosen = method(step_choice="low_discrepancy", num_selected=1)
    estimates = [
        expected_estimate(small, chosen, *small.groups(small.paths(), 2, seed=int(seeds[choice == k][0])))
        for k in range(3)
    ]
    torch.testing.assert_close(torch.stack(estimates).mean(0), small.grad_j() / 3, **EXACT)


# Known departures from the gradient


def test_scoring_at_another_temperature_than_the_samplers_is_biased(toy):
    small = toy()
    estimate = expected_estimate(small, method(), *small.groups(small.paths(), 2), logprob_temperature=1.0)
    gradient = small.grad_j()
    assert distance(estimate, gradient) > 0.1
    # The difference is more than the factor 1 / τ.
    aligned = gradient * (estimate * gradient).sum() / gradient.square().sum()
    assert distance(estimate, aligned) > 0.05


def test_scoring_without_the_samplers_top_k_is_biased(toy):
    small = toy(top_k=2)
    paths = [path for path in small.paths() if float(small.probability([path]).detach()) > 0]
    rollout, weight = small.groups(paths, 2)
    estimate = expected_estimate(small, method(), rollout, weight, logprob_temperature=small.temperature)
    assert distance(estimate, small.grad_j()) > 0.1


@pytest.mark.parametrize("num_steps", [3, 2])
def test_under_low_confidence_the_estimate_lacks_exactly_the_gradient_of_the_choice_of_positions(toy, num_steps):
    small = toy(order="low_confidence", num_steps=num_steps)
    paths, probability = merged(small)
    rollout, _ = small.groups([replace(path, proposals=()) for path in paths], 2)
    members = torch.cartesian_prod(torch.arange(len(paths)), torch.arange(len(paths)))
    estimate = expected_estimate(small, method(), rollout, probability[members].prod(-1))

    dropped = dropped_gradient(small, paths, probability)
    gradient = small.grad_j()
    torch.testing.assert_close(estimate + dropped, gradient, **EXACT)
    assert dropped.norm() > 0.1 * gradient.norm()


@pytest.mark.slow
@pytest.mark.parametrize(("order", "num_steps"), [("plackett_luce", 3), ("plackett_luce", 2), ("learned", 2)])
def test_if_positions_are_drawn_the_order_term_makes_all_steps_exact_and_without_it_they_are_not(toy, order, num_steps):
    small = toy(order=order, num_steps=num_steps)
    rollout, weight = small.groups(small.paths(), 2)
    gradient = small.grad_j()
    torch.testing.assert_close(expected_estimate(small, method(), rollout, weight), gradient, **EXACT)
    without = expected_estimate(small, method(choice_term=False), rollout, weight)
    assert distance(without, gradient) > 0.05
    # Adding the missing term, computed pick by pick, gives the gradient.
    paths = small.paths()
    probability, reward = small.probability(paths).detach(), small.reward(paths)
    picks = torch.stack([sum(map(small.pick_logprob, path.picks)) for path in paths])
    dropped = small.gradient((probability * (reward - (probability * reward).sum()) * picks).sum())
    torch.testing.assert_close(without + dropped, gradient, **EXACT)
    if order == "learned":
        of_head = slice(small.denoiser.table.numel(), None)
        assert gradient[of_head].norm() > 0.01
        assert (without[of_head] == 0).all(), "without the term the head learns nothing"


# Unbiased entropy guidance


def over_selection_draws(small, paths, num_selected, monkeypatch):
    """Yield every selection of the two members' uniform draws with its probability; meanwhile it is
    the selection in use."""
    entropy = torch.tensor([small.entropy(path) for path in paths], dtype=torch.float64)
    pi = inclusion_probability(entropy, torch.ones_like(entropy, dtype=torch.bool), num_selected)
    # Systematic sampling: between two neighbouring edges, of any path, every path's selection is
    # constant.
    edges = torch.cat([pi.cumsum(-1).flatten() % 1.0, torch.tensor([0.0, 1.0])]).unique().tolist()
    # One edge may occur twice, rounded in two ways.
    spans = [(low, high) for low, high in itertools.pairwise(edges) if high - low > 1e-12]
    for span in itertools.product(spans, repeat=2):
        draws = torch.tensor([(low + high) / 2 for low, high in span], dtype=torch.float64)

        def noise(seed, num_steps, draws=draws):
            by_row = draws.repeat(len(seed) // 2)
            # The second of two groups in a batch has its own draw, as in a run.
            by_row[2 : 4 if len(seed) == 4 else 2] = 0.5
            return by_row.unsqueeze(-1).expand(-1, num_steps)

        monkeypatch.setattr(selection, "selection_noise", noise)
        yield math.prod(high - low for low, high in span)


def with_kept_steps(rollout, chosen):
    """Return the rollout with one-step completions of only the selected steps, as the sampler
    stores them."""
    path = rollout.trajectory
    steps = selection.selected_path_steps(
        chosen.needs().selection, path.unmask_step, path.entropy, path.tokens == 99, path.seed, path.num_steps
    )
    value = rollout.one_step_reward.gather(1, steps.clamp(min=0))
    return replace(rollout, trajectory=replace(path, selected_step=steps.int()), one_step_reward=value)


@pytest.mark.slow
@pytest.mark.parametrize("num_selected", [1, 2])
@pytest.mark.parametrize("stepwise_weight", [0.0, 0.5])
def test_steps_sampled_by_entropy_with_inverse_weights_estimate_the_gradient(
    toy, num_selected, stepwise_weight, monkeypatch
):
    small = toy(num_tokens=2, length=3, order="left_to_right")
    paths = small.paths()
    chosen = method(step_choice="entropy_sampled", num_selected=num_selected, stepwise_weight=stepwise_weight)
    rollout, weight = small.groups(paths, 2, stepwise=True)
    total, unweighted, covered = 0.0, 0.0, 0.0
    for probability in over_selection_draws(small, paths, num_selected, monkeypatch):
        kept = with_kept_steps(rollout, chosen)
        views = chosen.plan(kept, torch.Generator())
        total += probability * small.L * expected_gradient(small, chosen, kept, weight, views=views)
        equal = replace(views, weight=torch.full_like(views.weight, 1 / num_selected))
        unweighted += probability * small.num_steps * expected_gradient(small, chosen, kept, weight, views=equal)
        covered += probability
    assert covered == pytest.approx(1, abs=1e-9)
    # The weights are float32.
    assert distance(total, small.grad_j()) < 1e-6
    assert distance(unweighted, small.grad_j()) > 0.05, "without the weights it is biased"


@pytest.mark.slow
def test_a_critic_values_the_steps_that_entropy_drew(toy, monkeypatch):
    small = toy(num_tokens=2, length=3, order="left_to_right")
    chosen, table = method(step_choice="entropy_sampled", num_selected=1, baseline="critic"), arbitrary(small)
    rollout, weight = small.groups(small.paths(), 2)
    total = 0.0
    for probability in over_selection_draws(small, small.paths(), 1, monkeypatch):
        valued = with_values(small, chosen, rollout, table)
        total += probability * small.L * expected_gradient(small, chosen, valued, weight)
    assert distance(total, small.grad_j()) < 1e-6


def test_a_gain_fitted_on_the_other_groups_is_unbiased_and_one_fitted_on_its_own_is_not(toy):
    small = toy(num_tokens=2, length=2, num_steps=2)
    rollout, weight = small.groups(small.paths(), 2, stepwise=True)
    chosen = method(gain="fitted")
    num_groups = len(weight)
    gains = []
    for other in (1, 12, 50):
        advantage = []
        for group in range(num_groups):
            rows = torch.tensor([2 * group, 2 * group + 1, 2 * other, 2 * other + 1])
            batch = Rollout(rollout.trajectory.rows(rows), 2, rollout.reward[rows], rollout.one_step_reward[rows])
            advantage.append(chosen.advantage(batch)[:2])
            gains.append(float(fitted_gain(batch.reward, batch.one_step_reward, torch.ones(4, 2).bool(), 2)[0]))
        estimate = expected_estimate(small, chosen, rollout, weight, advantage=torch.cat(advantage))
        torch.testing.assert_close(estimate, small.grad_j(), **EXACT)
    assert len({round(gain, 9) for gain in gains}) == 2
    assert max(map(abs, gains)) > 0.1
    r, v = rollout.reward.view(-1, 2, 1), rollout.one_step_reward.view(-1, 2, 2)
    d_r, d_v = r - r.mean(1, keepdim=True), v - v.mean(1, keepdim=True)
    own = (d_r * d_v).sum((1, 2), keepdim=True) / d_v.square().sum((1, 2), keepdim=True).clamp(min=1e-9)
    peeking = (2 * (d_r - own * d_v)).view(-1, 2)
    estimate = expected_estimate(small, chosen, rollout, weight, advantage=peeking)
    assert distance(estimate, small.grad_j()) > 0.05


def values_ahead(small, path):
    """Return V of the state after each step; after the last step, the reward."""
    values = [float(small.reward_table[small.greedy(path, k)]) for k in range(1, small.num_steps)]
    return [*values, float(small.reward_table[path.tokens])]


@pytest.mark.parametrize("order", ["random", "left_to_right"])
def test_telescoped_credit_estimates_the_gradient_of_the_value_one_step_ahead(toy, order):
    # Σ_k E[(V(x_{k+1}) - c V(x_k)) ∇ log π_k]: the value of the next state in place of the reward,
    # which is a bias.
    small = toy(order=order)
    paths = small.paths()
    rollout, weight = small.groups(paths, 2, stepwise=True)
    estimate = expected_estimate(small, method(credit="telescoped", stepwise_weight=1.0), rollout, weight)
    expected = pinned(small, paths, lambda b, k: values_ahead(small, paths[b])[k])
    torch.testing.assert_close(estimate, expected, **EXACT)
    assert distance(estimate, small.grad_j()) > 0.1


@pytest.mark.slow
def test_all_options_of_unbiased_guidance_can_be_combined(toy, monkeypatch):
    small = toy(num_tokens=2, length=2, num_steps=2)
    paths = small.paths()
    rollout, weight = small.groups(paths, 2, stepwise=True)
    options = {"step_choice": "entropy_sampled", "num_selected": 1, "gain": "fitted", "credit": "telescoped"}
    chosen = method(**options)
    assert chosen.needs().selection == ("all", 1)
    other, total, gains = 7, 0.0, set()
    for probability in over_selection_draws(small, paths, 1, monkeypatch):
        advantage = []
        for group in range(len(weight)):
            rows = torch.tensor([2 * group, 2 * group + 1, 2 * other, 2 * other + 1])
            batch = Rollout(rollout.trajectory.rows(rows), 2, rollout.reward[rows], rollout.one_step_reward[rows])
            advantage.append(chosen.advantage(batch)[:2])
        advantage = torch.cat(advantage)
        plain = chosen.model_copy(update={"gain": "fixed"}).advantage(rollout)
        gains.add(bool((advantage - plain).abs().max() > 0.05))
        total += probability * small.L * expected_gradient(small, chosen, rollout, weight, advantage=advantage)
    expected = pinned(small, paths, lambda b, k: values_ahead(small, paths[b])[k])
    assert distance(total, expected) < 1e-6
    assert True in gains, "the fitted gain was at work"


@pytest.mark.parametrize("order", ["random", "left_to_right"])
@pytest.mark.parametrize("stepwise_weight", [0.0, 0.5])
@pytest.mark.parametrize(("baseline", "share"), [("leave_one_out", 1.0), ("group_mean", 0.5)])
def test_all_steps_estimate_the_gradient_where_rows_may_end_early_too(toy, order, stepwise_weight, baseline, share):
    # How many views a completion has then depends on its path: the estimate must not be divided by
    # that, and a reward must be compared with those of all members, whether they have the slot or
    # not.
    small = toy(eos=True, order=order)
    rollout, weight = small.groups(small.paths(), 2, stepwise=True)
    assert (rollout.trajectory.selected_step < 0).any()
    options = {"stepwise_weight": stepwise_weight, "baseline": baseline}
    estimate = expected_estimate(small, method(**options), rollout, weight)
    torch.testing.assert_close(estimate, share * small.grad_j(), **EXACT)


@pytest.mark.parametrize("order", ["random", "left_to_right"])
def test_where_a_row_may_end_early_other_rules_lack_the_steps_after_its_last_text(toy, order):
    # A step that committed only EOS is a candidate only if a later one commits text, which lies in
    # its future.
    small = toy(eos=True, order=order)
    paths = small.paths()
    eos = small.denoiser.eos_id
    candidates = []
    for path in paths:
        steps = sorted({k for k, *_ in path.draws})
        with_text = [k for k, _, _, token in path.draws if token != eos]
        candidates.append([k for k in steps if not with_text or k <= max(with_text)])
    reward = small.reward(paths)
    mean = float((small.probability(paths).detach() * reward).sum())
    every_candidate = method(step_choice="last_k", num_selected=small.num_steps)
    estimate = expected_estimate(small, every_candidate, *small.groups(paths, 2))
    dropped = pinned(small, paths, lambda b, k: 0.0 if k in candidates[b] else float(reward[b]) - mean)
    torch.testing.assert_close(estimate + dropped, small.grad_j(), **EXACT)
    assert dropped.norm() > 0.03 * small.grad_j().norm()


# The trainer's own update


@pytest.mark.parametrize("views_per_forward", [1, 3, 1000])
@pytest.mark.parametrize("kl", [None, "k3", "exact"])
def test_the_trainers_gradient_is_that_of_the_mean_loss_over_completions_and_slots_in_any_chunks(
    toy, table_denoiser, views_per_forward, kl
):
    small = toy(num_steps=2)
    paths = small.paths()
    rows = torch.randint(len(paths), (8,), generator=torch.Generator().manual_seed(1))
    rollout = Rollout(small.trajectory(paths).rows(rows), 4, small.reward(paths)[rows])
    reference = table_denoiser(small.V, small.L, 99, seed=5)
    options = {"beta": 0.3 if kl else 0.0, "kl": kl or "k3"}
    recipe = TrainRecipe(
        task=Sudoku(),
        model="none",
        method=method(**options),
        sampler=SamplerConfig(max_completion_length=small.L, num_steps=2, order="random", temperature=TEMPERATURE),
        optim=OptimConfig(max_grad_norm=1e9),
        num_generations=4,
        views_per_forward=views_per_forward,
    )
    accelerator = Accelerator()
    model = small.denoiser.to(accelerator.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    learner = Learner(accelerator, model, optimizer, FrozenCopy(reference, accelerator.device), recipe)

    # The same by hand: 16 views, each step's log-probability and its KL to the reference read off
    # the tables.
    table, other = small.logprobs(TEMPERATURE), Toy(reference, 2).logprobs(TEMPERATURE).detach()
    r = rollout.reward.view(2, 4)
    advantage = ((r - r.mean(1, keepdim=True)) * 4 / 3).flatten()
    total = torch.zeros((), dtype=torch.float64)
    for b, path in enumerate(paths[i] for i in rows):
        for step in range(2):
            index = tuple(torch.tensor([d[1:] for d in path.draws if d[0] == step]).T)
            new, old = table[index].sum(), table[index].sum().detach()
            loss = -advantage[b] * (new - old).exp()
            if kl == "k3":
                gap = other[index].sum() - new
                loss = loss + 0.3 * (gap.exp() - gap - 1)
            if kl == "exact":
                p, q = table[index[:2]], other[index[:2]]
                loss = loss + 0.3 * (p.exp() * (p - q)).sum()
            total = total + loss / 16
    expected = small.gradient(total) * torch.tensor(2 / 3).double()

    learner.update(rollout_on(rollout, accelerator.device), 0, torch.Generator(), Tally())
    assert expected.norm() > 0.05
    torch.testing.assert_close(model.table.grad.cpu(), expected, rtol=0, atol=1e-13)


def rollout_on(rollout, device):
    return replace(rollout, trajectory=rollout.trajectory.to(device), reward=rollout.reward.to(device))

"""Direct advantage optimisation on the enumerable toy: its gradient at the anchor and away from it, and its minimum."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.any_order import another
from tests.helpers.messages import raises
from tests.helpers.records import make_inputs
from tests.helpers.toy import distance, pinned
from tests.helpers.values import arbitrary, true_values, with_values
from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError
from unmask.core.records import LossInputs, Needs
from unmask.methods import METHODS
from unmask.methods.direct_advantage import DirectAdvantage
from unmask.methods.egspo import EGSPO
from unmask.sampling import LogprobSettings, view_logprobs

EXACT = {"rtol": 0.0, "atol": 1e-10}
BETA = 0.3


def test_the_defaults():
    expected = {"type": "direct_advantage", "beta": 0.04, "anchor": "old", "num_selected": 8, "step_choice": "all"}
    assert METHODS["direct_advantage"]().model_dump() == expected | {"value": "one_step"}
    assert DirectAdvantage().needs() == Needs(greedy=True, selection=("all", 1), group=False)
    assert DirectAdvantage(anchor="reference").needs().reference == "logprob"
    by_critic = DirectAdvantage(value="critic").needs()
    assert by_critic.critic
    assert not by_critic.greedy


def estimate(small, method, anchor, table=None):
    """Return the expected gradient over the paths of `small`, without the constant of the plan. The log-ratio is measured
    from the toy `anchor`, and the values of a critic are those of the `table` of states."""
    rollout, probability = small.groups(small.paths(), 1, stepwise=True, dtype=torch.float64)
    if table is not None:
        rollout = with_values(small, method, rollout, table)
    path, views, settings = rollout.trajectory, method.plan(rollout, torch.Generator()), LogprobSettings(0.7, 0, 1.0)
    new = view_logprobs(small.denoiser, path, views, settings).logprob
    with torch.no_grad():
        old = view_logprobs(anchor.denoiser, path, views, settings).logprob
    advantage = method.advantage(rollout)[views.row, views.slot]
    loss = method.loss(LossInputs(new, old, old, None, views.row, views.target, views.weight, advantage)).loss
    return -small.gradient((probability[views.row] * loss).sum()) / views.weight[0].double()


def change_of_value(small, path, step):
    """Return V(x_{k+1}) - V(x_k), with the reward at the end."""
    after = small.reward_table[path.tokens if step == small.num_steps - 1 else small.greedy(path, step + 1)]
    return float(after - small.reward_table[small.greedy(path, step)])


@pytest.mark.parametrize("order", ["random", "left_to_right"])
def test_at_its_anchor_the_gradient_is_that_of_the_value_one_step_ahead(toy, order):
    small = toy(num_tokens=2, num_steps=3, order=order)
    paths = small.paths()
    expected = pinned(small, paths, lambda b, k: change_of_value(small, paths[b], k))
    torch.testing.assert_close(estimate(small, DirectAdvantage(beta=BETA), small), expected, **EXACT)
    # This is a bias: the policy gradient credits a step with the reward.
    assert distance(expected, small.grad_j()) > 0.1


@pytest.mark.parametrize("order", ["random", "left_to_right"])
def test_with_the_true_values_of_a_critic_it_follows_the_policy_gradient(toy, order):
    small, method = toy(num_tokens=2, num_steps=3, order=order), DirectAdvantage(beta=BETA, value="critic")
    torch.testing.assert_close(estimate(small, method, small, true_values(small)), small.grad_j(), **EXACT)
    # Wrong values are a bias, because the value of the next state depends on the action.
    assert distance(estimate(small, method, small, arbitrary(small)), small.grad_j()) > 0.1


def test_away_from_its_anchor_the_squared_log_ratio_pulls_back(toy, table_denoiser):
    small = toy(num_tokens=2, num_steps=2)
    anchor, paths = another(small, table_denoiser), small.paths()
    ours, theirs = small.logprobs(0.7).detach(), anchor.logprobs(0.7).detach()

    def weight(b, k):
        draws = [draw[1:] for draw in paths[b].draws if draw[0] == k]
        return change_of_value(small, paths[b], k) - BETA * sum(float(ours[d] - theirs[d]) for d in draws)

    for name in ("old", "reference"):
        method = DirectAdvantage(beta=BETA, anchor=name)
        torch.testing.assert_close(estimate(small, method, anchor), pinned(small, paths, weight), **EXACT)
    assert distance(pinned(small, paths, weight), estimate(small, DirectAdvantage(beta=BETA), small)) > 0.1


def test_its_minimum_is_the_log_ratio_that_is_the_advantage_over_beta():
    given = make_inputs([[-1.0, -1.0], [-1.0, -2.0]], old=[[-1.5, -1.5], [-1.0, -1.0]], advantage=[0.4, 0.4])
    output = DirectAdvantage(beta=0.4).loss(given)
    # Log-ratios of 1 and -1 against a target of 1: 0.4 / 2 times 0² and 2², up to the constant 0.4 / 2.
    assert (output.loss + 0.2).tolist() == pytest.approx([0.0, 0.8])
    assert output.metrics["regression/gap"].tolist() == pytest.approx([0.0, 0.8])
    output.loss.sum().backward()
    assert given.new.grad.tolist() == [pytest.approx([0.0, 0.0], abs=1e-6), pytest.approx([-0.8, -0.8])]


def test_chosen_steps_have_the_advantages_of_those_steps(toy):
    small = toy(num_tokens=2, num_steps=3)
    rollout, _ = small.groups(small.paths(), 1, stepwise=True)
    every = DirectAdvantage().advantage(rollout)
    method = DirectAdvantage(step_choice="uniform", num_selected=2)
    views, chosen = method.plan(rollout, torch.Generator()), method.advantage(rollout)
    step = rollout.trajectory.shown_step(views)
    assert torch.equal(chosen[views.row, views.slot], every[views.row, step])
    assert (step.view(-1, 2)[:, 0] != step.view(-1, 2)[:, 1]).all()


def test_it_shares_its_credit_with_egspo(toy):
    small = toy(num_tokens=2, num_steps=3)
    rollout, _ = small.groups(small.paths(), 2, stepwise=True)
    egspo = EGSPO(step_choice="all", beta=0.0, credit="telescoped", baseline="value")
    torch.testing.assert_close(DirectAdvantage().advantage(rollout), egspo.advantage(rollout))


def test_more_selected_steps_than_steps_are_refused():
    sampler = SamplerConfig(max_completion_length=8, num_steps=4)
    DirectAdvantage().check(sampler, 1)
    with raises(ConfigError, "num_selected = 8 is more than the 4 denoising steps"):
        DirectAdvantage(step_choice="uniform").check(sampler, 1)

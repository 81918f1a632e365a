"""The ELBO of the enumerable toy, computed without masks' weights: the mean over all orders of writing a completion.

log p(x) ≥ E_σ[Σ_k log p(x_σ(k) | x_σ(1..k-1))]: with each order equally likely, that is the masked-diffusion ELBO. Orders are
enumerated one by one here; the estimators under test know of counts, sets and weights only.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch

from tests.helpers.toy import Toy
from unmask.core.records import LossInputs, Rollout, Views
from unmask.sampling import LogprobSettings, view_logprobs

EXACT = {"rtol": 0.0, "atol": 1e-10}


def elbos(toy, paths, positions=None):
    """[paths] ELBO of each completion, with graph.

    Args:
        toy: whose table is read.
        paths: completions.
        positions: those of each path that are written, a function of the path; the others are shown throughout. Default all.
    """
    table = toy.logprobs(toy.temperature)
    values = []
    for path in paths:
        written = tuple(range(toy.L)) if positions is None else positions(path)
        draws, orders = [], list(itertools.permutations(written))
        for order in orders:
            shown = [toy.V if i in written else token for i, token in enumerate(path.tokens)]
            for i in order:
                draws.append((0, toy.index(shown), i, path.tokens[i]))
                shown[i] = path.tokens[i]
        values.append(toy.gather(table, [tuple(draws)])[0] / len(orders))
    return torch.stack(values)


def weighted_elbo_gradient(toy, paths, advantage, values=None):
    """Σ_y p(y) A(y) ∇ELBO(y), with `values` in place of the ELBOs where given."""
    probability = toy.probability(paths).detach()
    values = elbos(toy, paths) if values is None else values
    return toy.gradient((probability * advantage * values).sum())


def against_the_mean(toy, paths):
    """A(y) = r(y) - E[r], which leave-one-out comes to in expectation."""
    reward = toy.reward(paths)
    return reward - (toy.probability(paths).detach() * reward).sum()


def all_masks(length):
    """[2^L - 1, L] every set of positions but the empty one."""
    return torch.tensor(list(itertools.product([False, True], repeat=length))[1:])


def all_views(rollout, weight_of, is_maskable=None):
    """For each completion one view for each set of its maskable positions, float64 weight `weight_of(count, num_positions)`."""
    length = rollout.trajectory.tokens.shape[1]
    if is_maskable is None:
        is_maskable = torch.ones_like(rollout.trajectory.tokens, dtype=torch.bool)
    masks = all_masks(length)
    fits = (masks.unsqueeze(0) <= is_maskable.unsqueeze(1)).all(-1)
    row, which = fits.nonzero(as_tuple=True)
    hidden = masks[which]
    counts = torch.stack([hidden.sum(-1), is_maskable.sum(-1)[row]], dim=-1).tolist()
    weight = torch.tensor([weight_of(count, num_positions) for count, num_positions in counts], dtype=torch.float64)
    return Views(row=row, hidden=hidden, target=hidden, weight=weight, slot=torch.zeros_like(row))


def loss_of(toy, method, rollout, views, *, old=None, reference=None, advantage=None):
    """What the method makes of views under the toy's table; `old` and `reference` are other toys, the toy itself by default."""
    path = rollout.trajectory
    scoring = LogprobSettings.of(path, "sampling")
    advantage = method.advantage(rollout) if advantage is None else advantage

    def scores(small):
        return view_logprobs(small.denoiser, path, views, scoring).logprob

    new = scores(toy)
    return method.loss(
        LossInputs(
            new=new,
            old=(new if old is None else scores(old)).detach(),
            reference=(new if reference is None else scores(reference)).detach(),
            exact_kl=None,
            row=views.row,
            target=views.target,
            weight=views.weight,
            advantage=advantage[views.row],
            slot=views.slot,
            group_size=rollout.group_size,
        )
    )


def another(toy, table_denoiser, seed=5):
    """A toy of the same shape with another table."""
    return Toy(table_denoiser(toy.V, toy.L, toy.denoiser.eos_id, seed=seed), toy.num_steps, toy.order, toy.temperature)


def many(toy, count, group_size=2, seed=1):
    """A rollout of `count` completions drawn at random from the toy's paths, all equally likely."""
    paths = toy.paths()
    rows = torch.randint(len(paths), (count,), generator=torch.Generator().manual_seed(seed))
    return Rollout(toy.trajectory(paths).rows(rows), group_size, toy.reward(paths)[rows])


def with_given(rollout, row, positions):
    """The same rollout, with tokens of one completion there from the start."""
    unmask_step = rollout.trajectory.unmask_step.clone()
    unmask_step[row, positions] = -1
    return replace(rollout, trajectory=replace(rollout.trajectory, unmask_step=unmask_step))

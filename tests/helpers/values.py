"""Values of the states of the enumerable toy, and the policy that is optimal under a KL to a reference."""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch


def states(toy, path, steps):
    """Return the index of the state before each of the steps [B, C]; that of the finished completion for -1."""
    when = torch.where(steps < 0, toy.num_steps, steps).unsqueeze(-1)
    shown = torch.where(path.unmask_step.unsqueeze(1) >= when, toy.V, path.tokens.unsqueeze(1))
    return (shown * (toy.V + 1) ** torch.arange(toy.L)).sum(-1)


def with_values(toy, method, rollout, table):
    """Return the rollout as a critic would value it whose value of state s is `table[s]`."""
    steps = method.critic_steps(rollout)
    value = table[states(toy, rollout.trajectory, steps)].masked_fill(steps < 0, 0.0)
    return replace(rollout, value=value)


def arbitrary(toy, seed=3):
    """Return a random value for each state."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((toy.V + 1) ** toy.L, generator=generator, dtype=torch.float64)


def true_values(toy, reference=None, alpha=0.0):
    """Return E[r - α Σ_{l ≥ k} ℓ_l | x_k] under the toy's policy for each state, over all paths that visit it. The
    log-ratios ℓ are those to `reference`."""
    paths = toy.paths()
    probability, reward = toy.probability(paths).detach(), toy.reward(paths)
    mass, total = (torch.zeros((toy.V + 1) ** toy.L, dtype=torch.float64) for _ in range(2))
    trajectory = toy.trajectory(paths)
    for k in range(toy.num_steps):
        to_come = [tuple(draw for draw in path.draws if draw[0] >= k) for path in paths]
        soft = reward
        if alpha:
            ours, theirs = (each.gather(each.logprobs(each.temperature), to_come) for each in (toy, reference))
            soft = reward - alpha * (ours - theirs).detach()
        index = states(toy, trajectory, torch.full((len(paths), 1), k)).squeeze(-1)
        mass.index_add_(0, index, probability)
        total.index_add_(0, index, probability * soft)
    return total / mass.clamp(min=1e-300)


def follow(toy, joint):
    """Set the toy's table so that each conditional is that of one joint distribution of the tokens, [V, ..., V], and
    return E[w | state] for each state, given a function w of the completion."""
    completions = list(itertools.product(range(toy.V), repeat=toy.L))
    fits: dict[int, list[tuple[int, ...]]] = {}
    for shown in itertools.product(range(toy.V + 1), repeat=toy.L):
        rest = [x for x in completions if all(s in (toy.V, t) for s, t in zip(shown, x, strict=True))]
        fits[toy.index(shown)] = rest
        for i in (i for i, s in enumerate(shown) if s == toy.V):
            mass = [sum(float(joint[x]) for x in rest if x[i] == v) for v in range(toy.V)]
            with torch.no_grad():
                toy.denoiser.table[toy.index(shown), i, : toy.V] = (
                    toy.temperature * torch.tensor(mass, dtype=torch.float64).log()
                )

    def mean(weight):
        values = torch.zeros(len(fits), dtype=torch.float64)
        for state, rest in fits.items():
            masses = torch.stack([joint[x] for x in rest])
            values[state] = (masses * torch.stack([weight[x] for x in rest])).sum() / masses.sum()
        return values

    return mean


def tilted(toy, reference, alpha):
    """Make the toy the optimum of E[r] - α KL(π || reference), one token a step, and return its soft values
    α log E_reference[exp(r / α) | state].

    The conditionals of the reference become those of one joint distribution. Then they do not depend on the order in
    which positions are written, and a policy under a random order can be optimal.
    """
    generator = torch.Generator().manual_seed(11)
    joint = torch.rand((toy.V,) * toy.L, generator=generator, dtype=torch.float64) + 0.1
    weight = (toy.reward_table / alpha).exp()
    soft = alpha * follow(reference, joint / joint.sum())(weight).log()
    follow(toy, joint * weight / (joint * weight).sum())
    return soft

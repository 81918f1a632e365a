"""A model small enough to enumerate: every denoising path, its probability with graph, its entropies and greedy completions.

With V = 3 tokens, L = 3 positions and T = 3 steps there are 3! 3³ = 162 denoising paths under random order. Their probabilities
are products of softmaxes of a table, so J(θ) = Σ_τ p(τ) r(τ) is differentiated by autograd, and the exact expectation of a real
estimator (plan, advantage, replay, loss) is taken over all pairs of paths, which are the groups of G = 2. All in float64.

Nothing here calls the sampler or the selection to find out what they should do.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch

from unmask.core.config import SamplerConfig
from unmask.core.records import LossInputs, Rollout, Trajectory
from unmask.sampling import LogprobSettings, view_logprobs

TEMPERATURE = 0.7


# Enumeration


@dataclass(frozen=True)
class Path:
    """One way to denoise a completion."""

    tokens: tuple[int, ...]
    when: tuple[int, ...]
    draws: tuple[tuple[int, int, int, int], ...] = ()
    """(step, state, position, token) of every committed token."""
    choice: float = 1.0
    """Probability of the positions, where it does not depend on θ."""
    picks: tuple[tuple[int, int, tuple[int, ...]], ...] = ()
    """Under Plackett-Luce: (state, position, positions that it was drawn from) of every committed token."""
    proposals: tuple[tuple[int, int, int, int], ...] = field(default=(), compare=False)
    """Under low confidence: the draws at masked positions that were not committed."""

    @property
    def seen(self) -> tuple[int, ...]:
        """What a trajectory records of it: tokens, steps, and under Plackett-Luce the places within the steps."""
        places = [0] * len(self.tokens)
        for n, (step, _, i, _) in enumerate(self.draws if self.picks else ()):
            places[i] = n - sum(k < step for k, *_ in self.draws)
        return (*self.tokens, *self.when, *places)


class Toy:
    """A tabular denoiser with its sampler's settings, and everything that can be enumerated of it."""

    def __init__(
        self,
        denoiser,
        num_steps=3,
        order="random",
        temperature=TEMPERATURE,
        top_k=0,
        eos=False,
        order_temperature=0.5,
        schedule="fixed",
    ):
        self.denoiser, self.num_steps, self.order = denoiser, num_steps, order
        self.order_temperature = order_temperature
        self.is_drawn = order in ("plackett_luce", "learned")
        if order == "learned":
            denoiser.add_scores()
        self.temperature, self.top_k, self.eos = temperature, top_k, eos
        self.V, self.L = denoiser.num_tokens, denoiser.length
        self.counts = [self.L // num_steps + (k < self.L % num_steps) for k in range(num_steps)]
        self.schedule, (self.rule, _, bound) = schedule, schedule.partition("=")
        self.bound = float(bound or 0)
        generator = torch.Generator().manual_seed(7)
        self.reward_table = torch.rand((self.V,) * self.L, generator=generator, dtype=torch.float64)

    def logprobs(self, temperature):
        """[states, L, V] log-probabilities, with graph."""
        logits = self.denoiser.table[..., : self.V]
        if self.top_k:
            least = logits.detach().topk(self.top_k, dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < least, -math.inf)
        return (logits / temperature).log_softmax(-1)

    def index(self, tokens):
        return sum(token * (self.V + 1) ** i for i, token in enumerate(tokens))

    def positions(self, tokens, hidden, count) -> list[tuple[tuple[int, ...], float]]:
        """Sets of positions that may be committed, with their probabilities."""
        if self.order == "random":
            sets = list(itertools.combinations(hidden, count))
            return [(chosen, 1 / len(sets)) for chosen in sets]
        if self.order == "left_to_right":
            return [(tuple(hidden[:count]), 1.0)]
        if self.is_drawn:
            # Every ordered draw; its probability depends on θ and is counted in `probability`.
            return [(chosen, 1.0) for chosen in itertools.permutations(hidden, count)]
        return [(tuple(sorted(self.ranked(tokens, hidden)[:count])), 1.0)]

    def ranked(self, tokens, hidden):
        """The masked positions in the order in which they would be committed, under an order of the state alone."""
        p = self.logprobs(1.0)[self.index(tokens)].detach().exp()
        if self.order == "entropy":
            score = (p * p.log()).sum(-1)
        elif self.order == "max_probability":
            score = p.max(-1).values
        else:
            likeliest = p.sort(-1, descending=True).values
            score = likeliest[:, 0] - likeliest[:, 1]
        return sorted(hidden, key=lambda i: -float(score[i]))

    def adaptive_positions(self, tokens, hidden, step) -> list[tuple[tuple[int, ...], float]]:
        """Sets of positions that an adaptive schedule may commit, with their probabilities."""
        if self.order == "random":
            rankings = list(itertools.permutations(hidden))
        else:
            rankings = [tuple(hidden) if self.order == "left_to_right" else tuple(self.ranked(tokens, hidden))]
        p = self.logprobs(1.0)[self.index(tokens)].detach().exp()
        sets: dict[tuple[int, ...], float] = {}
        for ranking in rankings:
            entropies = [-float((p[i] * p[i].log()).sum()) for i in ranking]
            count = self.adaptive_count([float(p[i].max()) for i in ranking], entropies, step)
            chosen = tuple(sorted(ranking[:count]))
            sets[chosen] = sets.get(chosen, 0.0) + 1 / len(rankings)
        return list(sets.items())

    def adaptive_count(self, confidence, entropies, step) -> int:
        """How many of the ranked positions an adaptive schedule commits, by its definition."""
        least = math.ceil(len(confidence) / (self.num_steps - step))
        fits = 0
        for m in range(1, len(confidence) + 1):
            first = entropies[:m]
            is_within = {
                "threshold": confidence[m - 1] >= self.bound,
                "factor": (m + 1) * (1 - confidence[m - 1]) < self.bound,
                "entropy_bound": sum(first) - max(first) <= self.bound,
            }[self.rule]
            if not is_within:
                break
            fits = m
        return max(least, fits)

    def paths(self) -> list[Path]:
        return list(self._extend(Path((self.V,) * self.L, (self.num_steps,) * self.L), 0))

    def _extend(self, path, step) -> Iterator[Path]:
        hidden = [i for i, token in enumerate(path.tokens) if token == self.V]
        if not hidden:
            yield path
            return
        state = self.index(path.tokens)
        if self.order == "low_confidence":
            moves = self._confident_moves(path, step, hidden, state)
        else:
            moves = (
                (tuple((step, state, i, token) for i, token in zip(chosen, drawn, strict=True)), probability, ())
                for chosen, probability in (
                    self.positions(path.tokens, hidden, self.counts[step])
                    if self.schedule == "fixed"
                    else self.adaptive_positions(path.tokens, hidden, step)
                )
                for drawn in itertools.product(range(self.V), repeat=len(chosen))
            )
        for draws, probability, others in moves:
            tokens, when = list(path.tokens), list(path.when)
            for _, _, i, token in draws:
                tokens[i], when[i] = token, step
            if self.eos and self._is_settled(tokens):
                tokens = [self.denoiser.eos_id if token == self.V else token for token in tokens]
            picks: tuple[tuple[int, int, tuple[int, ...]], ...] = ()
            if self.is_drawn:
                order = [i for _, _, i, _ in draws]
                picks = tuple((state, i, tuple(set(hidden) - set(order[:n]))) for n, i in enumerate(order))
            longer = Path(
                tuple(tokens),
                tuple(when),
                path.draws + draws,
                path.choice * probability,
                path.picks + picks,
                path.proposals + others,
            )
            yield from self._extend(longer, step + 1)

    def _confident_moves(self, path, step, hidden, state):
        """Every proposal of tokens at all masked positions; the most probable of them are committed."""
        confidence = self.logprobs(1.0)[state].tolist()
        for drawn in itertools.product(range(self.V), repeat=len(hidden)):
            proposed = sorted(zip(hidden, drawn, strict=True), key=lambda move: -confidence[move[0]][move[1]])
            moves = [(step, state, i, token) for i, token in proposed]
            count = self.counts[step]
            if self.schedule != "fixed":
                table = self.logprobs(1.0)[state].detach()
                entropies = [-float((table[i].exp() * table[i]).sum()) for _, _, i, _ in moves]
                count = self.adaptive_count(
                    [math.exp(confidence[i][token]) for _, _, i, token in moves], entropies, step
                )
            yield tuple(moves[:count]), 1.0, tuple(moves[count:])

    def _is_settled(self, tokens):
        shown = itertools.takewhile(lambda token: token != self.V, tokens)
        return self.denoiser.eos_id in list(shown)

    def reward(self, paths):
        return torch.stack([self.reward_table[path.tokens] for path in paths])

    def gather(self, table, draws):
        """[paths] sums of `table` [states, L, V] over the draws of each path."""
        width = max(1, *(len(row) for row in draws))
        empty = (0, 0, 0, 0)
        index = torch.tensor([[draw[1:] for draw in row + (empty,) * (width - len(row))] for row in draws])
        real = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in draws])
        values = table[index[..., 0], index[..., 1], index[..., 2]]
        return torch.where(real, values, torch.zeros_like(values)).sum(-1)

    def probability(self, paths):
        """[paths] p(τ), with graph; of the proposals too, where there are any."""
        log_choice = torch.tensor([path.choice for path in paths], dtype=torch.float64).log()
        if self.is_drawn:
            log_choice = log_choice + torch.stack([sum(map(self.pick_logprob, path.picks)) for path in paths])
        draws = [path.draws + path.proposals for path in paths]
        return (log_choice + self.gather(self.logprobs(self.temperature), draws)).exp()

    def pick_logprob(self, pick):
        """Log-probability of one position among its rivals, in proportion to p(likeliest token)^(1/τ) exp(score), with graph.

        The score is that of the position head under the order `learned`, and otherwise 0.
        """
        state, position, rivals = pick
        score = self.logprobs(1.0)[state].max(-1).values / self.order_temperature
        if self.denoiser.position_head is not None:
            score = score + self.denoiser.position_head[state]
        return score[position] - score[list(rivals)].logsumexp(0)

    def gradient(self, scalar):
        """Gradient in the table of logits; with a position head, flat and followed by that in its scores."""
        head = self.denoiser.position_head
        if head is None:
            (gradient,) = torch.autograd.grad(scalar, self.denoiser.table)
            return gradient
        parts = torch.autograd.grad(scalar, (self.denoiser.table, head), allow_unused=True, materialize_grads=True)
        return torch.cat([part.flatten() for part in parts])

    def grad_j(self):
        paths = self.paths()
        return self.gradient((self.probability(paths) * self.reward(paths)).sum())

    def entropy(self, path):
        """Joint entropy of each step of a path."""
        table = self.logprobs(self.temperature).detach()
        each = -torch.where(table > -math.inf, table.exp() * table, 0.0).sum(-1)
        return [sum(float(each[s, i]) for k, s, i, _ in path.draws if k == step) for step in range(self.num_steps)]

    def greedy(self, path, step):
        """x̂_k: the state before `step`, filled with the likeliest tokens."""
        state = [self.V if when >= step else token for token, when in zip(path.tokens, path.when, strict=True)]
        best = self.logprobs(1.0)[self.index(state)].argmax(-1).tolist()
        return tuple(best[i] if token == self.V else token for i, token in enumerate(state))

    def trajectory(self, paths, seed=None, dtype=torch.float32) -> Trajectory:
        """The record that a rollout would have made of these paths, in float32 unless told otherwise."""
        table = self.logprobs(self.temperature).detach()
        each = -torch.where(table > -math.inf, table.exp() * table, 0.0).sum(-1)
        logprob = torch.zeros(len(paths), self.L, dtype=torch.float64)
        entropy, picked = torch.zeros_like(logprob), torch.zeros_like(logprob)
        rank = torch.zeros(len(paths), self.L, dtype=torch.int32)
        support = torch.full((len(paths), self.L, self.top_k), -1, dtype=torch.int32) if self.top_k else None
        for b, path in enumerate(paths):
            rank[b] = torch.tensor(path.seen[2 * self.L :])
            for _, state, i, _ in path.draws if self.top_k else ():
                support[b, i] = torch.tensor([v for v in range(self.V) if table[state, i, v] > -math.inf])
            for _, state, i, token in path.draws:
                logprob[b, i], entropy[b, i] = table[state, i, token], each[state, i]
            for pick in path.picks:
                picked[b, pick[1]] = self.pick_logprob(pick).detach()
        return Trajectory(
            prompt_ids=torch.zeros(len(paths), 1, dtype=torch.long),
            prompt_mask=torch.ones(len(paths), 1, dtype=torch.bool),
            tokens=torch.tensor([path.tokens for path in paths]),
            unmask_step=torch.tensor([path.when for path in paths], dtype=torch.int32),
            logprob=logprob.to(dtype),
            entropy=entropy.to(dtype),
            seed=torch.zeros(len(paths), dtype=torch.long) if seed is None else seed,
            sampler=SamplerConfig(
                max_completion_length=self.L,
                num_steps=self.num_steps,
                order=self.order,
                order_temperature=self.order_temperature,
                temperature=self.temperature,
                top_k=self.top_k,
                schedule=self.schedule,
            ),
            mask_id=self.denoiser.mask_id,
            eos_id=self.denoiser.eos_id,
            choice_rank=rank if self.is_drawn else None,
            choice_logprob=picked.to(dtype) if self.is_drawn else None,
            support=support,
        )

    def groups(self, paths, group_size, stepwise=False, seed=0, dtype=torch.float32):
        """All groups of `group_size` independent paths as one rollout, and each group's probability."""
        trajectory = self.trajectory(paths, torch.full((len(paths),), seed), dtype)
        reward, one_step = self.reward(paths), None
        if stepwise:
            # A path that ended early has no slots for the steps that it did not take.
            taken = [{step for step, *_ in path.draws} for path in paths]
            steps = [[k if k in own else -1 for k in range(self.num_steps)] for own in taken]
            trajectory = replace(trajectory, selected_step=torch.tensor(steps, dtype=torch.int32))
            branches = [[self.greedy(path, step) for step in range(self.num_steps)] for path in paths]
            one_step = torch.stack([torch.stack([self.reward_table[fill] for fill in row]) for row in branches])
        members = torch.cartesian_prod(*[torch.arange(len(paths))] * group_size).view(-1, group_size)
        weight = self.probability(paths).detach()[members].prod(-1)
        rows = members.flatten()
        rollout = Rollout(trajectory.rows(rows), group_size, reward[rows], None if one_step is None else one_step[rows])
        return rollout, weight


def expected_gradient(
    toy,
    method,
    rollout,
    weight,
    *,
    views=None,
    advantage=None,
    logprob_temperature="sampling",
    extra=None,
    correction=None,
):
    """-∇ of the expectation over all groups of the loss that the trainer adds up, for each completion.

    Composed as the trainer composes its first update: what it would follow, before the optimizer.

    Args:
        toy: whose table is differentiated.
        method: any.
        rollout: all groups, from `Toy.groups`.
        weight: [groups] their probabilities.
        views: in place of the method's plan, where the test enumerates what the plan draws.
        advantage: in place of the method's.
        logprob_temperature: as in a recipe.
        extra: added to the advantage of each view, a function of the views.
        correction: changes the inputs of the loss, a function of the inputs and the indices of their views.
    """
    path = rollout.trajectory
    views = method.plan(rollout, torch.Generator()) if views is None else views
    advantage = method.advantage(rollout) if advantage is None else advantage
    by_view = advantage[views.row] if advantage.dim() == 1 else advantage[views.row, views.slot]
    if extra is not None:
        by_view = by_view + extra(views)
    scoring = LogprobSettings.of(path, logprob_temperature)
    options = {"choice": method.needs().choice, "entropy": method.reads().entropy}
    scores = view_logprobs(toy.denoiser, path, views, scoring, **options)
    inputs = LossInputs(
        new=scores.logprob,
        old=scores.logprob.detach(),
        reference=None,
        exact_kl=None,
        row=views.row,
        target=views.target,
        weight=views.weight,
        advantage=by_view,
        slot=views.slot,
        group_size=rollout.group_size,
        new_choice=scores.choice,
        old_choice=None if scores.choice is None else scores.choice.detach(),
        committed=views.committed,
        entropy=scores.entropy,
    )
    if correction is not None:
        inputs = correction(inputs, torch.arange(len(views)))
    loss = method.loss(inputs).loss
    # A loss for each view, or, where the method is not separable, for each completion or each group, in their order.
    group_of = {
        len(views): views.row // rollout.group_size,
        len(rollout.reward): torch.arange(len(rollout.reward)) // rollout.group_size,
        len(weight): torch.arange(len(weight)),
    }[len(loss)]
    return -toy.gradient((weight[group_of] * loss).sum()) / rollout.group_size


def pinned(toy, paths, weight_of):
    """Σ_τ p(τ) Σ_k w(τ, k) ∇ log π_k, path by path: what the estimator should come to, computed without it."""
    table = toy.logprobs(toy.temperature)
    probability = toy.probability(paths).detach()
    total = torch.zeros((), dtype=torch.float64)
    for step in range(toy.num_steps):
        weight = torch.tensor([float(weight_of(b, step)) for b in range(len(paths))], dtype=torch.float64)
        draws = [tuple(draw for draw in path.draws if draw[0] == step) for path in paths]
        total = total + (probability * weight * toy.gather(table, draws)).sum()
    return toy.gradient(total)


def distance(a, b):
    """Relative difference of two gradients."""
    return float((a - b).norm() / b.norm())


def merged(small):
    """Paths that differ in uncommitted proposals only, as one; with their probabilities."""
    paths = small.paths()
    probability: dict[tuple, float] = {}
    for path, p in zip(paths, small.probability(paths).tolist(), strict=True):
        probability[path.seen] = probability.get(path.seen, 0.0) + p
    first = {path.seen: path for path in reversed(paths)}
    keys = list(probability)
    return [first[key] for key in keys], torch.tensor([probability[key] for key in keys], dtype=torch.float64)

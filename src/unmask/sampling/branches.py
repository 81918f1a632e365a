"""One-step completions, greedy and drawn, kept while the rollout runs, for the steps that the selection will take.

The rollout has the logits of every state in hand, so filling a state costs no forward pass. Which K steps count is only known
at the end; a running top-K keeps those of K steps instead of T.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unmask.core.records import Branches
from unmask.functional.distribution import sample_tokens
from unmask.functional.noise import BRANCH_STREAM, counter_uniform
from unmask.functional.selection import PRIORITY_RULES, step_priority


def draw_branches(branches: Branches, logprobs: Tensor, seed: Tensor, step: int, positions: Tensor) -> Tensor:
    """[b, n, num + 1] tokens from the sampling distribution: one draw more than asked for, which can finish all the others.

    Args:
        branches: what is wanted.
        logprobs: [b, n, V] nats, the sampling distribution.
        seed: [b] int64, the rows' seeds.
        step: k.
        positions: [b, n] int64, in the completion.
    """
    keys = (seed[:, None, None], BRANCH_STREAM, step, positions.unsqueeze(-1))
    return sample_tokens(logprobs, counter_uniform(*keys, torch.arange(branches.num + 1, device=seed.device)))


def one_step_branches(
    branches: Branches | None, greedy: Tensor, draws: Tensor | None, proposed: Tensor, committed: Tensor
) -> Tensor:
    """Completions of a state in one step: the greedy one, then those that `branches` asks for.

    Args:
        branches: what is wanted beside the greedy one.
        greedy: [b, n] int64, likeliest token at each masked position.
        draws: [b, n, num + 1] int64, of `draw_branches`; may be None where `branches` is.
        proposed: [b, n] int64, what the rollout drew there.
        committed: [b, n] bool, whether it was committed.

    Returns:
        [b, 1 + M, n] int64 tokens.
    """
    if branches is None:
        return greedy.unsqueeze(1)
    assert draws is not None
    drawn = draws.mT
    # The sample that finishes all of them where they are not finished greedily.
    rest = drawn[:, -1] if branches.finish == "sampled" else greedy
    drawn = drawn[:, :-1]
    if branches.scope == "step":
        drawn = torch.where(committed.unsqueeze(1), drawn, rest.unsqueeze(1))
    taken = [torch.where(committed, proposed, rest).unsqueeze(1)] if branches.with_taken else []
    return torch.cat([greedy.unsqueeze(1), *taken, drawn], dim=1)


class OneStepBuffer:
    """A running selection of steps with 1 + M one-step completions of each: the greedy one, then the fills.

    Steps that commit nothing but EOS count only if a later step commits something else (`candidate_steps`), so they wait
    in a second buffer until one does. Rules whose choice needs more than a priority keep every step.

    Args:
        rule: a name of `unmask.functional.selection.RULES`.
        num_selected: K.
        shape: (B, L).
        num_steps: T.
        device: of the buffers.
        num_completions: 1 + M.
    """

    def __init__(
        self,
        rule: str,
        num_selected: int,
        shape: tuple[int, int],
        num_steps: int,
        device: torch.device,
        num_completions: int = 1,
    ) -> None:
        rows, length = shape
        self.rule = rule
        self.capacity = num_selected if rule in PRIORITY_RULES else num_steps
        self._kept = _Buffer(rows, self.capacity, (num_completions, length), device)
        self._waiting = _Buffer(rows, self.capacity if rule in PRIORITY_RULES else 0, (num_completions, length), device)

    def push(self, rows: Tensor, step: int, entropy: Tensor, noise: Tensor, branches: Tensor, only_eos: Tensor) -> None:
        """Offer one step.

        Args:
            rows: [b] int64, the rows that committed something.
            step: k.
            entropy: [b] float, joint entropy H_k.
            noise: [b] float64, the rows' selection noise at this step.
            branches: [b, 1 + M, L] int64, completions of the state before the step.
            only_eos: [b] bool, whether the step committed nothing but EOS.
        """
        if self.rule not in PRIORITY_RULES:
            self._kept.step[rows, step], self._kept.branches[rows, step] = step, branches.int()
            return
        offered = _Buffer(len(rows), 1, (branches.shape[1], branches.shape[2]), branches.device)
        offered.priority[:, 0] = step_priority(self.rule, entropy, step, noise)
        offered.step[:, 0] = step
        offered.branches[:, 0] = branches.int()
        for chosen, target in ((only_eos, self._waiting), (~only_eos, self._kept)):
            if not chosen.any():
                continue
            index = rows[chosen]
            # Oldest first: the stable sort then leaves ties to the earlier step.
            sources = [target.take(index), offered.take(chosen)]
            if target is self._kept:
                sources.insert(1, self._waiting.take(index))
                self._waiting.clear(index)
            target.put(index, _Buffer.best(sources, self.capacity))

    def finish(self, steps: Tensor) -> Tensor:
        """[B, K, 1 + M, L] int32: the one-step completions of the selected `steps` [B, K]; zeros in empty slots (-1).

        Raises:
            ValueError: a selected step was not kept.
        """
        if self.rule in PRIORITY_RULES:
            # A row that never committed anything but EOS has only waiting steps, and all of them are candidates.
            empty = (self._kept.step < 0).all(-1)
            self._kept.put(empty, self._waiting.take(empty))
        match = steps.unsqueeze(-1) == self._kept.step.unsqueeze(1)
        if not (match.any(-1) | (steps < 0)).all():
            raise ValueError("a selected step has no one-step completion: keep and select with the same rule and K")
        row = torch.arange(len(steps), device=steps.device).unsqueeze(-1)
        return self._kept.branches[row, match.int().argmax(-1)].masked_fill(steps[..., None, None] < 0, 0)


class _Buffer:
    """Up to C steps of each row, best first: priority [B, C] float64, step [B, C] int64 (-1 empty), fills [B, C, 1 + M, L]."""

    def __init__(self, rows: int, capacity: int, shape: tuple[int, int], device: torch.device) -> None:
        self.priority = torch.full((rows, capacity), -torch.inf, dtype=torch.float64, device=device)
        self.step = torch.full((rows, capacity), -1, dtype=torch.int64, device=device)
        self.branches = torch.zeros((rows, capacity, *shape), dtype=torch.int32, device=device)

    def take(self, index: Tensor) -> _Buffer:
        part = object.__new__(_Buffer)
        part.priority, part.step, part.branches = self.priority[index], self.step[index], self.branches[index]
        return part

    def put(self, index: Tensor, part: _Buffer) -> None:
        self.priority[index], self.step[index], self.branches[index] = part.priority, part.step, part.branches

    def clear(self, index: Tensor) -> None:
        self.priority[index], self.step[index] = -torch.inf, -1

    @staticmethod
    def best(parts: list[_Buffer], capacity: int) -> _Buffer:
        joined = object.__new__(_Buffer)
        joined.priority = torch.cat([p.priority for p in parts], dim=1)
        joined.step = torch.cat([p.step for p in parts], dim=1)
        branches = torch.cat([p.branches for p in parts], dim=1)
        order = joined.priority.sort(dim=1, descending=True, stable=True).indices[:, :capacity]
        joined.priority = joined.priority.gather(1, order)
        joined.step = joined.step.gather(1, order)
        joined.branches = branches[torch.arange(len(order), device=order.device).unsqueeze(-1), order]
        return joined

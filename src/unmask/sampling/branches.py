"""One-step completions and branches, stored during the rollout for the steps that may be selected.

The rollout has already computed the logits of every state, so a one-step completion costs no
forward pass. The K selected steps are known only at the end. A running top-K stores the completions
of K steps instead of T.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.core.branches import Branches
from unmask.functional.distribution import sample_tokens
from unmask.functional.noise import BRANCH_STREAM, counter_uniform
from unmask.functional.selection import PRIORITY_RULES, step_priority


def draw_branches(branches: Branches, logits: Tensor, seed: Tensor, step: Tensor, positions: Tensor) -> Tensor:
    """Draw branch tokens from the sampling distribution.

    Args:
        branches: settings of the branches.
        logits: [b, n, V] logits of the sampling distribution, at its temperature and support.
        seed: [b] int64 seeds of the rows.
        step: [b, 1] int64 denoising steps k of the rows.
        positions: [b, n] int64 positions in the completion.

    Returns:
        [b, n, num + 1] int64 tokens. The last draw is the sample that all branches share under
        `finish: sampled`.
    """
    keys = (seed[:, None, None], BRANCH_STREAM, step.unsqueeze(-1), positions.unsqueeze(-1))
    return sample_tokens(logits, counter_uniform(*keys, torch.arange(branches.num + 1, device=seed.device)))


def one_step_branches(
    branches: Branches | None, likeliest: Tensor, draws: Tensor | None, proposed: Tensor, committed: Tensor
) -> Tensor:
    """Build the one-step completion and the branches of a state at its masked positions.

    Args:
        branches: settings of the branches; None for the one-step completion alone.
        likeliest: [b, n] int64 most likely token at each masked position.
        draws: [b, n, num + 1] int64 tokens of `draw_branches`; None if there are no branches.
        proposed: [b, n] int64 tokens that the rollout drew.
        committed: [b, n] bool, True where the rollout committed its token.

    Returns:
        [b, 1 + M, n] int64 tokens: the one-step completion first, then the branches.
    """
    if branches is None:
        return likeliest.unsqueeze(1)
    assert draws is not None
    drawn, shared = draws.mT[:, :-1], draws[..., -1]
    rest = shared if branches.finish == "sampled" else likeliest
    if branches.scope == "step":
        drawn = torch.where(committed.unsqueeze(1), drawn, rest.unsqueeze(1))
    taken = [torch.where(committed, proposed, rest).unsqueeze(1)] if branches.with_taken else []
    return torch.cat([likeliest.unsqueeze(1), *taken, drawn], dim=1)


class OneStepBuffer:
    """Running selection of steps, with the one-step completion and the M branches of each.

    Example: with rule `entropy_topk` and K = 2, steps of entropy 1, 3, 2, 1 are pushed. After each
    push, the buffer holds the steps (0), (1, 0), (1, 2) and (1, 2). In a tie the earlier step
    stays.

    A step that commits nothing but EOS is a candidate only if a later step commits another token
    (see `candidate_steps`). Such a step waits in a second buffer until then. Rules that need more
    than a priority to choose their steps store every step.

    Args:
        rule: name of a selection rule in `unmask.functional.selection.RULES`.
        num_selected: number of selected steps, K.
        shape: (B, L), the number of rows and positions.
        num_steps: number of denoising steps, T.
        device: device of the buffers.
        num_completions: number of completions per step, 1 + M.
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
        self._best = _Buffer.empty(rows, self.capacity, (num_completions, length), device)
        num_waiting = self.capacity if rule in PRIORITY_RULES else 0
        self._waiting = _Buffer.empty(rows, num_waiting, (num_completions, length), device)

    def push(
        self, rows: Tensor, step: Tensor, entropy: Tensor, noise: Tensor, branches: Tensor, only_eos: Tensor
    ) -> None:
        """Offer the completions of one step of each row.

        Args:
            rows: [b] int64 rows that committed a token.
            step: [b] int64 denoising steps k.
            entropy: [b] float joint entropy H_k.
            noise: [b] float64 selection noise of the rows at this step.
            branches: [b, 1 + M, L] int64 completions of the state before the step.
            only_eos: [b] bool, True if the step committed nothing but EOS.
        """
        if self.rule not in PRIORITY_RULES:
            self._best.step[rows, step], self._best.branches[rows, step] = step, branches.int()
            return
        offered = _Buffer(
            step_priority(self.rule, entropy, step, noise).double().unsqueeze(1),
            step.unsqueeze(1),
            branches.int().unsqueeze(1),
        )
        # Both cases are computed for every row, because a GPU would have to wait for a choice of
        # rows. Oldest first: the stable sort then leaves ties to the earlier step.
        best, waiting = self._best.take(rows), self._waiting.take(rows)
        better = _Buffer.top([best, waiting, offered], self.capacity)
        longer = _Buffer.top([waiting, offered], self.capacity)
        self._best.put(rows, _Buffer.where(only_eos, best, better))
        self._waiting.put(rows, _Buffer.where(only_eos, longer, longer.emptied()))

    def finish(self, steps: Tensor) -> Tensor:
        """Return the completions of the selected steps, [B, K, 1 + M, L] int32.

        Args:
            steps: [B, K] int64 selected steps; -1 in an empty slot, whose completions are 0.

        Raises:
            ValueError: a selected step is not in the buffer.
        """
        if self.rule in PRIORITY_RULES:
            # A row that never committed anything but EOS has only waiting steps, and all of them
            # are candidates.
            is_empty = (self._best.step < 0).all(-1)
            self._best = _Buffer.where(is_empty, self._waiting, self._best)
        match = steps.unsqueeze(-1) == self._best.step.unsqueeze(1)
        if not (match.any(-1) | (steps < 0)).all():
            raise ValueError("a selected step has no one-step completion: keep and select with the same rule and K")
        row = torch.arange(len(steps), device=steps.device).unsqueeze(-1)
        return self._best.branches[row, match.int().argmax(-1)].masked_fill(steps[..., None, None] < 0, 0)


@dataclass(slots=True)
class _Buffer:
    """Up to C steps of each row, in order of decreasing priority.

    `priority` is [B, C] float64, `step` is [B, C] int64 with -1 for an empty slot, and `branches`
    is [B, C, 1 + M, L] int32.
    """

    priority: Tensor
    step: Tensor
    branches: Tensor

    @classmethod
    def empty(cls, rows: int, capacity: int, shape: tuple[int, int], device: torch.device) -> _Buffer:
        return cls(
            torch.full((rows, capacity), -torch.inf, dtype=torch.float64, device=device),
            torch.full((rows, capacity), -1, dtype=torch.int64, device=device),
            torch.zeros((rows, capacity, *shape), dtype=torch.int32, device=device),
        )

    def emptied(self) -> _Buffer:
        return _Buffer(torch.full_like(self.priority, -torch.inf), torch.full_like(self.step, -1), self.branches)

    def take(self, index: Tensor) -> _Buffer:
        return _Buffer(self.priority[index], self.step[index], self.branches[index])

    def put(self, index: Tensor, part: _Buffer) -> None:
        self.priority[index], self.step[index], self.branches[index] = part.priority, part.step, part.branches

    @staticmethod
    def where(is_first: Tensor, first: _Buffer, second: _Buffer) -> _Buffer:
        by_step = is_first.unsqueeze(-1)
        return _Buffer(
            torch.where(by_step, first.priority, second.priority),
            torch.where(by_step, first.step, second.step),
            torch.where(by_step[..., None, None], first.branches, second.branches),
        )

    @staticmethod
    def top(parts: list[_Buffer], capacity: int) -> _Buffer:
        priority = torch.cat([p.priority for p in parts], dim=1)
        order = priority.sort(dim=1, descending=True, stable=True).indices[:, :capacity]
        branches = torch.cat([p.branches for p in parts], dim=1)
        row = torch.arange(len(order), device=order.device).unsqueeze(-1)
        step = torch.cat([p.step for p in parts], dim=1)
        return _Buffer(priority.gather(1, order), step.gather(1, order), branches[row, order])

"""Greedy one-step completions, kept while the rollout runs, for the steps that the selection will take.

The rollout has the logits of every state in hand, so the argmax fill of a state costs no forward pass. Which K steps count
is only known at the end; a running top-K keeps K fills instead of T.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unmask.functional.selection import PRIORITY_RULES, step_priority


class GreedyKeeper:
    """A running selection of steps with their greedy one-step completions.

    Steps that commit nothing but EOS count only if a later step commits something else (`candidate_steps`), so they wait
    in a second buffer until one does; under `all` every step counts. Rules whose choice needs the number of candidates
    keep every step.

    Args:
        rule: a name of `unmask.functional.selection.RULES`.
        num_selected: K.
        shape: (B, L).
        num_steps: T.
        device: of the buffers.
    """

    def __init__(
        self, rule: str, num_selected: int, shape: tuple[int, int], num_steps: int, device: torch.device
    ) -> None:
        rows, length = shape
        self.rule = rule
        self.capacity = num_selected if rule in PRIORITY_RULES else num_steps
        self._kept = _Buffer(rows, self.capacity, length, device)
        self._waiting = _Buffer(rows, self.capacity, length, device)

    def push(self, rows: Tensor, step: int, entropy: Tensor, noise: Tensor, fill: Tensor, only_eos: Tensor) -> None:
        """Offer one step.

        Args:
            rows: [b] int64, the rows that committed something.
            step: k.
            entropy: [b] float, joint entropy H_k.
            noise: [b] float64, the rows' selection noise at this step.
            fill: [b, L] int64, x̂_k.
            only_eos: [b] bool, whether the step committed nothing but EOS.
        """
        priority = step_priority(self.rule, entropy, step, noise) if self.rule in PRIORITY_RULES else -float(step)
        offered = _Buffer(len(rows), 1, fill.shape[1], fill.device)
        offered.priority[:, 0] = priority
        offered.step[:, 0] = step
        offered.fill[:, 0] = fill.int()
        waits = only_eos & (self.rule != "all")
        for chosen, target in ((waits, self._waiting), (~waits, self._kept)):
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
        """[B, K, L] int32: the fills of the selected `steps` [B, K]; zeros in empty slots (-1).

        Raises:
            ValueError: a selected step was not kept.
        """
        # A row that never committed anything but EOS has only waiting steps, and all of them are candidates.
        empty = (self._kept.step < 0).all(-1)
        self._kept.put(empty, self._waiting.take(empty))
        match = steps.unsqueeze(-1) == self._kept.step.unsqueeze(1)
        if not (match.any(-1) | (steps < 0)).all():
            raise ValueError("a selected step has no greedy completion: keep and select with the same rule and K")
        index = match.int().argmax(-1).unsqueeze(-1).expand(-1, -1, self._kept.fill.shape[-1])
        return self._kept.fill.gather(1, index).masked_fill(steps.unsqueeze(-1) < 0, 0)


class _Buffer:
    """Up to C steps of each row, best first: priority [B, C] float64, step [B, C] int64 (-1 empty), fill [B, C, L] int32."""

    def __init__(self, rows: int, capacity: int, length: int, device: torch.device) -> None:
        self.priority = torch.full((rows, capacity), -torch.inf, dtype=torch.float64, device=device)
        self.step = torch.full((rows, capacity), -1, dtype=torch.int64, device=device)
        self.fill = torch.zeros((rows, capacity, length), dtype=torch.int32, device=device)

    def take(self, index: Tensor) -> _Buffer:
        part = object.__new__(_Buffer)
        part.priority, part.step, part.fill = self.priority[index], self.step[index], self.fill[index]
        return part

    def put(self, index: Tensor, part: _Buffer) -> None:
        self.priority[index], self.step[index], self.fill[index] = part.priority, part.step, part.fill

    def clear(self, index: Tensor) -> None:
        self.priority[index], self.step[index] = -torch.inf, -1

    @staticmethod
    def best(parts: list[_Buffer], capacity: int) -> _Buffer:
        joined = object.__new__(_Buffer)
        joined.priority = torch.cat([p.priority for p in parts], dim=1)
        joined.step = torch.cat([p.step for p in parts], dim=1)
        joined.fill = torch.cat([p.fill for p in parts], dim=1)
        order = joined.priority.sort(dim=1, descending=True, stable=True).indices[:, :capacity]
        joined.priority = joined.priority.gather(1, order)
        joined.step = joined.step.gather(1, order)
        joined.fill = joined.fill.gather(1, order.unsqueeze(-1).expand(-1, -1, joined.fill.shape[-1]))
        return joined

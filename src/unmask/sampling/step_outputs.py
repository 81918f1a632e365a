"""What a step of the sampler takes from the logits, in parts: nothing as wide as the vocabulary is made for the whole batch.

Drawing tokens from [B, n, V] logits takes half a dozen arrays of that shape in float64, which for a language model's vocabulary
is more memory than the weights, and on a CPU is slow because none of them stays in a cache. Every one of these operations reads
a position by itself, so they are done part by part, with the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from unmask.core.config import SamplerConfig
from unmask.core.records import Branches
from unmask.functional.distribution import sample_tokens, token_entropy, token_logprobs
from unmask.functional.noise import TOKEN_STREAM, counter_uniform
from unmask.sampling.branches import draw_branches
from unmask.sampling.orders import POSITION_LOGITS, Order, Proposal, order_of

PART_ON_CPU, PART_ON_GPU = 2**18, 2**24
"""Logits that are read at a time: float64 arrays of that many fit a core's cache, or keep a GPU busy."""


@dataclass(frozen=True, slots=True)
class StepOutputs:
    """What the logits say at n positions of B rows."""

    proposed: Tensor
    """[B, n] int64 tokens."""
    chosen: Tensor
    """[B, n] float32, nats: log-probability of each under the sampling distribution."""
    entropy: Tensor
    """[B, n] float32, nats."""
    score: Tensor
    """[B, n] float64: of the order; the highest are committed first."""
    choice: Tensor | None
    """[B, n] scores of an order whose choice has a probability."""
    greedy: Tensor | None
    """[B, n] int64 likeliest tokens, where one-step completions are kept."""
    draws: Tensor | None
    """[B, n, num + 1] int64 tokens for other completions, where they are asked for."""


@dataclass(frozen=True, slots=True)
class StepReader:
    """How the logits of one run are read.

    Args:
        sampler: its settings.
        entropy_temperature: temperature of the recorded entropies where not those of the sampling distribution.
        keeps_greedy: whether one-step completions are kept.
        branches: which others are.
    """

    sampler: SamplerConfig
    entropy_temperature: float | None = None
    keeps_greedy: bool = False
    branches: Branches | None = None
    order: Order = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", order_of(self.sampler.order))

    def read(self, logits: Tensor, seed: Tensor, step: int, positions: Tensor) -> StepOutputs:
        """Propose tokens and score positions.

        Args:
            logits: [B, n, V] at temperature 1; MASK is -inf.
            seed: [B] int64, of the rows.
            step: k.
            positions: [B, n] int64, in the completion.
        """
        parts = reading_parts(logits)
        return _joined(
            [[self.read_part(logits[part], seed[part[0]], step, positions[part]) for part in row] for row in parts]
        )

    def read_part(self, logits: Tensor, seed: Tensor, step: int, positions: Tensor) -> StepOutputs:
        """The same of all that is given at once."""
        sampler = self.sampler
        if sampler.temperature == 0:
            proposed, logprobs = logits.argmax(-1), token_logprobs(logits)
        else:
            logprobs = token_logprobs(logits, sampler.temperature, sampler.top_k, sampler.top_p)
            proposed = sample_tokens(logprobs, counter_uniform(seed.unsqueeze(-1), TOKEN_STREAM, step, positions))
        temperature = self.entropy_temperature
        differentiated = logprobs if temperature is None else token_logprobs(logits, temperature)
        position_logit = POSITION_LOGITS.get(sampler.order)
        proposal = Proposal(logits, proposed, positions, seed, step, sampler.order_temperature)
        return StepOutputs(
            proposed,
            logprobs.gather(-1, proposed.unsqueeze(-1)).squeeze(-1).float(),
            token_entropy(differentiated).float(),
            self.order(proposal).double(),
            None if position_logit is None else position_logit(logits, sampler.order_temperature),
            logits.argmax(-1) if self.keeps_greedy else None,
            None if self.branches is None else draw_branches(self.branches, logprobs, seed, step, positions),
        )

    def read_beyond(self, logits: Tensor, seed: Tensor, step: int, positions: Tensor) -> tuple[Tensor, Tensor | None]:
        """Likeliest tokens and draws for other completions, at positions where nothing can be committed yet."""
        branches, sampler = self.branches, self.sampler
        if branches is None:
            return logits.argmax(-1), None

        def draws(part: tuple[slice, slice]) -> Tensor:
            logprobs = token_logprobs(logits[part], sampler.temperature or 1.0, sampler.top_k, sampler.top_p)
            return draw_branches(branches, logprobs, seed[part[0]], step, positions[part])

        parts = [[draws(part) for part in row] for row in reading_parts(logits)]
        return logits.argmax(-1), torch.cat([torch.cat(row, dim=1) for row in parts])


def reading_parts(logits: Tensor) -> list[list[tuple[slice, slice]]]:
    """Rows and columns of [B, n, V] logits that are read together: whole rows where several fit, otherwise columns of one."""
    rows, columns, vocabulary = logits.shape
    room = max(1, (PART_ON_CPU if logits.device.type == "cpu" else PART_ON_GPU) // vocabulary)
    if columns <= room or rows == 0:
        return [[(part, slice(None))] for part in _even(rows, max(1, room // max(1, columns)))]
    return [[(part, column) for column in _even(columns, room)] for part in _even(rows, 1)]


def _even(length: int, most: int) -> list[slice]:
    """0..length in parts of at most `most`, as even as can be: a last part of one element would be summed in another order."""
    count = max(1, -(-length // most))
    edges = [length * i // count for i in range(count + 1)]
    return [slice(start, stop) for start, stop in zip(edges, edges[1:], strict=False)]


def _joined(parts: list[list[StepOutputs]]) -> StepOutputs:
    if len(parts) == len(parts[0]) == 1:
        return parts[0][0]

    def whole(name: str) -> Tensor | None:
        if getattr(parts[0][0], name) is None:
            return None
        return torch.cat([torch.cat([getattr(part, name) for part in row], dim=1) for row in parts])

    return StepOutputs(**{f.name: whole(f.name) for f in fields(StepOutputs)})  # type: ignore[arg-type]

"""Quantities that a denoising step computes from the logits, in chunks that fit the cache.

Drawing tokens from [B, n, V] logits takes several arrays of that shape. For the vocabulary of a
language model these take more memory than the weights, and on a CPU they do not fit a cache. All
operations treat positions independently, so they run on chunks, with the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from unmask.core.branches import Branches
from unmask.core.config import SamplerConfig
from unmask.functional.distribution import sample_with_logprobs, scaled_logits, token_entropy
from unmask.functional.noise import TOKEN_STREAM, counter_uniform
from unmask.sampling.branches import draw_branches
from unmask.sampling.orders import POSITION_LOGITS, Order, Proposal, order_of
from unmask.sampling.schedules import measured

CPU_CHUNK, GPU_CHUNK = 2**18, 2**24
"""Number of logits in a chunk. On a CPU, a chunk fits the cache of a core; on a GPU, a
chunk is large enough to keep the GPU busy."""


@dataclass(frozen=True, slots=True)
class StepOutputs:
    """Quantities computed from the logits at n positions of B rows."""

    proposed: Tensor
    """[B, n] int64: tokens drawn from the sampling distribution."""
    logprob: Tensor
    """[B, n] float32, nats: log-probability of each proposed token under that distribution."""
    priority: Tensor
    """[B, n] float64: priority that the order gives each position; the highest are committed."""
    position_logit: Tensor | None
    """[B, n]: logits of the position choice; None for orders without a choice probability."""
    measure: Tensor | None
    """[B, n] float32: quantity that an adaptive schedule compares with its bound; None under a fixed
    schedule."""
    likeliest: Tensor | None
    """[B, n] int64: most likely tokens; None unless one-step completions are stored."""
    draws: Tensor | None
    """[B, n, num + 1] int64: tokens drawn for branches; None if there are no branches."""


@dataclass(frozen=True, slots=True)
class Proposer:
    """Proposes tokens and priorities for masked positions, with the settings of one rollout.

    Args:
        sampler: sampler settings.
        entropy_temperature: temperature of the recorded entropies, without top-k and top-p. By
            default, the entropies are those of the sampling distribution.
        with_likeliest: True to return the most likely tokens too.
        branches: branches to draw; default none.
    """

    sampler: SamplerConfig
    entropy_temperature: float | None = None
    with_likeliest: bool = False
    branches: Branches | None = None
    order: Order = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", order_of(self.sampler.order))

    def propose(
        self, logits: Tensor, seed: Tensor, step: Tensor, positions: Tensor, score: Tensor | None = None
    ) -> StepOutputs:
        """Propose a token and a priority for each position, chunk by chunk.

        Args:
            logits: [B, n, V] logits at temperature 1; MASK is -inf.
            seed: [B] int64 seeds of the rows.
            step: [B, 1] int64 denoising steps k of the rows.
            positions: [B, n] int64 positions in the completion.
            score: [B, n] scores of the position head; None if the order reads none.
        """

        def chunk(part: tuple[slice, slice]) -> StepOutputs:
            own = None if score is None else score[part]
            return self.propose_chunk(logits[part], seed[part[0]], step[part[0]], positions[part], own)

        return _joined([[chunk(part) for part in parts] for parts in logit_chunks(logits)])

    def propose_chunk(
        self, logits: Tensor, seed: Tensor, step: Tensor, positions: Tensor, score: Tensor | None = None
    ) -> StepOutputs:
        """Propose a token and a priority for each position of one chunk; see `propose`."""
        sampler = self.sampler
        scaled = self._scaled(logits)
        if sampler.temperature == 0:
            proposed = logits.argmax(-1)
            logprob = scaled.log_softmax(-1).gather(-1, proposed.unsqueeze(-1)).squeeze(-1)
        else:
            uniform = counter_uniform(seed.unsqueeze(-1), TOKEN_STREAM, step, positions)
            proposed, logprob = sample_with_logprobs(scaled, uniform)
        is_greedy = sampler.temperature == 0
        proposal = Proposal(logits, proposed, positions, seed, step, sampler.order_temperature, score, is_greedy)
        position_logit = None
        if sampler.order in POSITION_LOGITS:
            position_logit = POSITION_LOGITS[sampler.order](logits, sampler.order_temperature)
            position_logit = position_logit if score is None else position_logit + score
        return StepOutputs(
            proposed,
            logprob.float(),
            self.order(proposal).double(),
            position_logit,
            measured(proposal, sampler),
            logits.argmax(-1) if self.with_likeliest else None,
            None if self.branches is None else draw_branches(self.branches, scaled, seed, step, positions),
        )

    def entropy(self, logits: Tensor) -> Tensor:
        """Return the entropy of the distribution whose log-probabilities the loss uses, [n] float32
        in nats, chunk by chunk.

        Args:
            logits: [n, V] logits at temperature 1; MASK is -inf.
        """
        temperature = self.entropy_temperature

        def entropies(chunk: Tensor) -> Tensor:
            scaled = self._scaled(chunk) if temperature is None else scaled_logits(chunk, temperature)
            return token_entropy(scaled.log_softmax(-1)).float()

        parts = [entropies(logits[rows]) for parts in logit_chunks(logits.unsqueeze(1)) for rows, _ in parts]
        return torch.cat(parts)

    def support(self, logits: Tensor) -> Tensor:
        """Return the tokens that top-k and top-p allow, [n, top_k] int32 with the most likely first
        and -1 in empty entries, chunk by chunk.

        Args:
            logits: [n, V] logits at temperature 1; MASK is -inf.
        """
        num = self.sampler.top_k

        def tokens(chunk: Tensor) -> Tensor:
            values, ids = self._scaled(chunk).topk(min(num, chunk.shape[-1]), dim=-1)
            allowed = ids.masked_fill(values == -torch.inf, -1).int()
            return torch.nn.functional.pad(allowed, (0, num - allowed.shape[-1]), value=-1)

        parts = [tokens(logits[rows]) for parts in logit_chunks(logits.unsqueeze(1)) for rows, _ in parts]
        return torch.cat(parts)

    def _scaled(self, logits: Tensor) -> Tensor:
        """Return the logits of the sampling distribution; those at temperature 1 if the sampler is
        greedy."""
        sampler = self.sampler
        if sampler.temperature == 0:
            return scaled_logits(logits)
        return scaled_logits(logits, sampler.temperature, sampler.top_k, sampler.top_p)

    def complete(self, logits: Tensor, seed: Tensor, step: Tensor, positions: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the most likely tokens and the draws for branches.

        Args:
            logits: see `propose`, as for the other arguments.
            seed: see `propose`.
            step: see `propose`.
            positions: see `propose`.
        """
        branches, sampler = self.branches, self.sampler
        if branches is None:
            return logits.argmax(-1), None

        def draws(part: tuple[slice, slice]) -> Tensor:
            scaled = scaled_logits(logits[part], sampler.temperature or 1.0, sampler.top_k, sampler.top_p)
            return draw_branches(branches, scaled, seed[part[0]], step[part[0]], positions[part])

        chunks = [[draws(part) for part in parts] for parts in logit_chunks(logits)]
        return logits.argmax(-1), torch.cat([torch.cat(row, dim=1) for row in chunks])


def logit_chunks(logits: Tensor) -> list[list[tuple[slice, slice]]]:
    """Return the rows and columns of each chunk of [B, n, V] logits.

    A chunk holds whole rows if at least one row fits, and otherwise columns of one row.
    """
    rows, columns, vocabulary = logits.shape
    capacity = max(1, (CPU_CHUNK if logits.device.type == "cpu" else GPU_CHUNK) // vocabulary)
    if columns <= capacity or rows == 0:
        return [[(part, slice(None))] for part in _even_slices(rows, max(1, capacity // max(1, columns)))]
    return [[(part, column) for column in _even_slices(columns, capacity)] for part in _even_slices(rows, 1)]


def _even_slices(length: int, max_length: int) -> list[slice]:
    """Split 0..length into slices of at most `max_length`, as even as possible.

    The sizes are even because sums over a last slice of one element would run in another order and
    be rounded differently.
    """
    count = max(1, -(-length // max_length))
    edges = [length * i // count for i in range(count + 1)]
    return [slice(start, stop) for start, stop in zip(edges, edges[1:], strict=False)]


def _joined(chunks: list[list[StepOutputs]]) -> StepOutputs:
    if len(chunks) == len(chunks[0]) == 1:
        return chunks[0][0]

    def whole(name: str) -> Tensor | None:
        if getattr(chunks[0][0], name) is None:
            return None
        return torch.cat([torch.cat([getattr(chunk, name) for chunk in row], dim=1) for row in chunks])

    return StepOutputs(**{f.name: whole(f.name) for f in fields(StepOutputs)})  # type: ignore[arg-type]

"""The denoising loop, which fills completions block by block and records which step committed which
token.

Every draw is a hash of the row's seed, the step and the position. A row therefore does not depend
on the rows that share its batch, on padding, or on rows that have ended. The loop starts from any
partially masked completion, so branching and infilling use the same loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from unmask.core.config import SamplerConfig
from unmask.core.denoising import DenoiserLike
from unmask.core.records import GIVEN, Needs, Trajectory
from unmask.functional.masking import compact_columns
from unmask.functional.plackett_luce import plackett_luce_logprob
from unmask.functional.schedule import tokens_at_step
from unmask.functional.selection import selection_noise
from unmask.sampling.branches import OneStepBuffer, one_step_branches
from unmask.sampling.forwards import Forwards
from unmask.sampling.one_step import completions_of, with_completions
from unmask.sampling.orders import POSITION_LOGITS
from unmask.sampling.schedules import adaptive_count
from unmask.sampling.step_outputs import Proposer, StepOutputs


@dataclass(frozen=True, slots=True)
class Snapshot:
    """State of a batch after a denoising step, passed to the function `observe`."""

    step: int
    """Number of earlier steps of the batch. Under an adaptive schedule, a row that was faster than
    others of its batch has taken fewer."""
    tokens: Tensor
    """[B, L] int64: tokens, MASK at masked positions."""
    unmask_step: Tensor
    """[B, L] int32: step that committed each position; T at masked positions."""
    entropy: Tensor
    """[B, L] float32, nats: entropy when the position was committed."""
    share: float
    """Share of the batch's work that is done: of its steps under the fixed schedule, of its positions
    under an adaptive one."""


@torch.no_grad()
def denoise(
    denoiser: DenoiserLike,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    sampler: SamplerConfig,
    seed: Tensor,
    *,
    completion: Tensor | None = None,
    first_step: Tensor | None = None,
    needs: Needs | None = None,
    entropy_temperature: float | None = None,
    observe: Callable[[Snapshot], None] | None = None,
) -> Trajectory:
    """Denoise a batch of completions and record the path of each.

    Step k computes the logits at the masked positions of the active block and draws a token for
    each. The order gives each position a priority, and the positions of highest priority are
    committed. Under the fixed schedule, their number is such that the steps of a block share its
    positions evenly. Under an adaptive one, it depends on the predictions, and step k of a row is
    the row's own k-th forward pass: a row that has finished the block waits for the other rows of
    its batch, without forward passes. A row ends when all positions up to an EOS are committed; the
    other positions of the row become EOS without sampling.

    Args:
        denoiser: policy in evaluation mode.
        prompt_ids: [B, P] int64 prompt tokens, padded on the left.
        prompt_mask: [B, P] bool, False at padding.
        sampler: sampler settings; temperature 0 takes the most likely token.
        seed: [B] int64 seeds of the rows.
        completion: [B, L] int64 tokens to start from, MASK at positions to fill; default all MASK.
        first_step: [B] int64 first step of each row; default 0. A state that an earlier run reached
            before step k is continued exactly as in that run if its first step is k, except with an
            approximate cache, which begins anew.
        needs: requirements of a method; if the method needs one-step completions, the completions
            of the selected steps are stored. With an approximate cache, whose steps run only a part
            of the positions, a full forward pass for each selected step computes them.
        entropy_temperature: temperature of the recorded entropies, without top-k and top-p. By
            default, the entropies are those of the sampling distribution.
        observe: function that is called after every step.

    Returns:
        The trajectory. If the sampling temperature is 0, the recorded log-probabilities and
        entropies are those at temperature 1.
    """
    run = _Run(denoiser, prompt_ids, prompt_mask, sampler, seed, completion, first_step, needs, entropy_temperature)
    num_observed = 0
    for block in range(sampler.max_completion_length // sampler.block):
        start, stop = block * sampler.block, (block + 1) * sampler.block
        last = (block + 1) * sampler.steps_per_block
        # Under an adaptive schedule a block may also take the steps that earlier blocks have saved.
        first = 0 if sampler.is_adaptive else block * sampler.steps_per_block
        for i, k in enumerate(range(first, last)):
            rows = run.rows_at(k, start, stop)
            if sampler.is_adaptive and not len(rows):
                break
            run.step(rows, start, stop, i)
            if observe is not None:
                observe(run.snapshot(num_observed))
            num_observed += 1
    return run.trajectory()


@dataclass(frozen=True, slots=True)
class _Candidates:
    """The b rows of one step with their masked positions, before the order chooses the positions to
    commit.

    The first m of the n columns hold the masked positions of the active block; later blocks follow
    if one-step completions are stored.
    """

    rows: Tensor
    """[b] int64: indices of the rows in the batch."""
    step: Tensor
    """[b] int64: denoising step k of each row."""
    positions: Tensor
    """[b, n] int64: masked positions in the completion."""
    is_valid: Tensor
    """[b, n] bool: False at columns that only pad the width."""
    is_candidate: Tensor
    """[b, m] bool: True at masked positions of the active block."""
    outputs: StepOutputs
    """Proposals at the first m columns."""
    logits: Tensor
    """[b, n, V]: logits at temperature 1; MASK is -inf."""

    @property
    def active(self) -> Tensor:
        """[b, m] int64: positions at the first m columns."""
        return self.positions[:, : self.is_candidate.shape[1]]


class _Run:
    """State of one batch during the loop, updated step by step."""

    def __init__(
        self,
        denoiser: DenoiserLike,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        sampler: SamplerConfig,
        seed: Tensor,
        completion: Tensor | None,
        first_step: Tensor | None,
        needs: Needs | None,
        entropy_temperature: float | None,
    ) -> None:
        shape = (prompt_ids.shape[0], sampler.max_completion_length)
        device = prompt_ids.device
        self.denoiser, self.sampler, self.needs = denoiser, sampler, needs
        self.prompt_ids, self.prompt_mask, self.seed = prompt_ids, prompt_mask, seed
        self.forwards = Forwards(denoiser, prompt_ids, prompt_mask, sampler)
        if completion is None:
            completion = torch.full(shape, denoiser.mask_id, device=device)
        if tuple(completion.shape) != shape:
            raise ValueError(f"completion must be [B, L] = {shape}, got {tuple(completion.shape)}")
        self.tokens = completion.clone()
        self.hidden = completion == denoiser.mask_id
        self.unmask_step = torch.where(self.hidden, sampler.steps, GIVEN).int()
        self.logprob = torch.zeros(shape, device=device)
        self.entropy = torch.zeros(shape, device=device)
        self.clock = torch.zeros_like(seed) if first_step is None else first_step.clone()
        self.has_choice = sampler.order in POSITION_LOGITS
        self.choice_rank = torch.zeros(shape, dtype=torch.int32, device=device)
        self.choice_logprob = torch.zeros(shape, device=device)
        # The updates choose from the tokens that the rollout could choose from.
        self.support = None
        if needs is not None and sampler.top_k:
            self.support = torch.full((*shape, sampler.top_k), -1, dtype=torch.int32, device=device)
        self.branches = needs.branches if needs else None
        self.buffer = None
        self.needs_one_step = needs is not None and (needs.greedy or needs.branches is not None)
        if needs is not None and self.needs_one_step and sampler.is_exact:
            rule, num_selected = needs.selection
            count = 1 + (self.branches.count if self.branches else 0)
            self.buffer = OneStepBuffer(rule, num_selected, shape, sampler.steps, device, count)
            self.selection_noise = selection_noise(seed, sampler.steps)
        self.proposer = Proposer(sampler, entropy_temperature, self.buffer is not None, self.branches)
        # A completion passed by the caller may have ended already.
        self._end_rows(torch.arange(shape[0], device=device))

    def rows_at(self, k: int, start: int, stop: int) -> Tensor:
        """Return the rows that take a step in the block [start, stop), [b] int64. Under the fixed
        schedule it is step k of all of them; under an adaptive one it is each row's own next step."""
        is_masked = self.hidden[:, start:stop].any(-1)
        if self.sampler.is_adaptive:
            return is_masked.nonzero().squeeze(-1)
        rows = (is_masked & (self.clock <= k)).nonzero().squeeze(-1)
        self.clock[rows] = k
        return rows

    def step(self, rows: Tensor, start: int, stop: int, step_in_block: int) -> None:
        """Commit positions of the block [start, stop) in each of the rows [b]."""
        if not len(rows):
            return
        candidates = self._propose(rows, start, stop, step_in_block)
        rank = _priority_rank(candidates)
        committed = rank < self._num_committed(candidates, rank, stop).unsqueeze(-1)
        entropy = self._entropy_and_support(candidates, committed)
        if self.buffer:
            self._store_one_step(self.buffer, candidates, committed, entropy)
        self._commit(candidates, rank, committed, entropy)
        self._end_rows(rows)
        self.clock[rows] += 1

    def _num_committed(self, candidates: _Candidates, rank: Tensor, stop: int) -> Tensor:
        """Return the number of positions that the step commits in each row, [b] int64: an even share
        of the block, or more if an adaptive schedule allows it."""
        sampler, measure = self.sampler, candidates.outputs.measure
        num_masked = candidates.is_candidate.sum(-1)
        # At least one, for a row whose first step lies beyond its block.
        steps_left = (stop // sampler.block * sampler.steps_per_block - candidates.step).clamp(min=1)
        share = tokens_at_step(num_masked, steps_left)
        return share if measure is None else share.maximum(adaptive_count(measure, rank, num_masked, sampler))

    def snapshot(self, step: int) -> Snapshot:
        """Return the state after a step, given the number of earlier steps of the batch."""
        is_adaptive = self.sampler.is_adaptive
        share = 1 - float(self.hidden.float().mean()) if is_adaptive else (step + 1) / self.sampler.steps
        return Snapshot(step, self.tokens.clone(), self.unmask_step.clone(), self.entropy.clone(), share)

    def trajectory(self) -> Trajectory:
        """Return the record of the finished paths."""
        path = Trajectory(
            prompt_ids=self.prompt_ids,
            prompt_mask=self.prompt_mask,
            tokens=self.tokens,
            unmask_step=self.unmask_step,
            logprob=self.logprob,
            entropy=self.entropy,
            seed=self.seed,
            sampler=self.sampler,
            mask_id=self.denoiser.mask_id,
            eos_id=self.denoiser.eos_id,
            choice_rank=self.choice_rank if self.has_choice else None,
            choice_logprob=self.choice_logprob if self.has_choice else None,
            support=self.support,
        )
        return self._with_one_step(path) if self.needs_one_step else path

    def _with_one_step(self, path: Trajectory) -> Trajectory:
        """Return the trajectory with the one-step completions and branches of its selected
        steps."""
        assert self.needs is not None
        if self.buffer:
            return with_completions(path, self.needs, self.buffer.finish)
        # No more logits at a time than the steps computed.
        states = max(1, len(path) * self.sampler.block // self.sampler.max_completion_length)
        complete = partial(completions_of, self.denoiser, path, branches=self.branches, batch_size=states)
        return with_completions(path, self.needs, complete)

    def _propose(self, rows: Tensor, start: int, stop: int, step_in_block: int) -> _Candidates:
        """Propose a token and a priority for each masked position of the block."""
        hidden = self.hidden[rows]
        # One-step completions fill later blocks too; otherwise the active block is enough.
        end = self.sampler.max_completion_length if self.buffer else stop
        columns, is_valid = compact_columns(hidden[:, start:end])
        positions = columns + start
        logits, score = self.forwards.predict(rows, self.tokens[rows], positions, start, end, step_in_block)
        width = int(hidden[:, start:stop].sum(-1).max()) if end > stop else positions.shape[1]
        active = positions[:, :width]
        step = self.clock[rows]
        score = None if score is None else score[:, :width]
        outputs = self.proposer.propose(logits[:, :width], self.seed[rows], step.unsqueeze(-1), active, score)
        is_candidate = is_valid[:, :width] & (active < stop)
        return _Candidates(rows, step, positions, is_valid, is_candidate, outputs, logits)

    def _entropy_and_support(self, candidates: _Candidates, committed: Tensor) -> Tensor:
        """Return the entropy at the committed positions, [b, m] float32; 0 elsewhere. Record their
        supports if the updates need them."""
        row, column = committed.nonzero(as_tuple=True)
        logits = candidates.logits[row, column]
        entropy = torch.zeros(committed.shape, device=committed.device)
        entropy[row, column] = self.proposer.entropy(logits)
        if self.support is not None:
            self.support[candidates.rows[row], candidates.active[row, column]] = self.proposer.support(logits)
        return entropy

    def _store_one_step(
        self, buffer: OneStepBuffer, candidates: _Candidates, committed: Tensor, entropy: Tensor
    ) -> None:
        """Offer the one-step completions of the state before this step to the buffer."""
        rows, outputs = candidates.rows, candidates.outputs
        tokens = self._one_step_tokens(candidates, committed)
        state = self.tokens[rows].unsqueeze(1).expand(-1, tokens.shape[1], -1)
        positions, is_valid = (t.unsqueeze(1).expand_as(tokens) for t in (candidates.positions, candidates.is_valid))
        only_eos = ((outputs.proposed == self.denoiser.eos_id) | ~committed).all(-1)
        noise = self.selection_noise[rows, candidates.step]
        joint = entropy.double().sum(-1)
        buffer.push(rows, candidates.step, joint, noise, _scatter(state, positions, is_valid, tokens), only_eos)

    def _one_step_tokens(self, candidates: _Candidates, committed: Tensor) -> Tensor:
        """Return the tokens of the one-step completions at masked positions, [b, 1 + M, n]."""
        outputs, later = candidates.outputs, candidates.logits[:, committed.shape[1] :]
        likeliest, draws, proposed, width = outputs.likeliest, outputs.draws, outputs.proposed, committed.shape[1]
        assert likeliest is not None
        if later.shape[1]:
            seed, positions = self.seed[candidates.rows], candidates.positions[:, width:]
            later_likeliest, later_draws = self.proposer.complete(later, seed, candidates.step.unsqueeze(-1), positions)
            likeliest = torch.cat([likeliest, later_likeliest], dim=1)
            if draws is not None and later_draws is not None:
                draws = torch.cat([draws, later_draws], dim=1)
            proposed, committed = (torch.nn.functional.pad(t, (0, later.shape[1])) for t in (proposed, committed))
        return one_step_branches(self.branches, likeliest, draws, proposed, committed)

    def _commit(self, candidates: _Candidates, rank: Tensor, committed: Tensor, entropy: Tensor) -> None:
        """Make the committed positions final and record them."""
        rows, outputs = candidates.rows, candidates.outputs
        values = [
            (self.tokens, outputs.proposed),
            (self.unmask_step, candidates.step.unsqueeze(-1).expand_as(outputs.proposed)),
            (self.logprob, outputs.logprob),
            (self.entropy, entropy),
            (self.hidden, torch.zeros_like(committed)),
        ]
        if outputs.position_logit is not None:
            logprob = plackett_luce_logprob(outputs.position_logit, rank, candidates.is_candidate)
            values += [(self.choice_rank, rank), (self.choice_logprob, logprob)]
        for state, value in values:
            state[rows] = _scatter(state[rows], candidates.active, committed, value.to(state.dtype))

    def _end_rows(self, rows: Tensor) -> None:
        """End the rows that have an EOS with no masked position before it."""
        tokens, hidden = self.tokens[rows], self.hidden[rows]
        ended = ((tokens == self.denoiser.eos_id) & (hidden.cumsum(-1) == 0)).any(-1)
        self.tokens[rows] = torch.where(ended.unsqueeze(-1) & hidden, self.denoiser.eos_id, tokens)
        self.hidden[rows] = hidden & ~ended.unsqueeze(-1)


def _priority_rank(candidates: _Candidates) -> Tensor:
    """Return the rank of each candidate by its priority, [b, m] int64; 0 is committed first."""
    priority = candidates.outputs.priority.masked_fill(~candidates.is_candidate, -torch.inf)
    return priority.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)


def _scatter(target: Tensor, positions: Tensor, where: Tensor, value: Tensor) -> Tensor:
    """Return a copy of `target` [..., L] with `value` [..., n] at the `positions` selected by `where`."""
    return target.scatter(-1, positions, torch.where(where, value, target.gather(-1, positions)))

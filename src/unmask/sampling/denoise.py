"""The denoising loop, written once: blocks, steps, an order, and a record of what was committed when.

Every draw is a hash of the row's seed, the step and the position, so what a row becomes does not depend on which rows share
its batch, on padding, or on rows that have left. The loop starts from any partially masked completion, not only from an empty
one: branching from a state, infilling and inpainting are the same loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.core.config import SamplerConfig
from unmask.core.records import GIVEN, DenoiserLike, Needs, Trajectory
from unmask.functional.plackett_luce import plackett_luce_logprob
from unmask.functional.schedule import tokens_at_step
from unmask.functional.selection import selected_path_steps, selection_noise
from unmask.sampling.branches import OneStepBuffer, one_step_branches
from unmask.sampling.forwards import Forwards
from unmask.sampling.orders import POSITION_LOGITS
from unmask.sampling.step_outputs import StepOutputs, StepReader


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What an observer is shown after each step."""

    step: int
    tokens: Tensor
    """[B, L] int64, MASK where still hidden."""
    unmask_step: Tensor
    """[B, L] int32; T where still hidden."""
    entropy: Tensor
    """[B, L] float32, nats, at commitment."""


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

    At step k the model is asked for the masked positions of the active block; a token is drawn for each, the order picks as
    many as the schedule commits (the block's masked positions shared evenly over its steps), and these become final.
    A row whose text is settled, everything up to an EOS committed, leaves; what is still masked in it becomes EOS unsampled.

    Args:
        denoiser: the policy, in evaluation mode.
        prompt_ids: [B, P] int64, left-padded.
        prompt_mask: [B, P] bool, False at padding.
        sampler: the settings; temperature 0 takes the likeliest token.
        seed: [B] int64.
        completion: [B, L] int64 to start from, MASK where to be filled; default all MASK.
        first_step: [B] int64, the step at which each row begins; default 0. A state that an earlier run reached after step k - 1,
            begun at k, is denoised on as that run would have.
        needs: if it asks for one-step completions, those of the steps that its selection takes are kept.
        entropy_temperature: temperature of the recorded entropies where they should not be those of the sampling
            distribution; then without top-k and top-p.
        observe: called after every step.

    Returns:
        The trajectory; log-probabilities and entropies at temperature 1 where the sampling temperature is 0.
    """
    run = _Run(denoiser, prompt_ids, prompt_mask, sampler, seed, completion, needs, entropy_temperature)
    steps_per_block = sampler.steps * sampler.block // sampler.max_completion_length
    for block in range(sampler.max_completion_length // sampler.block):
        start, stop = block * sampler.block, (block + 1) * sampler.block
        for i in range(steps_per_block):
            step = block * steps_per_block + i
            num_committed = tokens_at_step(run.hidden[:, start:stop].sum(-1), steps_per_block - i)
            if first_step is not None:
                num_committed = num_committed.masked_fill(step < first_step, 0)
            run.step(step, start, stop, num_committed)
            if observe is not None:
                observe(Snapshot(step, run.tokens.clone(), run.unmask_step.clone(), run.entropy.clone()))
    return run.trajectory()


class _Run:
    """The state of one batch on its way through the loop."""

    def __init__(
        self,
        denoiser: DenoiserLike,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        sampler: SamplerConfig,
        seed: Tensor,
        completion: Tensor | None,
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
        self.ended = torch.zeros(shape[0], dtype=torch.bool, device=device)
        self.has_choice = sampler.order in POSITION_LOGITS
        self.choice_rank = torch.zeros(shape, dtype=torch.int32, device=device)
        self.choice_logprob = torch.zeros(shape, device=device)
        self.branches = needs.branches if needs else None
        self.keeper = None
        if needs is not None and (needs.greedy or needs.branches):
            rule, num_selected = needs.selection
            count = 1 + (self.branches.count if self.branches else 0)
            self.keeper = OneStepBuffer(rule, num_selected, shape, sampler.steps, device, count)
            self.selection_noise = selection_noise(seed, sampler.steps)
        self.reader = StepReader(sampler, entropy_temperature, self.keeper is not None, self.branches)
        # A given completion may be settled already.
        self._retire(torch.arange(shape[0], device=device))

    def step(self, step: int, start: int, stop: int, num_committed: Tensor) -> None:
        """Commit `num_committed` [B] positions of the block [start, stop) in every row that has not ended."""
        rows = ((num_committed > 0) & ~self.ended).nonzero().squeeze(-1)
        if not len(rows):
            return
        sampler, hidden = self.sampler, self.hidden[rows]
        # One-step completions fill later blocks too; otherwise nothing outside the active block is asked for.
        reach = sampler.max_completion_length if self.keeper else stop
        positions, is_wanted = _hidden_positions(hidden[:, start:reach], start)
        logits = self.forwards.logits(rows, self.tokens[rows], positions, start, reach)
        width = int(hidden[:, start:stop].sum(-1).max())
        candidates = positions[:, :width]
        is_candidate = is_wanted[:, :width] & (candidates < stop)
        seed = self.seed[rows]
        read = self.reader.read(logits[:, :width], seed, step, candidates)
        proposed, entropy = read.proposed, read.entropy
        rank = (
            read.score.masked_fill(~is_candidate, -torch.inf)
            .argsort(dim=-1, descending=True, stable=True)
            .argsort(dim=-1)
        )
        committed = rank < num_committed[rows].unsqueeze(-1)
        if self.keeper:
            branches = self._one_step_fills(read, logits[:, width:], committed, seed, step, positions)
            whole = self.tokens[rows].unsqueeze(1).expand(-1, branches.shape[1], -1)
            index, where = (t.unsqueeze(1).expand_as(branches) for t in (positions, is_wanted))
            only_eos = ((proposed == self.denoiser.eos_id) | ~committed).all(-1)
            joint = (entropy.double() * committed).sum(-1)
            noise = self.selection_noise[rows, step]
            self.keeper.push(rows, step, joint, noise, _scatter(whole, index, where, branches), only_eos)
        facts = [
            (self.tokens, proposed),
            (self.unmask_step, torch.full_like(proposed, step)),
            (self.logprob, read.chosen),
            (self.entropy, entropy),
        ]
        if read.choice is not None:
            picked = plackett_luce_logprob(read.choice, rank, is_candidate)
            facts += [(self.choice_rank, rank), (self.choice_logprob, picked)]
        for state, value in facts:
            state[rows] = _scatter(state[rows], candidates, committed, value.to(state.dtype))
        self.hidden[rows] = _scatter(hidden, candidates, committed, torch.zeros_like(committed))
        self._retire(rows)

    def trajectory(self) -> Trajectory:
        """The finished record."""
        sampler, eos_id = self.sampler, self.denoiser.eos_id
        selected_step = one_step_tokens = branch_tokens = None
        if self.keeper and self.needs:
            steps = selected_path_steps(
                self.needs.selection, self.unmask_step, self.entropy, self.tokens == eos_id, self.seed, sampler.steps
            )
            kept = self.keeper.finish(steps)
            selected_step, one_step_tokens = steps.int(), kept[:, :, 0]
            branch_tokens = kept[:, :, 1:] if self.branches else None
        return Trajectory(
            prompt_ids=self.prompt_ids,
            prompt_mask=self.prompt_mask,
            tokens=self.tokens,
            unmask_step=self.unmask_step,
            logprob=self.logprob,
            entropy=self.entropy,
            seed=self.seed,
            sampler=sampler,
            mask_id=self.denoiser.mask_id,
            eos_id=eos_id,
            choice_rank=self.choice_rank if self.has_choice else None,
            choice_logprob=self.choice_logprob if self.has_choice else None,
            selected_step=selected_step,
            one_step_tokens=one_step_tokens,
            branch_tokens=branch_tokens,
        )

    def _one_step_fills(
        self, read: StepOutputs, beyond: Tensor, committed: Tensor, seed: Tensor, step: int, positions: Tensor
    ) -> Tensor:
        """[b, 1 + M, n] tokens at all n masked positions, of which the first columns were read and the rest are `beyond`."""
        greedy, draws, proposed, width = read.greedy, read.draws, read.proposed, committed.shape[1]
        assert greedy is not None
        if beyond.shape[1]:
            further, drawn = self.reader.read_beyond(beyond, seed, step, positions[:, width:])
            greedy = torch.cat([greedy, further], dim=1)
            if draws is not None and drawn is not None:
                draws = torch.cat([draws, drawn], dim=1)
            proposed, committed = (torch.nn.functional.pad(t, (0, beyond.shape[1])) for t in (proposed, committed))
        return one_step_branches(self.branches, greedy, draws, proposed, committed)

    def _retire(self, rows: Tensor) -> None:
        """End rows whose text is settled: an EOS with nothing hidden before it."""
        tokens, hidden = self.tokens[rows], self.hidden[rows]
        settled = ((tokens == self.denoiser.eos_id) & (hidden.cumsum(-1) == 0)).any(-1)
        self.tokens[rows] = torch.where(settled.unsqueeze(-1) & hidden, self.denoiser.eos_id, tokens)
        self.hidden[rows] = hidden & ~settled.unsqueeze(-1)
        self.ended[rows] = settled


def _hidden_positions(hidden: Tensor, offset: int) -> tuple[Tensor, Tensor]:
    """Hidden columns of each row in ascending order, plus offset, as wide as the fullest row: [B, n] and which are real."""
    width = int(hidden.sum(-1).max())
    order = (~hidden).int().argsort(dim=-1, stable=True)[:, :width]
    return order + offset, hidden.gather(1, order)


def _scatter(target: Tensor, positions: Tensor, where: Tensor, value: Tensor) -> Tensor:
    """A copy of `target` [..., L] with `value` [..., n] at the positions where `where` [..., n] holds."""
    return target.scatter(-1, positions, torch.where(where, value, target.gather(-1, positions)))

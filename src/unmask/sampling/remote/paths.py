"""Paths from answers: the tokens and the step map of each answer become a `Trajectory`, whose
log-probabilities are then computed by the policy itself.

An engine's own log-probabilities are never used. They differ from those of the trained policy by
the engine's kernels, and some engines compute them at another temperature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.core.config import SamplerConfig
from unmask.core.records import Trajectory
from unmask.models import Policy
from unmask.sampling.encoding import left_pad, turn_end
from unmask.sampling.remote.format import Answer, FormatError
from unmask.sampling.remote.step_maps import FILLED, steps_in_blocks


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """Tokens of an answer with the step of each within its block."""

    tokens: list[int]
    """Tokens of whole blocks."""
    steps: list[int]
    """Step of each token within its block, from 0; -1 for a token that was filled in after the
    end."""


def answer_row(answer: Answer, prompt: Sequence[int], length: int, block: int, policy: Policy) -> AnswerRow:
    """Check an answer, and return its tokens and steps.

    Args:
        answer: the answer.
        prompt: tokens of the prompt.
        length: number of positions L of a completion.
        block: number of positions in a block of the engine.
        policy: policy whose rollout it is.

    Raises:
        FormatError: the answer cannot be the path of a completion.
    """
    (denoiser, tokenizer), meta = policy, answer.meta_info
    if meta.finish_reason is not None and meta.finish_reason.type == "abort":
        raise FormatError("the engine aborted the completion (finish_reason abort). Leave this answer out.")
    if meta.step_maps is None:
        raise FormatError(
            "meta_info has no step_maps, so it is not known which step committed which token. Send the request with "
            "return_step_maps = true, to an engine that supports it."
        )
    tokens = answer.output_ids
    if not tokens:
        raise FormatError("output_ids is empty.")
    for what, ids in (("prompt", prompt), ("completion", tokens)):
        if max(ids) >= denoiser.vocab_size:
            raise FormatError(
                f"the {what} has the token id {max(ids)}, but the model has {denoiser.vocab_size} tokens. "
                "The answer is that of another model."
            )
    if denoiser.mask_id in tokens:
        raise FormatError(
            f"position {tokens.index(denoiser.mask_id)} of the completion is the MASK token {denoiser.mask_id}: "
            "the engine stopped before the completion was finished."
        )
    if len(tokens) > length:
        raise FormatError(f"the completion has {len(tokens)} tokens, but max_new_tokens allows {length}.")
    if meta.blocks_from is None and len(prompt) % block and block < length:
        raise FormatError(
            f"the prompt has {len(prompt)} tokens, which is not a multiple of the block length {block}. The engine then denoises "
            "the end of the prompt and the start of the completion in one block, and unmask does not. Pad the prompt."
        )
    steps = steps_in_blocks(meta.step_maps, len(tokens), block)
    _check_end(tokens, meta.step_maps, length, {denoiser.eos_id}, turn_end(tokenizer))
    return AnswerRow(list(tokens), steps)


def _check_end(tokens: list[int], step_map: list[int], length: int, ends: set[int], end_of_turn: int | None) -> None:
    """Check that tokens were filled in only after an EOS, and that a short completion has ended."""
    first = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
    filled = next((i for i, step in enumerate(step_map) if step == FILLED), len(tokens))
    if filled < first or any(tokens[i] not in ends for i, step in enumerate(step_map) if step == FILLED):
        raise FormatError(
            f"position {filled} has the step {FILLED}, which only the EOS tokens after the first EOS can have."
        )
    if len(tokens) < length and first == len(tokens) and end_of_turn not in tokens:
        raise FormatError(
            f"the completion stops after {len(tokens)} of {length} tokens without an EOS. Its policy is not known: sample "
            "without stop texts."
        )


def path_of(
    rows: Sequence[AnswerRow],
    prompts: Sequence[list[int]],
    sampler: SamplerConfig,
    seeds: Tensor,
    policy: Policy,
    version: int = 0,
) -> Trajectory:
    """Return the trajectory of answers, with log-probabilities and entropies of 0.

    Positions after the last token of an answer are EOS that the policy never saw. Under the fixed
    schedule, each block has its own range of steps; under an adaptive one, the steps of a row count
    on through its blocks.

    Args:
        rows: B answers.
        prompts: tokens of the B prompts.
        sampler: settings of the sampler, whose steps hold those of the answers.
        seeds: [B] int64 seeds.
        policy: policy that sampled the answers.
        version: version of its weights.

    Raises:
        FormatError: an answer has more steps in a block than the sampler.
    """
    denoiser, tokenizer = policy
    length = sampler.max_completion_length
    tokens = torch.full((len(rows), length), denoiser.eos_id)
    unmask_step = torch.full((len(rows), length), sampler.steps, dtype=torch.int32)
    for index, row in enumerate(rows):
        tokens[index, : len(row.tokens)] = torch.tensor(row.tokens)
        unmask_step[index, : len(row.tokens)] = _steps_of(row, index, sampler)
    prompt_ids, prompt_mask = left_pad(list(prompts), denoiser.pad_id)
    nothing = torch.zeros(tokens.shape)
    path = Trajectory(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        tokens=tokens,
        unmask_step=unmask_step,
        logprob=nothing,
        entropy=nothing.clone(),
        seed=seeds,
        sampler=sampler,
        mask_id=denoiser.mask_id,
        eos_id=denoiser.eos_id,
        turn_end_id=turn_end(tokenizer),
        policy_version=version,
    )
    return path.to(next(denoiser.parameters()).device)


def _steps_of(row: AnswerRow, index: int, sampler: SamplerConfig) -> Tensor:
    """Return the denoising step of each token of an answer, [n] int32; T for a filled one."""
    steps = torch.tensor(row.steps).view(-1, sampler.block)
    taken = steps.max(-1).values + 1
    if sampler.is_adaptive:
        before, most, limit = taken.cumsum(0) - taken, int(taken.sum()), sampler.steps
    else:
        before = torch.arange(len(steps)) * sampler.steps_per_block
        most, limit = int(taken.max()), sampler.steps_per_block
    if most > limit:
        where = "" if sampler.is_adaptive else " in a block"
        raise FormatError(
            f"completion {index} takes {most} steps{where}, but the sampler has {limit}. Raise num_steps."
        )
    return torch.where(steps < 0, sampler.steps, before.unsqueeze(-1) + steps).flatten().int()
